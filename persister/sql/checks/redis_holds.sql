-- What Redis has of each open hold, against what it was in the ledger at some moment since the sequence `since`, at
-- which the ledger was before Redis was looked at.
SELECT
    'hold ' || r.id AS subject,
    format('Redis: remaining %%s, captured %%s, review %%s, purpose %%s from %%s to %%s, expiry %%s',
        r.remaining, r.captured, r.review, r.purpose, r.debit, r.credit, r.expires_at_ms) AS found,
    CASE WHEN h.id IS NULL THEN 'the ledger does not know it'
        ELSE format('remaining %%s, captured %%s, review %%s, purpose %%s from %%s to %%s, expiry %%s', c.remaining,
            c.captured, c.review, h.purpose, h.debit_wallet_id, h.credit_wallet_id, h.expires_at_ms) END AS expected
FROM unnest(
    %(id)b::uuid[], %(remaining)b::bigint[], %(captured)b::bigint[], %(review)b::bigint[], %(purpose)b::bigint[],
    %(debit)b::bigint[], %(credit)b::bigint[], %(expires_at_ms)b::bigint[]
) AS r (id, remaining, captured, review, purpose, debit, credit, expires_at_ms)
LEFT JOIN LATERAL (
    SELECT * FROM hold WHERE id = r.id AND shard = %(shard)s ORDER BY sequence DESC LIMIT 1
) AS h ON true
LEFT JOIN LATERAL (
    SELECT * FROM hold_change WHERE hold_id = r.id AND shard = %(shard)s ORDER BY sequence DESC LIMIT 1
) AS c ON true
WHERE h.id IS NULL
    OR (h.purpose, h.debit_wallet_id, h.credit_wallet_id, h.expires_at_ms)
        <> (r.purpose, r.debit, r.credit, r.expires_at_ms)
    OR NOT EXISTS (
        SELECT FROM hold_change AS was
        WHERE was.hold_id = r.id AND was.shard = %(shard)s
            AND (was.remaining, was.captured, was.review) = (r.remaining, r.captured, r.review)
            AND was.sequence >= coalesce((
                SELECT max(sequence) FROM hold_change
                WHERE hold_id = r.id AND shard = %(shard)s AND sequence <= %(since)s
            ), 0)
    )
