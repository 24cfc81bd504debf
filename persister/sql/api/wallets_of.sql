-- The wallets of an owner, by id. External ones have no owner.
SELECT w.id, w.owner_id, w.currency::text, b.available, b.locked, b.version, b.overdraft_limit, b.tier, b.flags
FROM wallet AS w JOIN wallet_balance AS b ON b.wallet_id = w.id
WHERE w.owner_id = %(owner)s AND w.id > %(after)s AND w.flags & 1 = 0
ORDER BY w.id
LIMIT %(limit)s
