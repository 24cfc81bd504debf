-- The holds that were made or changed in a range of sequences and are open.
SELECT h.id, h.purpose, h.review, h.debit_wallet_id, h.credit_wallet_id, h.remaining, h.captured, h.expires_at_ms
FROM (
    SELECT DISTINCT hold_id FROM hold_change
    WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(upto)s
) AS c
JOIN open_hold AS h ON h.id = c.hold_id AND h.shard = %(shard)s
