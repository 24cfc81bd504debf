-- The next open holds of a shard, by their ids.
SELECT id, purpose, review, debit_wallet_id, credit_wallet_id, remaining, captured, expires_at_ms
FROM open_hold
WHERE shard = %(shard)s AND id > %(above)s
ORDER BY id
LIMIT %(limit)s
