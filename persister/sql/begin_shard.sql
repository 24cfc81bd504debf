INSERT INTO shard_state (shard, epoch, sequence, journal_hash, chain, generation, generation_began_at, persisted_at)
VALUES (%(shard)s, 1, 0, %(hash)s, %(chain)s, 1, now(), now())
