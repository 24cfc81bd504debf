-- What was refunded of transfers in all.
SELECT sequence, original_id, total FROM refund
WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(upto)s
ORDER BY sequence
