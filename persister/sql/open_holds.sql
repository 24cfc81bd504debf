-- Open holds of a wallet, on its debit or credit side, or of all; the oldest first.
SELECT
    id, debit_wallet_id, credit_wallet_id, currency, purpose, remaining, captured, review, rule, at, open_for_s,
    expires_at, reference, metadata
FROM open_hold_list
WHERE %(wallet)s::bigint IS NULL OR %(wallet)s IN (debit_wallet_id, credit_wallet_id)
ORDER BY at, id
LIMIT %(limit)s
