-- A wallet's entries, the newest first. Keys only: however long the history is, a page costs its own rows.
SELECT
    e.version, e.sequence, e.at, j.kind, j.id,
    CASE WHEN t.debit_wallet_id = e.wallet_id THEN t.credit_wallet_id
        WHEN t.id IS NOT NULL THEN t.debit_wallet_id ELSE h.credit_wallet_id END AS counterparty,
    e.amount, e.available_after, e.locked_after,
    coalesce(d.reference, hd.reference), coalesce(d.metadata, hd.metadata),
    CASE WHEN c.kind IN (7, 9) THEN c.amount WHEN c.kind = 8 THEN -c.amount - c.released
        ELSE coalesce(-c.released, 0) END AS reserved,
    c.hold_id, s.value
FROM (
    SELECT * FROM ledger_entry
    WHERE wallet_id = %(wallet)s AND version < coalesce(%(before)s::bigint, 9223372036854775807)
    ORDER BY version DESC
    LIMIT %(limit)s
) AS e
JOIN journal_event AS j ON j.shard = e.shard AND j.sequence = e.sequence
LEFT JOIN transfer AS t ON t.id = j.id AND t.shard = j.shard AND t.sequence = j.sequence
LEFT JOIN transfer_detail AS d ON d.transfer_id = t.id
LEFT JOIN hold_change AS c ON c.wallet_id = e.wallet_id AND c.wallet_version = e.version
LEFT JOIN LATERAL (
    SELECT credit_wallet_id FROM hold
    WHERE id = c.hold_id AND shard = c.shard AND sequence <= c.sequence
    ORDER BY sequence DESC LIMIT 1
) AS h ON true
LEFT JOIN hold_detail AS hd ON hd.shard = c.shard AND hd.sequence = c.sequence
LEFT JOIN wallet_change AS s ON s.wallet_id = e.wallet_id AND s.wallet_version = e.version
ORDER BY e.version DESC
