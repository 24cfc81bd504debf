DELETE FROM drift
WHERE shard = %(shard)s AND resolved_at IS NOT NULL AND id <= (
    SELECT id FROM drift WHERE shard = %(shard)s AND resolved_at IS NOT NULL ORDER BY id DESC OFFSET %(keep)s LIMIT 1
)
