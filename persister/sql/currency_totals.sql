-- What the wallets of each currency own together: 0, because external wallets are among them.
SELECT w.currency::text, count(*), sum(b.available + b.locked)::numeric::text,
    coalesce(sum(b.available + b.locked) FILTER (WHERE w.flags & 1 = 0), 0)::text
FROM wallet AS w JOIN wallet_balance AS b ON b.wallet_id = w.id
GROUP BY w.currency
ORDER BY w.currency
