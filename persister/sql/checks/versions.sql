-- Invariant 4, second half: a wallet's versions have no gap, and each follows from the one before by its amount.
SELECT
    format('wallet %%s version %%s (sequence %%s)', wallet_id, version, sequence) AS subject,
    format('amount %%s, owned after %%s', amount, owned) AS found,
    format('after version %%s with %%s owned', version_before, owned_before) AS expected,
    count(*) OVER () AS differences
FROM (
    SELECT
        wallet_id, version, sequence, amount, available_after + locked_after AS owned,
        lag(version, 1, 0::bigint) OVER w AS version_before,
        lag(available_after + locked_after, 1, 0::bigint) OVER w AS owned_before
    FROM ledger_entry WHERE shard = %(shard)s
    WINDOW w AS (PARTITION BY wallet_id ORDER BY version)
) AS entries
WHERE version <> version_before + 1 OR owned <> owned_before + amount
ORDER BY wallet_id, version
LIMIT %(limit)s
