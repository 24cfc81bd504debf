-- How often devices (100) and IPs (105) were used by wallets whose tiers limit that, refused attempts included, in the
-- windows that still count. Judged by the tiers as they are now. digests: only these; NULL for all.
WITH attempt AS (
    SELECT wallet_id, device, ip, at FROM transfer_origin
    WHERE shard = %(shard)s AND sequence > %(after)s
    UNION ALL
    SELECT debit_wallet_id, device, ip, at FROM declined_attempt
    WHERE shard = %(shard)s AND at >= to_timestamp(%(since_ms)s::bigint / 1000.0)
), counted AS (
    SELECT a.device, a.ip, a.at, l.attempts_window_ms AS window_ms,
        floor(extract(epoch FROM a.at) * 1000 / l.attempts_window_ms)::bigint AS number,
        least(l.device_attempts, l.device_wallets) < 9007199254740991 AS counts_device,
        l.ip_attempts < 9007199254740991 AS counts_ip
    FROM attempt AS a
    JOIN wallet_balance AS b ON b.wallet_id = a.wallet_id
    JOIN tier AS l ON l.shard = %(shard)s AND l.tier = b.tier
), used AS (
    SELECT 100::smallint AS kind, device AS digest, window_ms, number, at FROM counted WHERE counts_device
    UNION ALL
    SELECT 105::smallint, ip, window_ms, number, at FROM counted WHERE counts_ip
)
SELECT kind, digest, window_ms, number, count(*) AS count, max(at) AS last FROM used
WHERE digest <> '\x0000000000000000' AND number >= %(now_ms)s::bigint / window_ms - 1
    AND (%(digests)s::bytea[] IS NULL OR digest = ANY (%(digests)s::bytea[]))
GROUP BY kind, digest, window_ms, number
ORDER BY kind, digest, window_ms, number
