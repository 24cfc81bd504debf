-- The uses of devices in a range of sequences, in order, without reviewed ones. wallets: by these; NULL for all.
SELECT o.wallet_id, o.sequence, o.device, o.at
FROM transfer_origin AS o
WHERE o.shard = %(shard)s AND o.sequence > %(after)s AND o.sequence <= %(upto)s
    AND o.device <> '\x0000000000000000'
    AND (%(wallets)b::bigint[] IS NULL OR o.wallet_id = ANY (%(wallets)b::bigint[]))
    -- Of what is under review nobody knows yet whether it was all right.
    AND NOT EXISTS (SELECT FROM hold AS h WHERE h.shard = o.shard AND h.sequence = o.sequence AND h.review <> 0)
ORDER BY o.sequence
