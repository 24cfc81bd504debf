-- Refused movements, the newest first.
SELECT
    at, transfer_id, kind, status, rule, debit_wallet_id, credit_wallet_id, amount,
    nullif(device, '\x0000000000000000'), nullif(ip, '\x0000000000000000')
FROM declined_attempt
WHERE at >= coalesce(%(since)s::timestamptz, '-infinity')
    AND (%(wallet)s::bigint IS NULL OR debit_wallet_id = %(wallet)s)
    AND (%(device)s::bytea IS NULL OR device = %(device)s)
    AND (%(ip)s::bytea IS NULL OR ip = %(ip)s)
ORDER BY at DESC
LIMIT %(limit)s
