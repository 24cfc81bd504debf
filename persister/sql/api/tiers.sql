-- Of the one shard that there is.
SELECT
    tier, debt_first, review, max_amount, day_amount, day_count, window_count, window_ms, hour_amount,
    attempts_window_ms, device_attempts, ip_attempts, device_wallets, new_device_amount, new_device_ms
FROM tier
ORDER BY shard, tier
