-- Chargebacks of wallets in a tier that are below their limits since: how far below they left them.
SELECT b.wallet_id, e.sequence, -(e.available_after + s.overdraft_limit) AS debt
FROM wallet_balance AS b
JOIN wallet AS w ON w.id = b.wallet_id
CROSS JOIN LATERAL (
    SELECT coalesce(max(version), 0) AS version FROM (
        SELECT e.version FROM ledger_entry AS e CROSS JOIN LATERAL wallet_state(e.wallet_id, e.version) AS s
        WHERE e.wallet_id = b.wallet_id AND e.available_after >= -s.overdraft_limit
        ORDER BY e.version DESC LIMIT 1
    ) AS last
) AS sound
JOIN ledger_entry AS e ON e.wallet_id = b.wallet_id AND e.version > sound.version AND e.amount < 0
JOIN journal_event AS j ON j.shard = e.shard AND j.sequence = e.sequence AND j.kind = 6
CROSS JOIN LATERAL wallet_state(e.wallet_id, e.version) AS s
WHERE w.shard = %(shard)s AND b.tier <> 0 AND b.flags & 1 = 0 AND b.available < -b.overdraft_limit
