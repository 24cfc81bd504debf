INSERT INTO wallet_balance (wallet_id, available, locked, version)
SELECT wallet_id, 0, 0, 0 FROM unnest(%(wallet)b::bigint[]) AS opened (wallet_id)
