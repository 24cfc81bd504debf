INSERT INTO wallet_balance (wallet_id, available, locked, version, overdraft_limit, tier, flags)
SELECT wallet_id, 0, 0, 0, overdraft_limit, 0, flags
FROM unnest(%(wallet)b::bigint[], %(overdraft_limit)b::bigint[], %(flags)b::bigint[])
    AS opened (wallet_id, overdraft_limit, flags)
