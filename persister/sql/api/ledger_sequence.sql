SELECT sequence FROM shard_state WHERE shard = %(shard)s
