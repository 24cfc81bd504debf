-- Each event did what its kind says, and nothing was done without an event: a movement is one transfer within one
-- currency, and so on for each kind. A capture is a transfer and the change of a hold, a refund a transfer with its
-- original.
WITH kinds (kind, part) AS (
    VALUES (1, 'transfer'), (2, 'transfer'), (3, 'transfer'), (4, 'transfer'), (5, 'transfer'), (6, 'transfer'),
        (8, 'transfer'), (5, 'refund'), (6, 'refund'), (7, 'hold'), (7, 'hold change'), (8, 'hold change'),
        (9, 'hold change'), (10, 'hold change'), (11, 'hold change'), (12, 'hold change'), (16, 'wallet'),
        (17, 'wallet change'), (18, 'wallet change'), (19, 'wallet change'), (20, 'wallet change'),
        (21, 'wallet change'), (33, 'tier change')
),
-- NULL for what a part does not say itself.
parts AS (
    SELECT t.sequence, 'transfer' AS part, t.kind, t.id, t.at, debit.currency::text AS debit, credit.currency::text AS credit
    FROM transfer AS t
    LEFT JOIN wallet AS debit ON debit.id = t.debit_wallet_id
    LEFT JOIN wallet AS credit ON credit.id = t.credit_wallet_id
    WHERE t.shard = %(shard)s AND t.sequence > %(after)s AND t.sequence <= %(to)s
    UNION ALL
    SELECT h.sequence, 'hold', 7, h.id, h.at, debit.currency::text, credit.currency::text
    FROM hold AS h
    LEFT JOIN wallet AS debit ON debit.id = h.debit_wallet_id
    LEFT JOIN wallet AS credit ON credit.id = h.credit_wallet_id
    WHERE h.shard = %(shard)s AND h.sequence > %(after)s AND h.sequence <= %(to)s
    UNION ALL
    SELECT sequence, 'hold change', kind, CASE kind WHEN 7 THEN hold_id END, NULL, '', ''
    FROM hold_change WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
    UNION ALL
    SELECT sequence, 'refund', kind, transfer_id, NULL, '', ''
    FROM refund WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
    UNION ALL
    SELECT opened_sequence, 'wallet', 16, NULL, opened_at, '', ''
    FROM wallet WHERE shard = %(shard)s AND opened_sequence > %(after)s AND opened_sequence <= %(to)s
    UNION ALL
    SELECT sequence, 'wallet change', kind, NULL, NULL, '', ''
    FROM wallet_change WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
    UNION ALL
    SELECT sequence, 'tier change', 33, NULL, NULL, '', ''
    FROM tier_change WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
),
expected AS (
    SELECT j.sequence, k.part, j.kind, j.id, j.at
    FROM journal_event AS j JOIN kinds AS k ON k.kind = j.kind
    WHERE j.shard = %(shard)s AND j.sequence > %(after)s AND j.sequence <= %(to)s
),
found AS (
    SELECT
        'sequence ' || coalesce(e.sequence, p.sequence) AS subject,
        CASE WHEN p.part IS NULL THEN 'no ' || e.part
            ELSE format('a %%s of kind %%s, id %%s, at %%s, from %%s to %%s',
                p.part, p.kind, p.id, p.at, p.debit, p.credit) END AS found,
        CASE WHEN e.part IS NULL THEN 'no ' || p.part
            ELSE format('a %%s of kind %%s, id %%s, at %%s, within one currency', e.part, e.kind, e.id, e.at) END
            AS expected
    FROM expected AS e
    FULL JOIN parts AS p ON p.sequence = e.sequence AND p.part = e.part
    WHERE p.part IS NULL OR e.part IS NULL
        OR p.kind <> e.kind OR p.id <> e.id OR p.at <> e.at
        OR p.debit IS NULL OR p.debit IS DISTINCT FROM p.credit
    UNION ALL
    -- An origin is of a movement or a hold, and of its debit wallet.
    SELECT 'sequence ' || o.sequence,
        format('an origin of wallet %%s at %%s', o.wallet_id, o.at),
        format('kind %%s of wallet %%s at %%s', j.kind, coalesce(t.debit_wallet_id, h.debit_wallet_id), j.at)
    FROM transfer_origin AS o
    LEFT JOIN journal_event AS j ON j.shard = o.shard AND j.sequence = o.sequence AND j.kind IN (1, 2, 3, 4, 7)
    LEFT JOIN transfer AS t ON t.id = j.id AND t.shard = j.shard AND t.sequence = j.sequence
    LEFT JOIN hold AS h ON h.id = j.id AND h.shard = j.shard AND h.sequence = j.sequence
    WHERE o.shard = %(shard)s AND o.sequence > %(after)s AND o.sequence <= %(to)s
        AND (j.at, coalesce(t.debit_wallet_id, h.debit_wallet_id)) IS DISTINCT FROM (o.at, o.wallet_id)
)
SELECT subject, found, expected, count(*) OVER () AS differences FROM found LIMIT %(limit)s
