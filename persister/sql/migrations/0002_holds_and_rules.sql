-- Everything that a request can do besides moving money at once. What is written in bulk is fixed-width, as in 0001;
-- a row names the wallet's version that it made, as transfer does, or the hold or transfer that it is about.

COMMENT ON COLUMN journal_event.kind IS
    '1 transfer, 2 top-up, 3 payment, 4 withdrawal, 5 refund, 6 chargeback, 7 hold, 8 capture, 9 hold raised, '
    '10 hold voided, 11 hold expired, 12 hold approved, 16 wallet opened, 17 frozen, 18 unfrozen, 19 closed, '
    '20 overdraft limit set, 21 tier set, 32 idempotency generation ended, 33 limits of a tier set.';
COMMENT ON COLUMN transfer.kind IS '1 to 6 and 8 of journal_event.kind.';
COMMENT ON COLUMN wallet.flags IS
    '1: external, the outside world of its currency, which may go negative. As it was opened.';
COMMENT ON COLUMN wallet.overdraft_limit IS
    'Minor units below zero that available may reach, as it was opened. Of an external wallet: the number of digits '
    'that its currency has after the point.';

-- The wallets of the outside world are few, and the currencies are read from them.
CREATE INDEX wallet_external ON wallet (currency) WHERE flags & 1 = 1;

CREATE VIEW currency AS
SELECT w.currency::text AS code, max(w.overdraft_limit)::smallint AS exponent
FROM wallet AS w WHERE w.flags & 1 = 1
GROUP BY w.currency;
COMMENT ON VIEW currency IS 'The ledger''s currencies. exponent: digits after the point, 2 for cents.';

-- No index is on what changes, so updates stay HOT.
ALTER TABLE wallet_balance
    ADD COLUMN overdraft_limit bigint NOT NULL DEFAULT 0,
    ADD COLUMN tier integer NOT NULL DEFAULT 0,
    ADD COLUMN flags smallint NOT NULL DEFAULT 0;
UPDATE wallet_balance AS b SET flags = w.flags, overdraft_limit = w.overdraft_limit
FROM wallet AS w WHERE w.id = b.wallet_id AND (w.flags, w.overdraft_limit) <> (0, 0);
ALTER TABLE wallet_balance
    ALTER COLUMN overdraft_limit DROP DEFAULT, ALTER COLUMN tier DROP DEFAULT, ALTER COLUMN flags DROP DEFAULT;
COMMENT ON TABLE wallet_balance IS
    'The last ledger_entry of each wallet, and its state: kept because statements and checks read them. What a wallet '
    'owns is available + locked.';
COMMENT ON COLUMN wallet_balance.flags IS '1 external, 2 debits frozen, 4 credits frozen, 8 closed.';
COMMENT ON COLUMN wallet_balance.overdraft_limit IS 'As wallet.overdraft_limit, but in force now.';

CREATE VIEW debt AS
SELECT b.wallet_id, w.owner_id, w.currency::text AS currency, b.available, b.overdraft_limit,
    -(b.available + b.overdraft_limit) AS debt
FROM wallet_balance AS b JOIN wallet AS w ON w.id = b.wallet_id
WHERE b.flags & 1 = 0 AND b.available < -b.overdraft_limit;
COMMENT ON VIEW debt IS 'Wallets below their overdraft limit: by a chargeback, or because the limit was lowered.';

CREATE TABLE wallet_change (
    wallet_id      bigint NOT NULL,
    wallet_version bigint NOT NULL,
    shard          smallint NOT NULL,
    sequence       bigint NOT NULL,
    kind           smallint NOT NULL CHECK (kind BETWEEN 17 AND 21),
    value          bigint NOT NULL,
    PRIMARY KEY (wallet_id, wallet_version)
);
COMMENT ON TABLE wallet_change IS 'Every change of a wallet''s state, from the next request on.';
COMMENT ON COLUMN wallet_change.kind IS '17 freeze, 18 unfreeze, 19 close, 20 overdraft limit set, 21 tier set.';
COMMENT ON COLUMN wallet_change.value IS 'Kinds 17 and 18: flags, as in wallet_balance; 20: minor units; 21: the tier.';

CREATE FUNCTION wallet_state(of_wallet bigint, at_version bigint)
RETURNS TABLE (flags smallint, tier integer, overdraft_limit bigint) LANGUAGE sql STABLE AS $$
    SELECT
        (w.flags | CASE WHEN c.debit_frozen THEN 2 ELSE 0 END | CASE WHEN c.credit_frozen THEN 4 ELSE 0 END
            | CASE WHEN c.closed THEN 8 ELSE 0 END)::smallint,
        coalesce(c.tier, 0)::integer,
        coalesce(c.overdraft_limit, w.overdraft_limit)
    FROM wallet AS w
    CROSS JOIN LATERAL (
        SELECT
            (array_agg(kind = 17 ORDER BY wallet_version DESC) FILTER (WHERE kind IN (17, 18) AND value & 2 = 2))[1]
                AS debit_frozen,
            (array_agg(kind = 17 ORDER BY wallet_version DESC) FILTER (WHERE kind IN (17, 18) AND value & 4 = 4))[1]
                AS credit_frozen,
            bool_or(kind = 19) AS closed,
            (array_agg(value ORDER BY wallet_version DESC) FILTER (WHERE kind = 20))[1] AS overdraft_limit,
            (array_agg(value ORDER BY wallet_version DESC) FILTER (WHERE kind = 21))[1] AS tier
        FROM wallet_change WHERE wallet_id = w.id AND wallet_version <= at_version
    ) AS c
    WHERE w.id = of_wallet
$$;
COMMENT ON FUNCTION wallet_state IS 'What a wallet was opened as and its changes make of it, at one of its versions.';

CREATE TABLE hold (
    id               uuid NOT NULL,
    shard            smallint NOT NULL,
    sequence         bigint NOT NULL,
    debit_wallet_id  bigint NOT NULL,
    credit_wallet_id bigint NOT NULL,
    purpose          smallint NOT NULL CHECK (purpose BETWEEN 1 AND 4),
    review           smallint NOT NULL,
    rule             smallint NOT NULL,
    amount           bigint NOT NULL CHECK (amount > 0),
    expires_at_ms    bigint NOT NULL,
    at               timestamptz NOT NULL,
    PRIMARY KEY (id, shard, sequence)
);
COMMENT ON TABLE hold IS
    'Money reserved on the debit wallet for a movement to the credit wallet, as it was made.';
COMMENT ON COLUMN hold.id IS
    'The id of the request that made it. Redis forgets a hold two idempotency generations after its end; if the id '
    'comes again then, it is another hold, and the last one made is meant from there on.';
COMMENT ON COLUMN hold.purpose IS 'The kind of the movement that it is for.';
COMMENT ON COLUMN hold.review IS
    '0 none; 1 a movement, 2 a hold that a fraud rule stopped until an operator approves it.';
COMMENT ON COLUMN hold.rule IS 'The fraud rule that did, 0 for none: engine.Rule.';
COMMENT ON COLUMN hold.expires_at_ms IS 'By Redis'' clock, since 1970; 0 for never.';

CREATE TABLE hold_change (
    hold_id        uuid NOT NULL,
    shard          smallint NOT NULL,
    sequence       bigint NOT NULL,
    kind           smallint NOT NULL CHECK (kind BETWEEN 7 AND 12),
    wallet_id      bigint NOT NULL,
    wallet_version bigint NOT NULL,
    amount         bigint NOT NULL,
    released       bigint NOT NULL,
    state          smallint NOT NULL,
    review         smallint NOT NULL,
    remaining      bigint NOT NULL,
    captured       bigint NOT NULL,
    details_digest bigint NOT NULL,
    PRIMARY KEY (wallet_id, wallet_version)
);
CREATE INDEX hold_change_hold ON hold_change (hold_id, sequence);
COMMENT ON TABLE hold_change IS 'Every request that made or changed a hold, with the hold after it.';
COMMENT ON COLUMN hold_change.wallet_id IS 'The hold''s debit wallet.';
COMMENT ON COLUMN hold_change.amount IS 'Reserved (7, 9), captured (8) or released (10, 11) by it.';
COMMENT ON COLUMN hold_change.released IS 'What became available again.';
COMMENT ON COLUMN hold_change.state IS '0 open, 1 captured, 2 voided, 3 expired.';
COMMENT ON COLUMN hold_change.remaining IS 'What is still locked.';
COMMENT ON COLUMN hold_change.captured IS 'In all, up to here.';
COMMENT ON COLUMN hold_change.details_digest IS
    'Of reference and metadata, in hold_detail; 0 for none. A capture''s are its transfer''s.';

CREATE TABLE hold_detail (
    shard     smallint NOT NULL,
    sequence  bigint NOT NULL,
    reference text CHECK (char_length(reference) BETWEEN 1 AND 64),
    metadata  json,
    PRIMARY KEY (shard, sequence),
    CHECK (reference IS NOT NULL OR metadata IS NOT NULL)
);
CREATE INDEX hold_detail_reference ON hold_detail (reference) WHERE reference IS NOT NULL;
COMMENT ON TABLE hold_detail IS
    'What the caller attached to a request that made or changed a hold and moved no money: a PSP''s reference, a reason.';

CREATE TABLE open_hold (
    id               uuid NOT NULL,
    shard            smallint NOT NULL,
    sequence         bigint NOT NULL,
    debit_wallet_id  bigint NOT NULL,
    credit_wallet_id bigint NOT NULL,
    purpose          smallint NOT NULL,
    review           smallint NOT NULL,
    rule             smallint NOT NULL,
    remaining        bigint NOT NULL CHECK (remaining > 0),
    captured         bigint NOT NULL,
    expires_at_ms    bigint NOT NULL,
    at               timestamptz NOT NULL,
    PRIMARY KEY (id, shard)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX open_hold_wallet ON open_hold (debit_wallet_id);
CREATE INDEX open_hold_pending ON open_hold (at) WHERE purpose IN (2, 4);
CREATE INDEX open_hold_review ON open_hold (at) WHERE review <> 0;
COMMENT ON TABLE open_hold IS
    'The holds that have something left: the last hold_change of each, kept because lists and checks read it.';

CREATE VIEW open_hold_list AS
SELECT h.*, w.currency::text AS currency, extract(epoch FROM clock_timestamp() - h.at)::float8 AS open_for_s,
    CASE WHEN h.expires_at_ms > 0 THEN to_timestamp(h.expires_at_ms / 1000.0) END AS expires_at,
    d.reference, d.metadata
FROM open_hold AS h
JOIN wallet AS w ON w.id = h.debit_wallet_id
LEFT JOIN hold_detail AS d ON d.shard = h.shard AND d.sequence = h.sequence;
COMMENT ON VIEW open_hold_list IS 'The open holds with what their requests said, and for how many seconds they are open.';

CREATE TABLE refund (
    transfer_id uuid PRIMARY KEY,
    original_id uuid NOT NULL,
    kind        smallint NOT NULL CHECK (kind IN (5, 6)),
    shard       smallint NOT NULL,
    sequence    bigint NOT NULL,
    amount      bigint NOT NULL CHECK (amount > 0),
    total       bigint NOT NULL
);
CREATE INDEX refund_original ON refund (original_id);
COMMENT ON TABLE refund IS 'Which transfer a refund or chargeback takes back; its own transfer has the opposite wallets.';
COMMENT ON COLUMN refund.original_id IS 'The id that the refunded transfer came with; see transfer_duplicate.';
COMMENT ON COLUMN refund.total IS 'What was refunded of the original in all, with this one.';

CREATE TABLE transfer_origin (
    shard     smallint NOT NULL,
    sequence  bigint NOT NULL,
    wallet_id bigint NOT NULL,
    device    bytea NOT NULL CHECK (octet_length(device) = 8),
    ip        bytea NOT NULL CHECK (octet_length(ip) = 8),
    at        timestamptz NOT NULL,
    PRIMARY KEY (shard, sequence)
);
COMMENT ON TABLE transfer_origin IS
    'Where a transfer or hold came from, if the caller said so: keyed digests, zeros for none.';
COMMENT ON COLUMN transfer_origin.wallet_id IS 'Who paid.';

CREATE TABLE tier_change (
    shard              smallint NOT NULL,
    sequence           bigint NOT NULL,
    tier               integer NOT NULL,
    debt_first         smallint NOT NULL,
    review             integer NOT NULL,
    max_amount         bigint NOT NULL,
    day_amount         bigint NOT NULL,
    day_count          bigint NOT NULL,
    window_count       bigint NOT NULL,
    window_ms          bigint NOT NULL,
    hour_amount        bigint NOT NULL,
    attempts_window_ms bigint NOT NULL,
    device_attempts    bigint NOT NULL,
    ip_attempts        bigint NOT NULL,
    device_wallets     bigint NOT NULL,
    new_device_amount  bigint NOT NULL,
    new_device_ms      bigint NOT NULL,
    PRIMARY KEY (shard, sequence)
);
COMMENT ON TABLE tier_change IS
    'What wallets of a tier may do from the next request on; 9007199254740991 is no limit. See engine.TierLimits.';
COMMENT ON COLUMN tier_change.review IS 'Bits by rule number: what breaks such a rule is reviewed instead of declined.';
COMMENT ON COLUMN tier_change.debt_first IS
    '1: a chargeback''s debt is paid back by later credits before anything can be spent.';

CREATE VIEW tier AS
SELECT DISTINCT ON (shard, tier) * FROM tier_change ORDER BY shard, tier, sequence DESC;
COMMENT ON VIEW tier IS 'The limits of each tier that are in force.';

-- Best effort, so not append-only: rows may be removed when they are old.
CREATE TABLE declined_attempt (
    at               timestamptz NOT NULL,
    shard            smallint NOT NULL,
    transfer_id      uuid NOT NULL,
    kind             smallint NOT NULL,
    status           smallint NOT NULL,
    rule             smallint NOT NULL,
    debit_wallet_id  bigint NOT NULL,
    credit_wallet_id bigint NOT NULL,
    amount           bigint NOT NULL,
    device           bytea NOT NULL CHECK (octet_length(device) = 8),
    ip               bytea NOT NULL CHECK (octet_length(ip) = 8)
);
CREATE INDEX declined_attempt_at ON declined_attempt (at);
CREATE INDEX declined_attempt_wallet ON declined_attempt (debit_wallet_id, at);
CREATE INDEX declined_attempt_device ON declined_attempt (device, at) WHERE device <> '\x0000000000000000';
CREATE INDEX declined_attempt_ip ON declined_attempt (ip, at) WHERE ip <> '\x0000000000000000';
COMMENT ON TABLE declined_attempt IS 'Movements that were refused, as far as Redis kept them until they were read.';
COMMENT ON COLUMN declined_attempt.status IS 'The status'' number: engine.Status.';
COMMENT ON COLUMN declined_attempt.rule IS 'Of LIMIT_EXCEEDED, which fraud rule; 0 else: engine.Rule.';
COMMENT ON COLUMN declined_attempt.debit_wallet_id IS '0 where it is not known.';

CREATE TABLE declined_read (
    shard   smallint PRIMARY KEY,
    read_to text NOT NULL
);
COMMENT ON TABLE declined_read IS 'The last entry of Redis'' stream of refused movements that is in declined_attempt.';

CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON wallet_change EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON hold EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON hold_change EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON hold_detail EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON refund EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transfer_origin EXECUTE FUNCTION refuse_change();
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON tier_change EXECUTE FUNCTION refuse_change();

-- All that was paid under an id that came again.
CREATE INDEX transfer_duplicate_of ON transfer_duplicate (duplicate_of);
