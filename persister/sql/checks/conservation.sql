-- Invariant 1: per currency, the entries sum to zero.
SELECT
    'currency ' || coalesce(w.currency::text, 'of unknown wallets') AS subject,
    'entries sum to ' || sum(e.total) AS found,
    '0' AS expected,
    count(*) OVER () AS differences
FROM (
    SELECT wallet_id, sum(amount) AS total
    FROM ledger_entry
    WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
    GROUP BY wallet_id
) AS e
LEFT JOIN wallet AS w ON w.id = e.wallet_id
GROUP BY w.currency
HAVING sum(e.total) <> 0
LIMIT %(limit)s
