-- The HTTP API: who may call it, what administrators asked for, and what its searches of the ledger need.

CREATE TABLE api_key (
    prefix       text PRIMARY KEY CHECK (prefix ~ '^[0-9a-f]{16}$'),
    secret_hash  bytea NOT NULL CHECK (octet_length(secret_hash) = 32),
    name         text NOT NULL CHECK (char_length(name) BETWEEN 1 AND 64),
    scopes       text[] NOT NULL CHECK (scopes <@ '{read,write,admin}' AND cardinality(scopes) > 0),
    owner_id     bigint CHECK (owner_id >= 0),
    rate_per_s   integer NOT NULL CHECK (rate_per_s > 0),
    created_at   timestamptz NOT NULL DEFAULT now(),
    expires_at   timestamptz,
    revoked_at   timestamptz,
    rotated_from text REFERENCES api_key (prefix),
    change       bigint NOT NULL,
    CHECK (owner_id IS NULL OR NOT 'admin' = ANY (scopes))
);
CREATE UNIQUE INDEX api_key_change ON api_key (change);
COMMENT ON TABLE api_key IS 'Who may call the HTTP API. The secret itself is kept nowhere.';
COMMENT ON COLUMN api_key.prefix IS 'What a key is called by: it is no secret.';
COMMENT ON COLUMN api_key.secret_hash IS 'sha256 of the secret, which has 256 random bits: there is nothing to guess.';
COMMENT ON COLUMN api_key.owner_id IS 'The key sees and moves only the wallets of this owner; NULL for those of all.';
COMMENT ON COLUMN api_key.rate_per_s IS 'Requests (items of a batch) per second and worker process.';
COMMENT ON COLUMN api_key.change IS 'Grows with each change of any key, in the order of commits: what workers poll for.';

-- Its one row is locked until commit, so whoever has seen a number has seen, or will be able to see, all below it.
CREATE TABLE api_key_clock (value bigint NOT NULL);
CREATE UNIQUE INDEX api_key_clock_is_one ON api_key_clock ((true));
INSERT INTO api_key_clock VALUES (0);

CREATE FUNCTION count_api_key_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE api_key_clock SET value = value + 1 RETURNING value INTO NEW.change;
    RETURN NEW;
END
$$;
CREATE TRIGGER count_change BEFORE INSERT OR UPDATE ON api_key FOR EACH ROW EXECUTE FUNCTION count_api_key_change();
CREATE TRIGGER keep BEFORE DELETE OR TRUNCATE ON api_key EXECUTE FUNCTION refuse_change();

CREATE TABLE admin_action (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    actor      text NOT NULL,
    request_id text,
    action     text NOT NULL,
    subject    text NOT NULL,
    details    jsonb NOT NULL
);
CREATE INDEX admin_action_at ON admin_action (at);
COMMENT ON TABLE admin_action IS
    'What administrators asked for, noted before it is done: what became of it is in the journal, or in api_key.';
COMMENT ON COLUMN admin_action.actor IS 'key:<prefix> for a call of the HTTP API, user:<name> for a command.';
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON admin_action EXECUTE FUNCTION refuse_change();

-- The times of a wallet's entries never go back, so the last one before a time is found by halving: an index on
-- (wallet_id, at) would cost every payment.
CREATE FUNCTION version_at(of_wallet bigint, moment timestamptz) RETURNS bigint LANGUAGE plpgsql STABLE AS $$
DECLARE
    low    bigint := 0;
    high   bigint;
    middle bigint;
BEGIN
    SELECT version INTO high FROM ledger_entry WHERE wallet_id = of_wallet ORDER BY version DESC LIMIT 1;
    high := coalesce(high, 0);
    WHILE low < high LOOP
        middle := (low + high + 1) / 2;
        IF (SELECT at <= moment FROM ledger_entry WHERE wallet_id = of_wallet AND version = middle) THEN
            low := middle;
        ELSE
            high := middle - 1;
        END IF;
    END LOOP;
    RETURN low;
END
$$;
COMMENT ON FUNCTION version_at IS 'The version that a wallet had at a time; 0 before its opening.';

-- Only movements with metadata pay for it.
CREATE INDEX transfer_detail_metadata ON transfer_detail USING gin ((metadata::jsonb) jsonb_path_ops)
    WHERE metadata IS NOT NULL;
