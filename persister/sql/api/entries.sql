-- A wallet's entries, the newest first, between two times, of some kinds. A filter by kind looks at so many versions
-- at most: the first column is how far it looked, on every row and on a row of its own at the end.
WITH bound AS (
    SELECT
        least(
            coalesce(%(before)s::bigint, 9223372036854775807),
            CASE WHEN %(until)s::timestamptz IS NULL THEN 9223372036854775807
                ELSE version_at(%(wallet)s, %(until)s::timestamptz - interval '1 microsecond') + 1 END
        ) AS before,
        CASE WHEN %(since)s::timestamptz IS NULL THEN 0
            ELSE version_at(%(wallet)s, %(since)s::timestamptz - interval '1 microsecond') END AS after
),
seen AS MATERIALIZED (
    SELECT e.*
    FROM ledger_entry AS e
    WHERE e.wallet_id = %(wallet)s AND e.version < (SELECT before FROM bound)
        AND e.version > (SELECT after FROM bound)
    ORDER BY e.version DESC
    LIMIT %(look)s
),
found AS (
    SELECT e.*, j.kind, j.id
    FROM seen AS e JOIN journal_event AS j ON j.shard = e.shard AND j.sequence = e.sequence
    WHERE %(kinds)s::smallint[] IS NULL OR j.kind = ANY (%(kinds)s::smallint[])
    ORDER BY e.version DESC
    LIMIT %(limit)s
)
SELECT
    (SELECT min(version) FROM seen), (SELECT count(*) FROM seen),
    e.version, e.sequence, e.at, e.kind, e.id,
    CASE WHEN t.debit_wallet_id = e.wallet_id THEN t.credit_wallet_id
        WHEN t.id IS NOT NULL THEN t.debit_wallet_id ELSE h.credit_wallet_id END,
    e.amount, e.available_after, e.locked_after,
    CASE WHEN c.kind IN (7, 9) THEN c.amount WHEN c.kind = 8 THEN -c.amount - c.released
        ELSE coalesce(-c.released, 0) END,
    c.hold_id, coalesce(d.reference, hd.reference), coalesce(d.metadata, hd.metadata)
FROM (SELECT 1) AS one
LEFT JOIN found AS e ON true
LEFT JOIN transfer AS t ON t.id = e.id AND t.shard = e.shard AND t.sequence = e.sequence
LEFT JOIN transfer_detail AS d ON d.transfer_id = t.id
LEFT JOIN hold_change AS c ON c.wallet_id = e.wallet_id AND c.wallet_version = e.version
LEFT JOIN LATERAL (
    SELECT credit_wallet_id FROM hold
    WHERE id = c.hold_id AND shard = c.shard AND sequence <= c.sequence
    ORDER BY sequence DESC LIMIT 1
) AS h ON true
LEFT JOIN hold_detail AS hd ON hd.shard = c.shard AND hd.sequence = c.sequence
ORDER BY e.version DESC
