-- Invariant 4, second half: a wallet's versions have no gap, and each follows from the one before: what the wallet owns
-- by the entry's amount, what is locked of it by what a change of a hold reserved (7, 9), captured (8) or released.
SELECT
    format('wallet %%s version %%s (sequence %%s)', e.wallet_id, e.version, e.sequence) AS subject,
    format('amount %%s, owned after %%s, locked %%s', e.amount, e.owned, e.locked_after) AS found,
    format('after version %%s with %%s owned, %%s locked; %%s reserved', e.version_before, e.owned_before,
        e.locked_before, c.reserved) AS expected,
    count(*) OVER () AS differences
FROM (
    SELECT
        wallet_id, version, sequence, amount, locked_after, available_after + locked_after AS owned,
        lag(version, 1, 0::bigint) OVER w AS version_before,
        lag(available_after + locked_after, 1, 0::bigint) OVER w AS owned_before,
        lag(locked_after, 1, 0::bigint) OVER w AS locked_before
    FROM ledger_entry WHERE shard = %(shard)s
    WINDOW w AS (PARTITION BY wallet_id ORDER BY version)
) AS e
LEFT JOIN (
    SELECT wallet_id, wallet_version,
        CASE WHEN kind IN (7, 9) THEN amount WHEN kind = 8 THEN -amount - released ELSE -released END AS reserved
    FROM hold_change WHERE shard = %(shard)s
) AS c ON c.wallet_id = e.wallet_id AND c.wallet_version = e.version
WHERE e.version <> e.version_before + 1
    OR e.owned <> e.owned_before + e.amount
    OR e.locked_after <> e.locked_before + coalesce(c.reserved, 0)
ORDER BY e.wallet_id, e.version
LIMIT %(limit)s
