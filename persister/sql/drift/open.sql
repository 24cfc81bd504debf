-- New drift, as much as there is room for, and what there is of open drift already, as it is now.
WITH found AS (
    SELECT * FROM unnest(
        %(check)s::text[], %(subject)s::text[], %(found)s::text[], %(expected)s::text[],
        %(redis_version)s::bigint[], %(ledger_version)s::bigint[]
    ) WITH ORDINALITY AS f (check_name, subject, found, expected, redis_version, ledger_version, number)
),
known AS (
    SELECT f.*, d.id IS NOT NULL AS is_open, count(*) FILTER (WHERE d.id IS NULL) OVER (ORDER BY f.number) AS new_ones
    FROM found AS f
    LEFT JOIN drift AS d ON d.shard = %(shard)s AND d.check_name = f.check_name AND d.subject = f.subject
        AND d.resolved_at IS NULL
),
room AS (
    SELECT %(most)s - count(*) AS rows FROM drift WHERE shard = %(shard)s AND resolved_at IS NULL
)
INSERT INTO drift (shard, check_name, subject, found, expected, redis_version, ledger_version)
SELECT %(shard)s, check_name, subject, found, expected, redis_version, ledger_version
FROM known, room WHERE is_open OR new_ones <= room.rows
ON CONFLICT (shard, check_name, subject) WHERE resolved_at IS NULL DO UPDATE
SET found = excluded.found, expected = excluded.expected, redis_version = excluded.redis_version,
    ledger_version = excluded.ledger_version, seen_at = excluded.seen_at
RETURNING
    check_name, subject, found, expected, redis_version, ledger_version, found_at, seen_at, found_at = now() AS is_new
