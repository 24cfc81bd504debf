-- What a retry is answered, for as long as Redis must know it: of a plain movement and of an opening the other rows say
-- it, of everything else this table does. What was accepted before this migration has no row here.

CREATE TABLE outcome (
    shard    smallint NOT NULL,
    sequence bigint NOT NULL,
    kept     bytea NOT NULL CHECK (octet_length(kept) = 87),
    PRIMARY KEY (shard, sequence)
);
COMMENT ON TABLE outcome IS
    'The answer that an accepted request was given, and the content it was given for, where no other row says it.';
COMMENT ON COLUMN outcome.kept IS 'IDEMPOTENCY of engine/wire.py; the request''s id is journal_event.id.';

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON outcome EXECUTE FUNCTION refuse_change();

-- Where the generations of outcomes that Redis keeps began, so that a rebuild need not look for it.
ALTER TABLE shard_state
    ADD COLUMN generation_sequence bigint NOT NULL DEFAULT 0,
    ADD COLUMN previous_generation_sequence bigint NOT NULL DEFAULT 0;
UPDATE shard_state AS s
SET generation_sequence = coalesce(e.last[1], 0), previous_generation_sequence = coalesce(e.last[2], 0)
FROM (
    SELECT shard, array_agg(sequence ORDER BY sequence DESC) AS last FROM journal_event WHERE kind = 32 GROUP BY shard
) AS e
WHERE e.shard = s.shard;
COMMENT ON COLUMN shard_state.generation_sequence IS
    'The request that began the current generation of idempotency records; 0 for the first.';
COMMENT ON COLUMN shard_state.previous_generation_sequence IS 'The one that began the generation before.';
