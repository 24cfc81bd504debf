SELECT
    t.id, t.sequence, t.kind, t.at, t.debit_wallet_id, t.credit_wallet_id, t.amount,
    d.available_after, c.available_after, x.reference, x.metadata,
    (SELECT coalesce(sum(amount), 0)::bigint FROM refund WHERE original_id = t.id)
FROM transfer AS t
JOIN ledger_entry AS d ON d.wallet_id = t.debit_wallet_id AND d.version = t.debit_version
JOIN ledger_entry AS c ON c.wallet_id = t.credit_wallet_id AND c.version = t.credit_version
LEFT JOIN transfer_detail AS x ON x.transfer_id = t.id
WHERE t.id = %(id)s
