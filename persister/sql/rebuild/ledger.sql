-- Where the ledger is with a shard, whose it is, and when its last request was decided.
SELECT d.id, d.key_fingerprint, s.epoch, s.sequence, s.journal_hash, s.generation, s.generation_sequence,
    s.previous_generation_sequence,
    (SELECT at FROM journal_batch AS b WHERE b.shard = s.shard AND b.last_sequence = s.sequence)
FROM deployment AS d
JOIN shard_state AS s ON s.shard = %(shard)s
