SELECT shard, epoch, sequence, encode(chain, 'hex'), persisted_at FROM shard_state ORDER BY shard
