-- The journal entry that has a sequence, and whether it is of a time or later.
SELECT first_sequence, last_sequence, at >= to_timestamp(%(time_ms)s::bigint / 1000.0) FROM journal_batch
WHERE shard = %(shard)s AND last_sequence >= %(sequence)s
ORDER BY last_sequence
LIMIT 1
