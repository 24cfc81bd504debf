-- Drift of a check that is there no more. subjects: those that were looked at, NULL for all.
UPDATE drift SET resolved_at = now()
WHERE shard = %(shard)s AND check_name = %(check)s AND resolved_at IS NULL
    AND (%(subjects)s::text[] IS NULL OR subject = ANY (%(subjects)s))
    AND NOT subject = ANY (%(still)s::text[])
RETURNING check_name, subject, found, expected, redis_version, ledger_version, found_at, seen_at, resolved_at
