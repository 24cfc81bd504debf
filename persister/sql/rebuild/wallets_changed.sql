-- The wallets with an entry in a range of sequences.
SELECT DISTINCT wallet_id FROM ledger_entry
WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(upto)s
ORDER BY wallet_id
