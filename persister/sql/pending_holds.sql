-- Top-ups (2) and withdrawals (4) that wait for their confirmation; the oldest first.
SELECT
    id, debit_wallet_id, credit_wallet_id, currency, purpose, remaining, captured, review, rule, at, open_for_s,
    expires_at, reference, metadata
FROM open_hold_list
WHERE purpose IN (2, 4) AND review = 0
ORDER BY at, id
LIMIT %(limit)s
