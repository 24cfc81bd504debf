-- Invariant 2: no wallet was ever below its overdraft limit, external wallets (flag 1) aside; and every balance is
-- within the bound that Redis keeps exact.
SELECT
    format('wallet %%s version %%s (sequence %%s)', e.wallet_id, e.version, e.sequence) AS subject,
    format('available %%s, locked %%s', e.available_after, e.locked_after) AS found,
    CASE WHEN w.flags & 1 = 1 THEN 'within +-(2^53-1)' ELSE 'at least -' || w.overdraft_limit END AS expected,
    count(*) OVER () AS differences
FROM ledger_entry AS e
JOIN wallet AS w ON w.id = e.wallet_id
WHERE e.shard = %(shard)s
    AND (
        (w.flags & 1 = 0 AND e.available_after < -w.overdraft_limit)
        OR abs(e.available_after) > 9007199254740991
        OR e.locked_after NOT BETWEEN 0 AND 9007199254740991
    )
ORDER BY e.wallet_id, e.version
LIMIT %(limit)s
