-- Every request that the ledger has, with the answer that its rows make: by sequence, and by the id that it came with.
-- A side's available money is that of its last entry up to there, because a hold changes one of its two wallets only.
CREATE TEMP TABLE torture_entry AS
SELECT wallet_id, sequence, available_after FROM ledger_entry WHERE shard = %(shard)s;
CREATE INDEX ON torture_entry (wallet_id, sequence);

CREATE TEMP TABLE torture_happened AS
WITH made AS (
    SELECT
        e.sequence, coalesce(d.duplicate_of, e.id) AS id, e.kind, c.hold_id,
        coalesce(t.debit_wallet_id, c.wallet_id, w.wallet_id, o.id) AS debit,
        coalesce(t.credit_wallet_id, h.credit_wallet_id) AS credit,
        coalesce(t.amount, c.amount, 0) AS amount,
        CASE WHEN e.kind = 7 THEN h.rule ELSE 0 END AS rule
    FROM journal_event AS e
    LEFT JOIN transfer_duplicate AS d ON d.shard = e.shard AND d.sequence = e.sequence
    LEFT JOIN transfer AS t ON t.shard = e.shard AND t.sequence = e.sequence
    LEFT JOIN hold_change AS c ON c.shard = e.shard AND c.sequence = e.sequence
    LEFT JOIN wallet_change AS w ON w.shard = e.shard AND w.sequence = e.sequence
    LEFT JOIN wallet AS o ON o.shard = e.shard AND o.opened_sequence = e.sequence
    LEFT JOIN LATERAL (
        SELECT credit_wallet_id, rule FROM hold
        WHERE id = c.hold_id AND shard = e.shard AND sequence <= e.sequence
        ORDER BY sequence DESC
        LIMIT 1
    ) AS h ON true
    WHERE e.shard = %(shard)s
)
SELECT
    m.sequence, m.id, m.kind, m.debit, m.credit, m.amount, m.rule, CASE WHEN m.rule > 0 THEN 1 ELSE 0 END AS status,
    coalesce(d.available_after, 0) AS debit_available, coalesce(c.available_after, 0) AS credit_available
FROM made AS m
LEFT JOIN LATERAL (
    SELECT available_after FROM torture_entry WHERE wallet_id = m.debit AND sequence <= m.sequence
    ORDER BY sequence DESC
    LIMIT 1
) AS d ON true
LEFT JOIN LATERAL (
    SELECT available_after FROM torture_entry WHERE wallet_id = m.credit AND sequence <= m.sequence
    ORDER BY sequence DESC
    LIMIT 1
) AS c ON true;

-- Of each id that a client asked for: whether an attempt of it may have been decided without the client's knowledge,
-- and what it is as it was asked.
CREATE TEMP TABLE torture_asked AS
SELECT
    id, max(number) FILTER (WHERE what = 0) AS kind,
    max(debit) FILTER (WHERE what = 0) AS debit_most, min(debit) FILTER (WHERE what = 0) AS debit,
    min(credit) FILTER (WHERE what = 0) AS credit, min(amount) FILTER (WHERE what = 0) AS amount,
    max(flag) FILTER (WHERE what = 0) AS may_be_less,
    bool_or(what = 2) OR count(*) FILTER (WHERE what = 0) > count(*) FILTER (WHERE what <> 0) AS in_doubt,
    bool_or(what = 1 AND number IN (0, 1)) AS is_acknowledged
FROM torture_record
GROUP BY id;

CREATE TEMP TABLE torture_acknowledged AS
SELECT DISTINCT
    id, level, number AS status, flag AS rule, sequence, debit AS debit_available, credit AS credit_available, amount,
    min(asked_us) OVER (PARTITION BY id, level, sequence) AS asked_us
FROM torture_record
WHERE what = 1 AND number IN (0, 1);

CREATE INDEX ON torture_happened (id);
ANALYZE torture_record, torture_happened, torture_asked, torture_acknowledged
