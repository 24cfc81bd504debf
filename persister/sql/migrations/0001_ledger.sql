-- The ledger. What the persister writes in bulk has only fixed-width columns without NULLs: every row of such a
-- table has the same size in the binary COPY format, so rows are made, hashed and verified without a loop.
-- There are no foreign keys: each would cost a lookup per row. The persister's guards hold what they would
-- (a balance is updated only if its wallet exists), and reconciliation checks the rest.

CREATE TABLE deployment (
    id              uuid PRIMARY KEY,
    key_fingerprint bytea NOT NULL CHECK (octet_length(key_fingerprint) = 8),
    created_at      timestamptz NOT NULL DEFAULT now()
);
CREATE UNIQUE INDEX deployment_is_one ON deployment ((true));
COMMENT ON TABLE deployment IS 'One row: which ledger this is. A Redis that belongs to another is refused.';
COMMENT ON COLUMN deployment.key_fingerprint IS 'Recognises the key that turns text keys into transfer ids.';

CREATE TABLE shard_state (
    shard               smallint PRIMARY KEY,
    epoch               bigint NOT NULL CHECK (epoch >= 1),
    sequence            bigint NOT NULL CHECK (sequence >= 0),
    journal_hash        bytea NOT NULL CHECK (octet_length(journal_hash) = 20),
    chain               bytea NOT NULL CHECK (octet_length(chain) = 32),
    generation          bigint NOT NULL CHECK (generation >= 1),
    generation_began_at timestamptz NOT NULL,
    persisted_at        timestamptz NOT NULL
) WITH (fillfactor = 10);
COMMENT ON TABLE shard_state IS
    'How far each shard''s journal is in this ledger. It moves in the transaction that writes the records.';
COMMENT ON COLUMN shard_state.epoch IS 'Grows by one each time the shard is rebuilt in Redis.';
COMMENT ON COLUMN shard_state.sequence IS 'The last journal sequence in this ledger.';
COMMENT ON COLUMN shard_state.journal_hash IS 'The journal''s rolling sha1 at that sequence, as Redis computed it.';
COMMENT ON COLUMN shard_state.chain IS 'The sha256 over every row of this shard; see persister/chain.py.';
COMMENT ON COLUMN shard_state.generation IS 'The current generation of idempotency records in Redis.';
COMMENT ON COLUMN shard_state.generation_began_at IS 'By this server''s clock, which decides when it is old.';

CREATE TABLE journal_batch (
    shard          smallint NOT NULL,
    last_sequence  bigint NOT NULL,
    first_sequence bigint NOT NULL,
    epoch          bigint NOT NULL,
    at             timestamptz NOT NULL,
    journal_hash   bytea NOT NULL CHECK (octet_length(journal_hash) = 20),
    chain          bytea NOT NULL CHECK (octet_length(chain) = 32),
    PRIMARY KEY (shard, last_sequence)
);
COMMENT ON TABLE journal_batch IS 'One row per journal entry: the requests that Redis accepted in one step.';
COMMENT ON COLUMN journal_batch.at IS 'When Redis decided, by its clock.';
COMMENT ON COLUMN journal_batch.journal_hash IS 'The rolling sha1 after this entry, as Redis computed it.';
COMMENT ON COLUMN journal_batch.chain IS 'The sha256 chain after this entry; see persister/chain.py.';

CREATE TABLE journal_event (
    shard    smallint NOT NULL,
    sequence bigint NOT NULL,
    kind     smallint NOT NULL,
    id       uuid NOT NULL,
    at       timestamptz NOT NULL,
    PRIMARY KEY (shard, sequence)
);
COMMENT ON TABLE journal_event IS 'One row per accepted request of whatever kind; sequences have no gap.';
COMMENT ON COLUMN journal_event.kind IS
    '1 transfer, 2 top-up, 3 payment, 4 withdrawal, 16 wallet opened, 32 idempotency generation ended.';
COMMENT ON COLUMN journal_event.id IS 'The request''s id; of a transfer, transfer.id. Zero for kind 32.';

CREATE TABLE transfer (
    id               uuid PRIMARY KEY,
    shard            smallint NOT NULL,
    sequence         bigint NOT NULL,
    kind             smallint NOT NULL,
    debit_wallet_id  bigint NOT NULL,
    debit_version    bigint NOT NULL,
    credit_wallet_id bigint NOT NULL,
    credit_version   bigint NOT NULL,
    amount           bigint NOT NULL CHECK (amount > 0),
    details_digest   bigint NOT NULL,
    at               timestamptz NOT NULL
);
COMMENT ON TABLE transfer IS 'An immutable movement of money. Its id is the idempotency key.';
COMMENT ON COLUMN transfer.amount IS 'In the currency''s minor unit.';
COMMENT ON COLUMN transfer.debit_version IS 'With the wallet''s id, the key of this side''s ledger_entry.';
COMMENT ON COLUMN transfer.credit_version IS 'With the wallet''s id, the key of this side''s ledger_entry.';
COMMENT ON COLUMN transfer.details_digest IS 'Of reference and metadata, in transfer_detail; 0 for none.';

CREATE TABLE transfer_detail (
    transfer_id uuid PRIMARY KEY,
    reference   text CHECK (char_length(reference) BETWEEN 1 AND 64),
    metadata    json,
    CHECK (reference IS NOT NULL OR metadata IS NOT NULL)
);
CREATE INDEX transfer_detail_reference ON transfer_detail (reference) WHERE reference IS NOT NULL;
COMMENT ON TABLE transfer_detail IS 'What the caller attached; only for transfers that have any.';
COMMENT ON COLUMN transfer_detail.metadata IS
    'json and not jsonb: the text is kept as it was hashed, so transfer.details_digest can be verified.';

CREATE TABLE transfer_duplicate (
    transfer_id  uuid PRIMARY KEY,
    duplicate_of uuid NOT NULL,
    shard        smallint NOT NULL,
    sequence     bigint NOT NULL
);
COMMENT ON TABLE transfer_duplicate IS
    'Transfers whose id came again after Redis forgot it: posted twice, entered under a derived id. Each needs a look.';

CREATE TABLE ledger_entry (
    wallet_id       bigint NOT NULL,
    version         bigint NOT NULL,
    shard           smallint NOT NULL,
    sequence        bigint NOT NULL,
    amount          bigint NOT NULL,
    available_after bigint NOT NULL,
    locked_after    bigint NOT NULL,
    at              timestamptz NOT NULL,
    PRIMARY KEY (wallet_id, version)
);
COMMENT ON TABLE ledger_entry IS
    'One row per version of a wallet: a leg of a transfer, or amount 0 where no money moved.';
COMMENT ON COLUMN ledger_entry.version IS 'Per wallet, from 1 (its opening), without a gap.';
COMMENT ON COLUMN ledger_entry.amount IS 'Signed minor units: negative on the debit side.';

CREATE TABLE wallet (
    id              bigint PRIMARY KEY,
    owner_id        bigint NOT NULL,
    currency        char(8) NOT NULL CHECK (currency ~ '^[A-Z0-9]{3,8} *$'),
    flags           smallint NOT NULL,
    shard           smallint NOT NULL,
    overdraft_limit bigint NOT NULL CHECK (overdraft_limit BETWEEN 0 AND 9007199254740991),
    opened_sequence bigint NOT NULL,
    opened_at       timestamptz NOT NULL
);
CREATE INDEX wallet_owner ON wallet (owner_id);
COMMENT ON TABLE wallet IS 'A balance in one currency, as it was opened.';
COMMENT ON COLUMN wallet.currency IS 'char so that rows have one size; cast to text to lose the padding.';
COMMENT ON COLUMN wallet.flags IS '1: external, the outside world of its currency, which may go negative.';
COMMENT ON COLUMN wallet.overdraft_limit IS 'Minor units below zero that available may reach.';

-- Half-empty pages, so that an update finds room beside the old row and touches no index (a HOT update).
CREATE TABLE wallet_balance (
    wallet_id bigint PRIMARY KEY,
    available bigint NOT NULL,
    locked    bigint NOT NULL,
    version   bigint NOT NULL
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
COMMENT ON TABLE wallet_balance IS
    'The last ledger_entry of each wallet, kept because statements and checks read it. What a wallet owns is '
    'available + locked.';

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
        USING ERRCODE = 'restrict_violation', HINT = 'Correct a transfer with an opposite transfer.';
END
$$;

-- Per statement: COPY and INSERT never meet them.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON journal_batch EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON journal_event EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfer EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfer_detail EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfer_duplicate EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON ledger_entry EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON wallet EXECUTE FUNCTION refuse_change();
