-- What Redis has for each wallet, against the ledger entry of that version and the wallet's state at that version.
SELECT
    r.wallet_id,
    format('Redis: version %%s, available %%s, locked %%s, flags %%s, tier %%s, overdraft_limit %%s',
        r.version, r.available, r.locked, r.flags, r.tier, r.overdraft_limit) AS found,
    CASE WHEN e.version IS NULL THEN 'the ledger has no such version'
        ELSE format('available %%s, locked %%s, flags %%s, tier %%s, overdraft_limit %%s',
            e.available_after, e.locked_after, s.flags, s.tier, s.overdraft_limit) END AS expected,
    r.version AS redis_version,
    (SELECT version FROM wallet_balance WHERE wallet_id = r.wallet_id) AS ledger_version
FROM unnest(
    %(wallet)b::bigint[], %(version)b::bigint[], %(available)b::bigint[], %(locked)b::bigint[],
    %(flags)b::bigint[], %(tier)b::bigint[], %(overdraft_limit)b::bigint[]
) AS r (wallet_id, version, available, locked, flags, tier, overdraft_limit)
LEFT JOIN ledger_entry AS e ON e.wallet_id = r.wallet_id AND e.version = r.version
-- The state is kept for the last version; what it was at one before takes longer to find out.
LEFT JOIN LATERAL (
    SELECT flags, tier, overdraft_limit FROM wallet_balance WHERE wallet_id = r.wallet_id AND version = r.version
) AS now ON true
LEFT JOIN LATERAL (
    SELECT now.flags, now.tier, now.overdraft_limit WHERE now.flags IS NOT NULL
    UNION ALL
    SELECT flags, tier, overdraft_limit FROM wallet_state(r.wallet_id, r.version) WHERE now.flags IS NULL
) AS s ON true
WHERE (e.available_after, e.locked_after, s.flags, s.tier, s.overdraft_limit)
    IS DISTINCT FROM (r.available, r.locked, r.flags, r.tier, r.overdraft_limit)
