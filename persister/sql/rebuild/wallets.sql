-- The next wallets of a shard, by their ids.
SELECT b.wallet_id, b.flags, b.tier, b.available, b.locked, b.version, w.currency, b.overdraft_limit
FROM wallet AS w
JOIN wallet_balance AS b ON b.wallet_id = w.id
WHERE w.shard = %(shard)s AND w.id > %(above)s AND b.wallet_id > %(above)s
ORDER BY w.id
LIMIT %(limit)s
