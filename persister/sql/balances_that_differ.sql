-- Why update_balances did not update them all: the first wallet that is not as the journal says it was.
SELECT c.wallet_id, c.version_before, c.available_before, c.locked_before, b.version, b.available, b.locked
FROM unnest(
    %(wallet)b::bigint[], %(version_before)b::bigint[], %(available_before)b::bigint[], %(locked_before)b::bigint[]
) AS c (wallet_id, version_before, available_before, locked_before)
LEFT JOIN wallet_balance AS b USING (wallet_id)
WHERE (b.version, b.available, b.locked)
    IS DISTINCT FROM (c.version_before, c.available_before, c.locked_before)
ORDER BY c.wallet_id
LIMIT 1
