-- Invariant 7: locked is what open holds reserve; no kind of event makes a hold yet.
SELECT
    'wallet ' || wallet_id AS subject, 'locked ' || locked AS found, '0: there are no holds' AS expected,
    count(*) OVER () AS differences
FROM wallet_balance JOIN wallet ON id = wallet_id
WHERE shard = %(shard)s AND locked <> 0
ORDER BY wallet_id
LIMIT %(limit)s
