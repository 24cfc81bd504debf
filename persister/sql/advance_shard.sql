-- The shard's place in its history, only from the place that the batch continues.
UPDATE shard_state
SET sequence = %(sequence)s, journal_hash = %(hash)s, chain = %(chain)s, persisted_at = now(),
    generation = coalesce(%(generation)s::bigint, generation),
    generation_began_at = CASE WHEN %(generation)s::bigint IS NULL THEN generation_began_at ELSE now() END,
    generation_sequence = coalesce(%(generation_sequence)s::bigint, generation_sequence),
    previous_generation_sequence = CASE WHEN %(generation)s::bigint IS NULL THEN previous_generation_sequence
        ELSE coalesce(%(previous_generation_sequence)s::bigint, generation_sequence) END
WHERE shard = %(shard)s
    AND epoch = %(epoch)s
    AND sequence = %(sequence_before)s
    AND journal_hash = %(hash_before)s
    AND chain = %(chain_before)s
