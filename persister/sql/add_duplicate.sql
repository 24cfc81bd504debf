INSERT INTO transfer_duplicate (transfer_id, duplicate_of, shard, sequence)
VALUES (%(transfer_id)s, %(duplicate_of)s, %(shard)s, %(sequence)s)
