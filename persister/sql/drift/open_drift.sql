SELECT check_name, subject, found, expected, redis_version, ledger_version, found_at, seen_at
FROM drift
WHERE shard = %(shard)s AND resolved_at IS NULL
ORDER BY id
LIMIT %(limit)s
