-- Invariant 2: nothing took a wallet below its overdraft limit, external wallets (flag 1) aside; and every balance is
-- within the bound that Redis keeps exact. What lowers available is judged, by the limit in force then: a limit lowered
-- later is no violation, and a credit may come in below it. A chargeback (6) may take any wallet below; if the wallet's
-- tier then did not have that debt paid first, the wallet may be as far below again as the chargeback left it.
WITH limits AS (
    SELECT id AS wallet_id, opened_sequence AS since, overdraft_limit FROM wallet
    WHERE shard = %(shard)s AND flags & 1 = 0
    UNION ALL
    SELECT wallet_id, sequence, value FROM wallet_change WHERE shard = %(shard)s AND kind = 20
),
limit_spans AS (
    SELECT *, lead(since, 1, 9223372036854775807) OVER (PARTITION BY wallet_id ORDER BY since) AS until FROM limits
),
-- Not NULL only where available went below the limit in force.
below AS (
    SELECT e.*, l.overdraft_limit
    FROM ledger_entry AS e
    JOIN limit_spans AS l ON l.wallet_id = e.wallet_id AND e.sequence >= l.since AND e.sequence < l.until
    WHERE e.shard = %(shard)s AND e.available_after < 0 AND e.available_after < -l.overdraft_limit
),
-- Debts that were set aside, by chargebacks of wallets whose tier did not have them paid first.
debts AS (
    SELECT b.wallet_id, b.sequence, -(b.available_after + b.overdraft_limit) AS debt
    FROM below AS b
    JOIN transfer AS t ON t.debit_wallet_id = b.wallet_id AND t.debit_version = b.version AND t.kind = 6
    JOIN LATERAL (
        SELECT value AS tier FROM wallet_change
        WHERE wallet_id = b.wallet_id AND wallet_version < b.version AND kind = 21
        ORDER BY wallet_version DESC LIMIT 1
    ) AS c ON true
    JOIN LATERAL (
        SELECT debt_first FROM tier_change
        WHERE shard = %(shard)s AND tier = c.tier AND sequence < b.sequence
        ORDER BY sequence DESC LIMIT 1
    ) AS d ON d.debt_first = 0
),
found AS (
    SELECT e.wallet_id, e.version, e.sequence, e.available_after, e.locked_after,
        'at least -' || e.overdraft_limit AS expected
    FROM below AS e
    JOIN ledger_entry AS p ON p.wallet_id = e.wallet_id AND p.version = e.version - 1
    LEFT JOIN transfer AS t ON t.debit_wallet_id = e.wallet_id AND t.debit_version = e.version AND t.kind = 6
    WHERE e.available_after < p.available_after
        AND t.id IS NULL
        AND e.available_after < -e.overdraft_limit - coalesce((
            SELECT max(d.debt) FROM debts AS d WHERE d.wallet_id = e.wallet_id AND d.sequence < e.sequence
        ), 0)
    UNION ALL
    SELECT wallet_id, version, sequence, available_after, locked_after, 'within +-(2^53-1), locked at least 0'
    FROM ledger_entry
    WHERE shard = %(shard)s
        AND (abs(available_after) > 9007199254740991 OR locked_after NOT BETWEEN 0 AND 9007199254740991)
)
SELECT
    format('wallet %%s version %%s (sequence %%s)', wallet_id, version, sequence) AS subject,
    format('available %%s, locked %%s', available_after, locked_after) AS found,
    expected,
    count(*) OVER () AS differences
FROM found
ORDER BY wallet_id, version
LIMIT %(limit)s
