-- The devices and IPs that were used in a range of sequences.
SELECT DISTINCT unnest(ARRAY[device, ip]) AS digest FROM transfer_origin
WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(upto)s
