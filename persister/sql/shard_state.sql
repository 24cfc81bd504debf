SELECT d.id, d.key_fingerprint, s.epoch, s.sequence, s.journal_hash, s.chain, s.generation,
    extract(epoch FROM clock_timestamp() - s.generation_began_at)::float8 AS generation_age_s
FROM deployment AS d
LEFT JOIN shard_state AS s ON s.shard = %(shard)s
