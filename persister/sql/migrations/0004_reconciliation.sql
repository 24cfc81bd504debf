-- What reconciliation did and found; and indexes by sequence, so that what came after one is found without a look at
-- all before it: the reconciler between its full passes, the check of the chain, and what loads Redis read like that.

CREATE TABLE reconcile_run (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard          smallint NOT NULL,
    kind           text NOT NULL CHECK (kind IN ('full', 'recent')),
    began_at       timestamptz NOT NULL,
    seconds        double precision NOT NULL,
    after_sequence bigint NOT NULL,
    sequence       bigint NOT NULL,
    chain          bytea NOT NULL CHECK (octet_length(chain) IN (0, 32)),
    checked        bigint NOT NULL,
    differences    bigint NOT NULL,
    incomplete     text
);
CREATE INDEX reconcile_run_last ON reconcile_run (shard, kind, id);
COMMENT ON TABLE reconcile_run IS
    'Each reconciliation. What it says of the sha256 chain must stay true; copies elsewhere are better evidence.';
COMMENT ON COLUMN reconcile_run.kind IS 'full: everything; recent: what came after after_sequence.';
COMMENT ON COLUMN reconcile_run.sequence IS 'How far the ledger was.';
COMMENT ON COLUMN reconcile_run.chain IS 'The sha256 chain at that sequence.';
COMMENT ON COLUMN reconcile_run.checked IS 'How many things were looked at.';
COMMENT ON COLUMN reconcile_run.incomplete IS 'Why not everything was: Redis was away, the shard closed; NULL if it was.';

CREATE TABLE drift (
    id             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    shard          smallint NOT NULL,
    check_name     text NOT NULL,
    subject        text NOT NULL,
    found          text NOT NULL,
    expected       text NOT NULL,
    redis_version  bigint,
    ledger_version bigint,
    found_at       timestamptz NOT NULL DEFAULT now(),
    seen_at        timestamptz NOT NULL DEFAULT now(),
    resolved_at    timestamptz
);
CREATE UNIQUE INDEX drift_open ON drift (shard, check_name, subject) WHERE resolved_at IS NULL;
CREATE INDEX drift_resolved ON drift (shard, id) WHERE resolved_at IS NOT NULL;
COMMENT ON TABLE drift IS 'What reconciliation found to differ, and when it did so no more. Nothing repairs it.';
COMMENT ON COLUMN drift.found IS 'What there is; of the check "redis": what Redis has.';
COMMENT ON COLUMN drift.expected IS 'What there should be; of the check "redis": what the ledger has.';
COMMENT ON COLUMN drift.redis_version IS 'Of a wallet, where both sides have it: its version in Redis.';
COMMENT ON COLUMN drift.ledger_version IS 'Of a wallet: its version in the ledger then.';
COMMENT ON COLUMN drift.seen_at IS 'When it was last found; found and expected are of then.';

-- Rows come in the order of their sequences, so these take nothing to keep and some pages of memory. A range of pages
-- is summarised once it is full; until then it is read whole.
CREATE INDEX ledger_entry_sequence ON ledger_entry USING brin (sequence) WITH (pages_per_range = 512, autosummarize = on);
CREATE INDEX transfer_sequence ON transfer USING brin (sequence) WITH (pages_per_range = 512, autosummarize = on);
CREATE INDEX wallet_sequence ON wallet USING brin (opened_sequence) WITH (autosummarize = on);
CREATE INDEX wallet_change_sequence ON wallet_change USING brin (sequence) WITH (autosummarize = on);
CREATE INDEX hold_sequence ON hold USING brin (sequence) WITH (autosummarize = on);
CREATE INDEX hold_change_sequence ON hold_change USING brin (sequence) WITH (autosummarize = on);
CREATE INDEX refund_sequence ON refund USING brin (sequence) WITH (autosummarize = on);
