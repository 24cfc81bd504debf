-- Who was refused most since a time: devices, IPs or debit wallets, with how often and how much for each reason.
WITH reasons AS (
    SELECT
        CASE %(by)s WHEN 'device' THEN encode(device, 'hex') WHEN 'ip' THEN encode(ip, 'hex')
            ELSE debit_wallet_id::text END AS subject,
        status, rule, count(*) AS attempts, sum(amount) AS amount, max(at) AS last_at
    FROM declined_attempt
    WHERE at >= %(since)s
    GROUP BY subject, status, rule
)
SELECT
    subject, sum(attempts)::bigint, sum(amount)::text, max(last_at),
    json_agg(json_build_array(status, rule, attempts, amount::text) ORDER BY attempts DESC, status, rule)
FROM reasons
WHERE subject NOT IN ('0000000000000000', '0')
GROUP BY subject
ORDER BY sum(attempts) DESC, subject
LIMIT %(limit)s
