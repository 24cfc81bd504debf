-- Every change of a tier's limits.
SELECT
    tier, sequence, debt_first, review, max_amount, day_amount, day_count, window_count, window_ms, hour_amount,
    attempts_window_ms, device_attempts, ip_attempts, device_wallets, new_device_amount, new_device_ms
FROM tier_change
WHERE shard = %(shard)s
ORDER BY tier, sequence
