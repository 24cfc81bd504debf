-- Every change of the tier of wallets. wallets: of these; NULL for all of a shard.
SELECT wallet_id, sequence, value AS tier FROM wallet_change
WHERE shard = %(shard)s AND kind = 21 AND (%(wallets)b::bigint[] IS NULL OR wallet_id = ANY (%(wallets)b::bigint[]))
