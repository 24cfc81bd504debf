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
        *,
        coalesce(version_here, earlier[1], 0) AS version_before,
        coalesce(owned_here, earlier[2], 0) AS owned_before,
        coalesce(locked_here, earlier[3], 0) AS locked_before
    FROM (
        SELECT
            *,
            -- Of the first of those that are looked at; as a value, so that it is looked up for no other.
            CASE WHEN version_here IS NULL AND version > 1 THEN (
                SELECT ARRAY[p.version, p.available_after + p.locked_after, p.locked_after]
                FROM ledger_entry AS p WHERE p.wallet_id = looked_at.wallet_id AND p.version = looked_at.version - 1
            ) END AS earlier
        FROM (
            SELECT
                wallet_id, version, sequence, amount, locked_after, available_after + locked_after AS owned,
                lag(version) OVER w AS version_here,
                lag(available_after + locked_after) OVER w AS owned_here,
                lag(locked_after) OVER w AS locked_here
            FROM ledger_entry WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
            WINDOW w AS (PARTITION BY wallet_id ORDER BY version)
        ) AS looked_at
    ) AS with_earlier
) AS e
LEFT JOIN (
    SELECT wallet_id, wallet_version,
        CASE WHEN kind IN (7, 9) THEN amount WHEN kind = 8 THEN -amount - released ELSE -released END AS reserved
    FROM hold_change WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
) AS c ON c.wallet_id = e.wallet_id AND c.wallet_version = e.version
WHERE e.version <> e.version_before + 1
    OR e.owned <> e.owned_before + e.amount
    OR e.locked_after <> e.locked_before + coalesce(c.reserved, 0)
ORDER BY e.wallet_id, e.version
LIMIT %(limit)s
