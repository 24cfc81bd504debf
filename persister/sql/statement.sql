-- A wallet's entries, the newest first. Keys only: however long the history is, a page costs its own rows.
SELECT
    e.version, e.sequence, e.at, j.kind, j.id,
    CASE WHEN t.debit_wallet_id = e.wallet_id THEN t.credit_wallet_id ELSE t.debit_wallet_id END AS counterparty,
    e.amount, e.available_after, e.locked_after, d.reference, d.metadata
FROM (
    SELECT * FROM ledger_entry
    WHERE wallet_id = %(wallet)s AND version < coalesce(%(before)s::bigint, 9223372036854775807)
    ORDER BY version DESC
    LIMIT %(limit)s
) AS e
JOIN journal_event AS j ON j.shard = e.shard AND j.sequence = e.sequence
LEFT JOIN transfer AS t ON t.id = j.id
LEFT JOIN transfer_detail AS d ON d.transfer_id = t.id
ORDER BY e.version DESC
