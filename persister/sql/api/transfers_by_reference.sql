-- Transfers with a reference, the newest first.
SELECT
    t.id, t.sequence, t.kind, t.at, t.debit_wallet_id, t.credit_wallet_id, t.amount,
    d.available_after, c.available_after,
    (SELECT coalesce(sum(amount), 0)::bigint FROM refund WHERE original_id = t.id),
    x.reference, x.metadata,
    CASE WHEN dw.flags & 1 = 0 THEN dw.owner_id END, CASE WHEN cw.flags & 1 = 0 THEN cw.owner_id END
FROM transfer AS t
JOIN ledger_entry AS d ON d.wallet_id = t.debit_wallet_id AND d.version = t.debit_version
JOIN ledger_entry AS c ON c.wallet_id = t.credit_wallet_id AND c.version = t.credit_version
JOIN wallet AS dw ON dw.id = t.debit_wallet_id
JOIN wallet AS cw ON cw.id = t.credit_wallet_id
JOIN transfer_detail AS x ON x.transfer_id = t.id
WHERE x.reference = %(reference)s AND t.sequence < %(before)s AND (
    %(owner)s::bigint IS NULL OR (dw.owner_id = %(owner)s AND dw.flags & 1 = 0)
        OR (cw.owner_id = %(owner)s AND cw.flags & 1 = 0)
)
ORDER BY t.sequence DESC
LIMIT %(limit)s
