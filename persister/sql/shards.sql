SELECT shard, epoch, sequence, encode(chain, 'hex'), generation, persisted_at,
    extract(epoch FROM clock_timestamp() - persisted_at)::float8
FROM shard_state
ORDER BY shard
