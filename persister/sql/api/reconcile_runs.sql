-- Runs of the reconciler, the newest first.
SELECT id, shard, kind, began_at, seconds, after_sequence, sequence, checked, differences, incomplete
FROM reconcile_run
WHERE id < %(before)s
ORDER BY id DESC
LIMIT %(limit)s
