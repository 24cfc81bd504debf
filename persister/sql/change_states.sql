-- The wallets whose flags, tier or overdraft limit a batch sets. That the wallet is as the journal says is guarded by
-- update_balances; -1 leaves a value as it is.
UPDATE wallet_balance AS b
SET flags = b.flags & c.keep::smallint | c.add::smallint,
    tier = CASE WHEN c.tier < 0 THEN b.tier ELSE c.tier END,
    overdraft_limit = CASE WHEN c.overdraft_limit < 0 THEN b.overdraft_limit ELSE c.overdraft_limit END
FROM unnest(
    %(wallet)b::bigint[], %(keep)b::bigint[], %(add)b::bigint[], %(tier)b::bigint[], %(overdraft_limit)b::bigint[]
) AS c (wallet_id, keep, add, tier, overdraft_limit)
WHERE b.wallet_id = c.wallet_id
