-- The open holds are those whose last change left them open, as it left them. Where an id was used again, each hold
-- has the changes up to the next one.
WITH changes AS (
    SELECT *,
        max(sequence) FILTER (WHERE kind = 7) OVER (PARTITION BY hold_id ORDER BY sequence) AS begun,
        row_number() OVER (PARTITION BY hold_id ORDER BY sequence DESC) AS from_the_end
    FROM hold_change
    WHERE shard = %(shard)s AND (%(after)s = 0 OR hold_id = ANY (%(holds)b::uuid[]))
),
expected AS (
    SELECT c.hold_id AS id, h.sequence, h.debit_wallet_id, h.credit_wallet_id, h.purpose, c.review, h.rule,
        c.remaining, c.captured, h.expires_at_ms, h.at
    FROM changes AS c
    LEFT JOIN hold AS h ON h.id = c.hold_id AND h.shard = c.shard AND h.sequence = c.begun
    WHERE c.from_the_end = 1 AND c.state = 0
),
found AS (
    SELECT id, sequence, debit_wallet_id, credit_wallet_id, purpose, review, rule, remaining, captured,
        expires_at_ms, at
    FROM open_hold
    WHERE shard = %(shard)s AND (%(after)s = 0 OR id = ANY (%(holds)b::uuid[]))
)
SELECT
    'hold ' || coalesce(e.id, f.id) AS subject,
    CASE WHEN f.id IS NULL THEN 'not open' ELSE f::text END AS found,
    CASE WHEN e.id IS NULL THEN 'not open' ELSE e::text END AS expected,
    count(*) OVER () AS differences
FROM expected AS e FULL JOIN found AS f ON f.id = e.id
WHERE f IS DISTINCT FROM e
LIMIT %(limit)s
