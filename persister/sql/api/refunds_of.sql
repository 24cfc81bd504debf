-- Refunds and chargebacks of a transfer, the oldest first.
SELECT r.transfer_id, r.kind, r.sequence, t.at, r.amount, r.total, x.reference
FROM refund AS r
JOIN transfer AS t ON t.id = r.transfer_id
LEFT JOIN transfer_detail AS x ON x.transfer_id = r.transfer_id
WHERE r.original_id = %(id)s AND r.sequence > %(after)s
ORDER BY r.sequence
LIMIT %(limit)s
