-- Transfers whose outcomes their own rows tell; those of other requests are in the table outcome.
SELECT
    t.sequence, t.id, t.kind, t.debit_wallet_id, t.credit_wallet_id, t.amount, t.details_digest,
    CASE WHEN t.details_digest = 0 THEN 0 ELSE coalesce(
        -- As they came: a JSON array of the two.
        (SELECT octet_length('[,]' || coalesce(to_json(d.reference)::text, 'null') || coalesce(d.metadata::text, 'null'))
        FROM transfer_detail AS d WHERE d.transfer_id = t.id),
        (SELECT e.details_size FROM erasure AS e WHERE e.shard = t.shard AND e.sequence = t.sequence),
        0
    ) END AS details_size
FROM transfer AS t
WHERE t.shard = %(shard)s AND t.sequence > %(after)s AND t.sequence <= %(upto)s AND t.kind <= 4
