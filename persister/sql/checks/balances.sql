-- A wallet's balance is the sum of its entries, and what its last entry says.
WITH sums AS (
    SELECT wallet_id, sum(amount) AS owned, max(version) AS version
    FROM ledger_entry WHERE shard = %(shard)s
    GROUP BY wallet_id
)
SELECT
    'wallet ' || coalesce(w.id, b.wallet_id, s.wallet_id) AS subject,
    format('available %%s, locked %%s, version %%s, opened %%s', b.available, b.locked, b.version, w.id IS NOT NULL)
        AS found,
    format('sum %%s, last entry: available %%s, locked %%s, version %%s',
        s.owned, e.available_after, e.locked_after, s.version) AS expected,
    count(*) OVER () AS differences
FROM wallet AS w
FULL JOIN wallet_balance AS b ON b.wallet_id = w.id
FULL JOIN sums AS s ON s.wallet_id = coalesce(w.id, b.wallet_id)
LEFT JOIN ledger_entry AS e ON e.wallet_id = s.wallet_id AND e.version = s.version
WHERE coalesce(w.shard, %(shard)s) = %(shard)s
    AND (
        w.id IS NULL
        OR (b.available + b.locked, b.version, b.available, b.locked)
            IS DISTINCT FROM (s.owned, s.version, e.available_after, e.locked_after)
    )
ORDER BY coalesce(w.id, b.wallet_id, s.wallet_id)
LIMIT %(limit)s
