-- Where to stop in a long part of the ledger: the last journal entry within the bound, or the first if it is beyond.
SELECT coalesce(
    (SELECT max(last_sequence) FROM journal_batch
        WHERE shard = %(shard)s AND last_sequence > %(after)s AND last_sequence <= %(bound)s),
    (SELECT min(last_sequence) FROM journal_batch WHERE shard = %(shard)s AND last_sequence > %(after)s)
)
