-- Invariant 7: locked is the sum of what the open holds have left.
SELECT
    'wallet ' || b.wallet_id AS subject,
    'locked ' || b.locked AS found,
    coalesce(h.remaining, 0) || ' in open holds' AS expected,
    count(*) OVER () AS differences
FROM wallet_balance AS b
JOIN wallet AS w ON w.id = b.wallet_id
LEFT JOIN (
    SELECT debit_wallet_id, sum(remaining) AS remaining
    FROM open_hold
    WHERE shard = %(shard)s AND (%(after)s = 0 OR debit_wallet_id = ANY (%(wallets)b::bigint[]))
    GROUP BY debit_wallet_id
) AS h ON h.debit_wallet_id = b.wallet_id
WHERE w.shard = %(shard)s
    AND (%(after)s = 0 OR b.wallet_id = ANY (%(wallets)b::bigint[]))
    AND b.locked <> coalesce(h.remaining, 0)
ORDER BY b.wallet_id
LIMIT %(limit)s
