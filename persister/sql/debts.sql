SELECT wallet_id, owner_id, currency, available, overdraft_limit, debt
FROM debt
ORDER BY debt DESC, wallet_id
LIMIT %(limit)s
