-- The same of some wallets.
SELECT b.wallet_id, b.flags, b.tier, b.available, b.locked, b.version, w.currency, b.overdraft_limit
FROM unnest(%(ids)b::bigint[]) AS i (id)
JOIN wallet AS w ON w.id = i.id
JOIN wallet_balance AS b ON b.wallet_id = i.id
ORDER BY i.id
