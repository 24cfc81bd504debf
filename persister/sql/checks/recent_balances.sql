-- balances.sql, of the wallets that changed: a balance is what the wallet's last entry says. That it is the sum of the
-- entries follows from this and versions.sql, if it was before.
SELECT
    'wallet ' || t.wallet_id AS subject,
    format('available %%s, locked %%s, version %%s, opened %%s', b.available, b.locked, b.version, w.id IS NOT NULL)
        AS found,
    format('last entry: available %%s, locked %%s, version %%s', e.available_after, e.locked_after, e.version)
        AS expected,
    count(*) OVER () AS differences
FROM unnest(%(wallets)b::bigint[]) AS t (wallet_id)
LEFT JOIN wallet AS w ON w.id = t.wallet_id
LEFT JOIN wallet_balance AS b ON b.wallet_id = t.wallet_id
CROSS JOIN LATERAL (
    SELECT * FROM ledger_entry WHERE wallet_id = t.wallet_id ORDER BY version DESC LIMIT 1
) AS e
WHERE w.id IS NULL
    OR (b.available, b.locked, b.version) IS DISTINCT FROM (e.available_after, e.locked_after, e.version)
ORDER BY t.wallet_id
LIMIT %(limit)s
