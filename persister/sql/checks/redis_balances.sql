-- What Redis has for each wallet, against the ledger entry of that version.
SELECT
    'wallet ' || r.wallet_id || ' version ' || r.version AS subject,
    format('Redis: available %%s, locked %%s', r.available, r.locked) AS found,
    CASE WHEN e.version IS NULL THEN 'the ledger has no such version'
        ELSE format('available %%s, locked %%s', e.available_after, e.locked_after) END AS expected
FROM unnest(
    %(wallet)b::bigint[], %(version)b::bigint[], %(available)b::bigint[], %(locked)b::bigint[]
) AS r (wallet_id, version, available, locked)
LEFT JOIN ledger_entry AS e ON e.wallet_id = r.wallet_id AND e.version = r.version
WHERE (e.available_after, e.locked_after) IS DISTINCT FROM (r.available, r.locked)
