-- Each event is what its kind says, and nothing is without an event: a movement is one transfer, between two wallets
-- of one currency; an opening (16) is one wallet; the end of a generation (32) is neither.
SELECT
    'sequence ' || coalesce(j.sequence, t.sequence, w.opened_sequence) AS subject,
    format('kind %%s, id %%s, at %%s; transfer %%s, from %%s to %%s; opens wallet %%s',
        j.kind, j.id, j.at, t.id, debit.currency::text, credit.currency::text, w.id) AS found,
    CASE j.kind WHEN 16 THEN 'one wallet' WHEN 32 THEN 'neither transfer nor wallet'
        ELSE 'one transfer of this kind, id and time, within one currency' END AS expected,
    count(*) OVER () AS differences
FROM (SELECT * FROM journal_event WHERE shard = %(shard)s) AS j
FULL JOIN (SELECT * FROM transfer WHERE shard = %(shard)s) AS t ON t.sequence = j.sequence
FULL JOIN (SELECT * FROM wallet WHERE shard = %(shard)s) AS w
    ON w.opened_sequence = coalesce(j.sequence, t.sequence)
LEFT JOIN wallet AS debit ON debit.id = t.debit_wallet_id
LEFT JOIN wallet AS credit ON credit.id = t.credit_wallet_id
WHERE j.kind IS NULL
    OR (t.id IS NULL) <> (j.kind IN (16, 32))
    OR (w.id IS NULL) <> (j.kind <> 16)
    OR (t.id IS NOT NULL AND (
        (t.id, t.kind, t.at) IS DISTINCT FROM (j.id, j.kind, j.at)
        OR debit.currency IS NULL
        OR debit.currency IS DISTINCT FROM credit.currency
    ))
    OR (w.id IS NOT NULL AND w.opened_at <> j.at)
LIMIT %(limit)s
