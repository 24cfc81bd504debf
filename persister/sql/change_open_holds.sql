-- Each hold that a batch changes and leaves open, from exactly what it must be before to what it is after. A row that
-- is not as the journal says stays as it is, and the caller counts.
UPDATE open_hold AS h
SET remaining = c.remaining, captured = c.captured, review = c.review
FROM unnest(
    %(id)b::uuid[], %(remaining_before)b::bigint[], %(captured_before)b::bigint[], %(debit)b::bigint[],
    %(credit)b::bigint[], %(purpose)b::bigint[], %(expires_at_ms)b::bigint[],
    %(remaining)b::bigint[], %(captured)b::bigint[], %(review)b::bigint[]
) AS c (
    id, remaining_before, captured_before, debit, credit, purpose, expires_at_ms, remaining, captured, review
)
WHERE h.id = c.id AND h.shard = %(shard)s
    AND (h.remaining, h.captured) = (c.remaining_before, c.captured_before)
    AND (h.debit_wallet_id, h.credit_wallet_id) = (c.debit, c.credit)
    AND (h.purpose, h.expires_at_ms) = (c.purpose, c.expires_at_ms)
