-- The entries are exactly what the transfers, the openings and the changes of holds and wallets make: of a transfer two
-- that sum to zero, of each of the others one of 0. None is missing, none is beside them, and each is at its place. A
-- capture's are its transfer's.
WITH made AS (
    SELECT debit_wallet_id AS wallet_id, debit_version AS version, sequence, -amount AS amount, at
    FROM transfer WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
    UNION ALL
    SELECT credit_wallet_id, credit_version, sequence, amount, at
    FROM transfer WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
    UNION ALL
    SELECT id, 1, opened_sequence, 0, opened_at
    FROM wallet
    WHERE shard = %(shard)s AND opened_sequence > %(after)s AND opened_sequence <= %(to)s
    UNION ALL
    SELECT wallet_id, wallet_version, sequence, 0, NULL
    FROM hold_change WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s AND kind <> 8
    UNION ALL
    SELECT wallet_id, wallet_version, sequence, 0, NULL
    FROM wallet_change WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
)
SELECT
    format('wallet %%s version %%s', coalesce(m.wallet_id, e.wallet_id), coalesce(m.version, e.version)) AS subject,
    coalesce(format('entry of %%s at sequence %%s, %%s', e.amount, e.sequence, e.at), 'no entry') AS found,
    CASE WHEN m.wallet_id IS NULL THEN 'none'
        ELSE format('%%s at sequence %%s, %%s', m.amount, m.sequence, m.at) END AS expected,
    count(*) OVER () AS differences
FROM made AS m
FULL JOIN (
    SELECT * FROM ledger_entry WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
) AS e
    ON e.wallet_id = m.wallet_id AND e.version = m.version
WHERE (m.sequence, m.amount) IS DISTINCT FROM (e.sequence, e.amount) OR m.at <> e.at
LIMIT %(limit)s
