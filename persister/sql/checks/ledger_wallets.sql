-- The ledger's side of a comparison of wallets: some of a shard, by ascending id, as one array for each column; a
-- message for each wallet would cost more than the rest. ids: which of them, NULL for all.
SELECT
    array_agg(id) AS id, array_agg(version) AS version, array_agg(available) AS available, array_agg(locked) AS locked,
    array_agg(flags::bigint) AS flags, array_agg(tier::bigint) AS tier, array_agg(overdraft_limit) AS overdraft_limit,
    string_agg(rpad(currency::text, 8), '') AS currency
FROM (
    SELECT w.id, w.currency, b.version, b.available, b.locked, b.flags, b.tier, b.overdraft_limit
    FROM wallet AS w JOIN wallet_balance AS b ON b.wallet_id = w.id
    WHERE w.shard = %(shard)s
        -- Of both tables, so that each is read by its index.
        AND w.id BETWEEN %(first)s AND %(last)s AND b.wallet_id BETWEEN %(first)s AND %(last)s
        AND (%(ids)b::bigint[] IS NULL OR w.id = ANY (%(ids)b::bigint[]))
    ORDER BY w.id
) AS ordered
