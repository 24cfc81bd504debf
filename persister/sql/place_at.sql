-- The end of a journal entry that the ledger has.
SELECT epoch, journal_hash FROM journal_batch WHERE shard = %(shard)s AND last_sequence = %(sequence)s
