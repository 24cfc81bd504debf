-- Each hold that a batch ends, if it is exactly what it must be before.
DELETE FROM open_hold AS h
USING unnest(
    %(id)b::uuid[], %(remaining_before)b::bigint[], %(captured_before)b::bigint[], %(debit)b::bigint[],
    %(credit)b::bigint[], %(purpose)b::bigint[], %(expires_at_ms)b::bigint[]
) AS c (id, remaining_before, captured_before, debit, credit, purpose, expires_at_ms)
WHERE h.id = c.id AND h.shard = %(shard)s
    AND (h.remaining, h.captured) = (c.remaining_before, c.captured_before)
    AND (h.debit_wallet_id, h.credit_wallet_id) = (c.debit, c.credit)
    AND (h.purpose, h.expires_at_ms) = (c.purpose, c.expires_at_ms)
