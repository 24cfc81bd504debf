-- Each change of a hold follows from the one before: it begins with its hold (7), reserves more (9), captures (8),
-- releases (10, 11) or approves (12) what was open, and leaves what is left then.
WITH changes AS (
    SELECT *,
        lag(state) OVER w AS state_before,
        lag(remaining, 1, 0::bigint) OVER w AS remaining_before,
        lag(captured, 1, 0::bigint) OVER w AS captured_before,
        lag(review) OVER w AS review_before,
        max(sequence) FILTER (WHERE kind = 7) OVER w AS begun
    FROM hold_change
    WHERE shard = %(shard)s AND (%(after)s = 0 OR hold_id = ANY (%(holds)b::uuid[]))
    WINDOW w AS (PARTITION BY hold_id ORDER BY sequence)
)
SELECT
    format('hold %%s at sequence %%s', coalesce(c.hold_id, h.id), coalesce(c.sequence, h.sequence)) AS subject,
    format('kind %%s of wallet %%s: amount %%s, released %%s; state %%s, review %%s, remaining %%s, captured %%s',
        c.kind, c.wallet_id, c.amount, c.released, c.state, c.review, c.remaining, c.captured) AS found,
    format('a hold of wallet %%s for %%s, review %%s; after state %%s, review %%s, remaining %%s, captured %%s',
        h.debit_wallet_id, h.amount, h.review, c.state_before, c.review_before, c.remaining_before, c.captured_before)
        AS expected,
    count(*) OVER () AS differences
FROM changes AS c
FULL JOIN (
    SELECT * FROM hold WHERE shard = %(shard)s AND (%(after)s = 0 OR id = ANY (%(holds)b::uuid[]))
) AS h ON h.id = c.hold_id AND h.sequence = c.begun
WHERE c.hold_id IS NULL
    OR h.debit_wallet_id IS DISTINCT FROM c.wallet_id
    OR CASE c.kind
        WHEN 7 THEN c.state_before = 0
            OR (c.state, c.review, c.remaining, c.captured, c.amount, c.released)
                <> (0, h.review, h.amount, 0, h.amount, 0)
        ELSE c.state_before IS DISTINCT FROM 0
            OR c.released < 0
            OR c.captured <> c.captured_before + CASE c.kind WHEN 8 THEN c.amount ELSE 0 END
            OR c.remaining <> c.remaining_before
                + CASE c.kind WHEN 9 THEN c.amount WHEN 8 THEN -c.amount - c.released ELSE -c.released END
            OR CASE c.kind
                WHEN 8 THEN c.amount < 1 OR c.review <> 0 OR c.review_before = 2
                WHEN 9 THEN c.amount < 1 OR c.released <> 0 OR (c.review, c.review_before) <> (0, 0)
                WHEN 12 THEN (c.amount, c.released, c.review, c.review_before) <> (0, 0, 0, 2)
                ELSE c.amount <> c.released OR c.remaining <> 0 OR c.review <> c.review_before
                END
            OR c.state <> CASE WHEN c.remaining > 0 THEN 0 WHEN c.kind = 8 THEN 1 WHEN c.kind = 10 THEN 2
                WHEN c.kind = 11 THEN 3 ELSE -1 END
        END
ORDER BY c.hold_id, c.sequence
LIMIT %(limit)s
