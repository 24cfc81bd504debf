DELETE FROM reconcile_run AS r
USING (
    SELECT kind, (
        SELECT id FROM reconcile_run WHERE shard = %(shard)s AND kind = k.kind ORDER BY id DESC OFFSET %(keep)s LIMIT 1
    ) AS id
    FROM (VALUES ('full'), ('recent')) AS k (kind)
) AS last
WHERE r.shard = %(shard)s AND r.kind = last.kind AND r.id <= last.id
