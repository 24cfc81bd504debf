-- What both sides of movements had available after them.
SELECT sequence, amount, available_after FROM ledger_entry
WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(upto)s AND amount <> 0
