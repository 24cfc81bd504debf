-- What fraud rules stopped and nobody has decided yet; the oldest first.
SELECT
    id, debit_wallet_id, credit_wallet_id, currency, purpose, remaining, captured, review, rule, at, open_for_s,
    expires_at, reference, metadata
FROM open_hold_list
WHERE review <> 0
ORDER BY at, id
LIMIT %(limit)s
