-- Invariant 8: what was refunded of a transfer never exceeds it; each refund (5) or chargeback (6) takes back a transfer
-- of a kind that can be, before it, between the same wallets the other way round, a chargeback only a top-up (2); and
-- its total is the sum of the refunds up to it. Under an id that came again after Redis forgot it there is more than one
-- transfer (transfer_duplicate): it is judged by all that was paid under it.
WITH refunds AS (
    SELECT r.transfer_id, r.sequence, r.kind, r.amount, r.total, g.original_id,
        t.debit_wallet_id, t.credit_wallet_id, t.amount AS moved, t.kind AS moved_kind,
        sum(r.amount) OVER (PARTITION BY g.original_id ORDER BY r.sequence) AS so_far
    FROM refund AS r
    LEFT JOIN transfer AS t ON t.id = r.transfer_id
    LEFT JOIN transfer_duplicate AS d ON d.transfer_id = r.original_id
    CROSS JOIN LATERAL (SELECT coalesce(d.duplicate_of, r.original_id) AS original_id) AS g
    WHERE r.shard = %(shard)s
),
paid AS (
    SELECT id AS original_id, id AS transfer_id FROM (SELECT DISTINCT original_id AS id FROM refunds) AS originals
    UNION ALL
    SELECT d.duplicate_of, d.transfer_id
    FROM transfer_duplicate AS d WHERE d.duplicate_of IN (SELECT original_id FROM refunds)
),
originals AS (
    SELECT p.original_id, t.sequence, t.amount, t.debit_wallet_id, t.credit_wallet_id,
        CASE t.kind WHEN 8 THEN h.purpose ELSE t.kind END AS kind
    FROM paid AS p
    JOIN transfer AS t ON t.id = p.transfer_id
    LEFT JOIN hold_change AS c ON t.kind = 8 AND c.wallet_id = t.debit_wallet_id AND c.wallet_version = t.debit_version
    LEFT JOIN LATERAL (
        SELECT purpose FROM hold WHERE id = c.hold_id AND shard = c.shard AND sequence < c.sequence
        ORDER BY sequence DESC LIMIT 1
    ) AS h ON true
),
judged AS (
    SELECT r.*, o.amount AS original_amount, o.transfers, o.fits
    FROM refunds AS r
    LEFT JOIN LATERAL (
        SELECT sum(amount) AS amount, count(*) AS transfers,
            bool_or((debit_wallet_id, credit_wallet_id) = (r.credit_wallet_id, r.debit_wallet_id)
                AND CASE r.kind WHEN 6 THEN kind = 2 ELSE kind BETWEEN 1 AND 4 END) AS fits
        FROM originals AS o WHERE o.original_id = r.original_id AND o.sequence < r.sequence
    ) AS o ON true
)
SELECT
    format('refund %%s (sequence %%s)', transfer_id, sequence) AS subject,
    format('kind %%s of %%s, moved %%s from %%s to %%s; total %%s, in all %%s of transfer %%s',
        kind, amount, moved, debit_wallet_id, credit_wallet_id, total, so_far, original_id) AS found,
    CASE transfers WHEN 0 THEN 'of a transfer before it'
        ELSE format('at most %%s in all, of a transfer that can be refunded, the other way round', original_amount) END
        AS expected,
    count(*) OVER () AS differences
FROM judged
WHERE fits IS NOT TRUE
    OR (moved, moved_kind) IS DISTINCT FROM (amount, kind)
    OR so_far > original_amount
    OR total > original_amount
    OR (total <> so_far AND transfers = 1)
ORDER BY sequence
LIMIT %(limit)s
