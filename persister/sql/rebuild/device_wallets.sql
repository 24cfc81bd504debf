-- The wallets that used a device today, the first ahead, as attempts.sql has the devices.
WITH attempt AS (
    SELECT wallet_id, device, at, sequence FROM transfer_origin
    WHERE shard = %(shard)s AND sequence > %(after)s
    UNION ALL
    SELECT debit_wallet_id, device, at, 0 FROM declined_attempt
    WHERE shard = %(shard)s AND at >= to_timestamp(%(since_ms)s::bigint / 1000.0)
)
SELECT a.device AS digest, l.attempts_window_ms AS window_ms, a.wallet_id, max(l.device_wallets) AS most
FROM attempt AS a
JOIN wallet_balance AS b ON b.wallet_id = a.wallet_id
JOIN tier AS l ON l.shard = %(shard)s AND l.tier = b.tier
WHERE a.device <> '\x0000000000000000' AND a.at >= to_timestamp(%(today_ms)s::bigint / 1000.0)
    AND least(l.device_attempts, l.device_wallets) < 9007199254740991
    AND (%(digests)s::bytea[] IS NULL OR a.device = ANY (%(digests)s::bytea[]))
GROUP BY a.device, l.attempts_window_ms, a.wallet_id
ORDER BY a.device, l.attempts_window_ms, min(a.at), min(a.sequence)
