-- Erasing personal data. What callers attach (references, metadata) lies apart from the rows that are hashed, which
-- have its digest: so it can go, and nothing else of the ledger changes.

CREATE TABLE erasure (
    shard        smallint NOT NULL,
    sequence     bigint NOT NULL,
    details_size integer NOT NULL,
    erased_at    timestamptz NOT NULL,
    erased_by    text NOT NULL,
    reason       text NOT NULL CHECK (char_length(reason) BETWEEN 1 AND 200),
    PRIMARY KEY (shard, sequence)
);
COMMENT ON TABLE erasure IS
    'Which requests'' reference and metadata were erased, when, by whom and why. Their digests stay where they are.';
COMMENT ON COLUMN erasure.details_size IS
    'Bytes that the erased details had: part of what a request is recognised by if it comes again.';
COMMENT ON COLUMN erasure.erased_by IS 'The user who was connected.';

-- The one way to remove details: after their erasure is noted, in the same transaction or before.
CREATE FUNCTION refuse_unnoted_erasing() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_TABLE_NAME = 'transfer_detail' THEN
        PERFORM FROM gone AS g
        WHERE NOT EXISTS (
            SELECT FROM transfer AS t JOIN erasure AS e USING (shard, sequence) WHERE t.id = g.transfer_id
        );
    ELSE
        PERFORM FROM gone AS g
        WHERE NOT EXISTS (SELECT FROM erasure AS e WHERE (e.shard, e.sequence) = (g.shard, g.sequence));
    END IF;
    IF FOUND THEN
        RAISE EXCEPTION '% is append-only: DELETE refused', TG_TABLE_NAME
            USING ERRCODE = 'restrict_violation', HINT = 'erase_details() erases, and notes it.';
    END IF;
    RETURN NULL;
END
$$;

DROP TRIGGER append_only ON transfer_detail;
DROP TRIGGER append_only ON hold_detail;
CREATE TRIGGER append_only BEFORE UPDATE OR TRUNCATE ON transfer_detail EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR TRUNCATE ON hold_detail EXECUTE FUNCTION refuse_change();
CREATE TRIGGER only_erased AFTER DELETE ON transfer_detail
    REFERENCING OLD TABLE AS gone EXECUTE FUNCTION refuse_unnoted_erasing();
CREATE TRIGGER only_erased AFTER DELETE ON hold_detail
    REFERENCING OLD TABLE AS gone EXECUTE FUNCTION refuse_unnoted_erasing();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON erasure EXECUTE FUNCTION refuse_change();

-- With the rights of its owner, so that whoever may call it needs no other right.
CREATE FUNCTION erase_details(of_shard smallint, at_sequences bigint[], because text)
RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER AS $$
DECLARE
    of_transfers bigint;
    of_holds     bigint;
BEGIN
    INSERT INTO erasure (shard, sequence, details_size, erased_at, erased_by, reason)
    SELECT
        of_shard, d.sequence,
        -- As they came: a JSON array of the two.
        octet_length('[,]' || coalesce(to_json(d.reference)::text, 'null') || coalesce(d.metadata::text, 'null')),
        now(), session_user, because
    FROM (
        SELECT t.sequence, x.reference, x.metadata
        FROM journal_event AS e
        JOIN transfer AS t ON t.id = e.id AND (t.shard, t.sequence) = (e.shard, e.sequence)
        JOIN transfer_detail AS x ON x.transfer_id = t.id
        WHERE e.shard = of_shard AND e.sequence = ANY (at_sequences)
        UNION ALL
        SELECT sequence, reference, metadata FROM hold_detail
        WHERE shard = of_shard AND sequence = ANY (at_sequences)
    ) AS d
    ON CONFLICT DO NOTHING;

    DELETE FROM transfer_detail AS x
    USING journal_event AS e, transfer AS t
    WHERE e.shard = of_shard AND e.sequence = ANY (at_sequences)
        AND t.id = e.id AND (t.shard, t.sequence) = (e.shard, e.sequence) AND x.transfer_id = t.id;
    GET DIAGNOSTICS of_transfers = ROW_COUNT;

    DELETE FROM hold_detail WHERE shard = of_shard AND sequence = ANY (at_sequences);
    GET DIAGNOSTICS of_holds = ROW_COUNT;
    RETURN of_transfers + of_holds;
END
$$;
COMMENT ON FUNCTION erase_details IS
    'Erases reference and metadata of the requests with these sequences and notes it in erasure. Returns how many had '
    'any.';
REVOKE EXECUTE ON FUNCTION erase_details FROM PUBLIC;

-- Nobody's search_path decides what the two speak of.
DO $$
BEGIN
    EXECUTE format('ALTER FUNCTION erase_details SET search_path = %I, pg_temp', current_schema());
    EXECUTE format('ALTER FUNCTION refuse_unnoted_erasing SET search_path = %I, pg_temp', current_schema());
END
$$;
