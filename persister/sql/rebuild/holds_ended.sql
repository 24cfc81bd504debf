-- The holds that ended in a range of sequences, as they were then.
SELECT c.sequence, c.hold_id AS id, c.state, h.purpose, c.review, h.debit_wallet_id, h.credit_wallet_id, c.captured,
    h.expires_at_ms
FROM hold_change AS c
CROSS JOIN LATERAL (
    SELECT purpose, debit_wallet_id, credit_wallet_id, expires_at_ms FROM hold
    WHERE id = c.hold_id AND shard = c.shard AND sequence <= c.sequence
    ORDER BY sequence DESC LIMIT 1
) AS h
WHERE c.shard = %(shard)s AND c.sequence > %(after)s AND c.sequence <= %(upto)s AND c.state <> 0
ORDER BY c.sequence
