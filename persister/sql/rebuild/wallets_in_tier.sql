-- The wallets of a shard that are in a tier.
SELECT b.wallet_id FROM wallet_balance AS b JOIN wallet AS w ON w.id = b.wallet_id
WHERE w.shard = %(shard)s AND b.tier <> 0
ORDER BY b.wallet_id
