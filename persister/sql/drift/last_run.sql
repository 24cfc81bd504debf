SELECT kind, began_at, seconds, after_sequence, sequence, chain, checked, differences, incomplete,
    extract(epoch FROM clock_timestamp() - began_at)::float8 - seconds AS age_s
FROM reconcile_run
WHERE shard = %(shard)s AND (%(kind)s::text IS NULL OR kind = %(kind)s)
ORDER BY id DESC
LIMIT 1
