-- Why change_open_holds or end_open_holds did not find them all: the first hold that is not as the journal says it was.
SELECT c.id, h.id IS NOT NULL,
    format('remaining %%s, captured %%s, wallets %%s to %%s, purpose %%s, expiry %%s',
        c.remaining_before, c.captured_before, c.debit, c.credit, c.purpose, c.expires_at_ms),
    format('remaining %%s, captured %%s, wallets %%s to %%s, purpose %%s, expiry %%s',
        h.remaining, h.captured, h.debit_wallet_id, h.credit_wallet_id, h.purpose, h.expires_at_ms)
FROM unnest(
    %(id)b::uuid[], %(remaining_before)b::bigint[], %(captured_before)b::bigint[], %(debit)b::bigint[],
    %(credit)b::bigint[], %(purpose)b::bigint[], %(expires_at_ms)b::bigint[]
) AS c (id, remaining_before, captured_before, debit, credit, purpose, expires_at_ms)
LEFT JOIN open_hold AS h ON h.id = c.id AND h.shard = %(shard)s
WHERE (h.remaining, h.captured, h.debit_wallet_id, h.credit_wallet_id, h.purpose, h.expires_at_ms)
    IS DISTINCT FROM (c.remaining_before, c.captured_before, c.debit, c.credit, c.purpose, c.expires_at_ms)
ORDER BY c.id
LIMIT 1
