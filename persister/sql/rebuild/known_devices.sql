-- Which devices wallets used with success while their tiers asked for it: since when, and when last.
WITH asking AS (
    SELECT tier, sequence AS since, new_device_amount < 9007199254740991 AS asks,
        lead(sequence, 1, 9223372036854775807) OVER (PARTITION BY tier ORDER BY sequence) AS until
    FROM tier_change WHERE shard = %(shard)s
), member AS (
    SELECT wallet_id, value AS tier, sequence AS since,
        lead(sequence, 1, 9223372036854775807) OVER (PARTITION BY wallet_id ORDER BY wallet_version) AS until
    FROM wallet_change WHERE shard = %(shard)s AND kind = 21
), asked AS (
    SELECT m.wallet_id, greatest(m.since, a.since) AS since, least(m.until, a.until) AS until
    FROM member AS m JOIN asking AS a ON a.tier = m.tier AND a.since < m.until AND m.since < a.until
    WHERE a.asks
)
SELECT o.wallet_id, o.device, min(o.at) AS since, max(o.sequence) AS last
FROM transfer_origin AS o
JOIN asked AS a ON a.wallet_id = o.wallet_id AND o.sequence > a.since AND o.sequence < a.until
WHERE o.shard = %(shard)s AND o.device <> '\x0000000000000000'
    -- Of what is under review nobody knows yet whether it was all right.
    AND NOT EXISTS (SELECT FROM hold AS h WHERE h.shard = o.shard AND h.sequence = o.sequence AND h.review <> 0)
GROUP BY o.wallet_id, o.device
ORDER BY o.wallet_id, last
