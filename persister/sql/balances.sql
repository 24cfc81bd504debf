-- External wallets (flag 1) are not among them.
SELECT w.id, b.available + b.locked
FROM wallet AS w JOIN wallet_balance AS b ON b.wallet_id = w.id
WHERE w.flags & 1 = 0
ORDER BY w.id
