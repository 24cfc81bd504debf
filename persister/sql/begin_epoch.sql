-- A new epoch at the place where the ledger is: whoever missed it holds a place that is no longer there.
UPDATE shard_state
SET epoch = %(epoch)s
WHERE shard = %(shard)s
    AND epoch = %(epoch_before)s
    AND epoch < %(epoch)s
    AND sequence = %(sequence)s
    AND journal_hash = %(hash)s
    AND chain = %(chain)s
