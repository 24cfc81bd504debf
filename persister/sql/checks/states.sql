-- A wallet's flags, tier and overdraft limit are what it was opened as and what its changes made of it.
SELECT
    'wallet ' || b.wallet_id AS subject,
    format('flags %%s, tier %%s, overdraft limit %%s', b.flags, b.tier, b.overdraft_limit) AS found,
    format('flags %%s, tier %%s, overdraft limit %%s', s.flags, s.tier, s.overdraft_limit) AS expected,
    count(*) OVER () AS differences
FROM wallet_balance AS b
JOIN wallet AS w ON w.id = b.wallet_id
LEFT JOIN (
    SELECT DISTINCT wallet_id FROM wallet_change
    WHERE %(after)s = 0 OR wallet_id = ANY (%(wallets)b::bigint[])
) AS changed ON changed.wallet_id = b.wallet_id
-- Most wallets never change: they need no look at their changes.
CROSS JOIN LATERAL (
    SELECT w.flags, 0 AS tier, w.overdraft_limit WHERE changed.wallet_id IS NULL
    UNION ALL
    SELECT flags, tier, overdraft_limit FROM wallet_state(b.wallet_id, b.version) WHERE changed.wallet_id IS NOT NULL
) AS s
WHERE w.shard = %(shard)s
    AND (%(after)s = 0 OR b.wallet_id = ANY (%(wallets)b::bigint[]))
    AND (b.flags, b.tier, b.overdraft_limit) IS DISTINCT FROM (s.flags, s.tier, s.overdraft_limit)
ORDER BY b.wallet_id
LIMIT %(limit)s
