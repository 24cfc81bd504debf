-- The last hold that was made under an id, as its last change left it.
SELECT
    h.id, h.sequence, h.at, h.debit_wallet_id, h.credit_wallet_id, h.purpose, h.amount, c.state, c.remaining, c.captured,
    c.review, h.rule, CASE WHEN h.expires_at_ms > 0 THEN to_timestamp(h.expires_at_ms / 1000.0) END,
    d.reference, d.metadata
FROM hold AS h
CROSS JOIN LATERAL (
    SELECT * FROM hold_change WHERE hold_id = h.id AND shard = h.shard ORDER BY sequence DESC LIMIT 1
) AS c
LEFT JOIN hold_detail AS d ON d.shard = h.shard AND d.sequence = h.sequence
WHERE h.id = %(id)s
ORDER BY h.sequence DESC
LIMIT 1
