-- Movements that the ledger has under another id than Redis.
SELECT sequence, duplicate_of FROM transfer_duplicate
WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(upto)s
ORDER BY sequence
