-- What wallets that are in a tier did in a range of sequences that counts against its limits: movements, holds, raises.
WITH tiered AS (
    SELECT wallet_id FROM wallet_balance WHERE tier <> 0
)
SELECT t.debit_wallet_id AS wallet_id, t.sequence, t.at, t.amount
FROM transfer AS t JOIN tiered AS w ON w.wallet_id = t.debit_wallet_id
WHERE t.shard = %(shard)s AND t.sequence > %(after)s AND t.sequence <= %(upto)s AND t.kind <= 4
UNION ALL
SELECT h.debit_wallet_id, h.sequence, h.at, h.amount
FROM hold AS h JOIN tiered AS w ON w.wallet_id = h.debit_wallet_id
WHERE h.shard = %(shard)s AND h.sequence > %(after)s AND h.sequence <= %(upto)s
UNION ALL
SELECT c.wallet_id, c.sequence, j.at, c.amount
FROM hold_change AS c JOIN tiered AS w ON w.wallet_id = c.wallet_id
JOIN journal_event AS j ON j.shard = c.shard AND j.sequence = c.sequence
WHERE c.shard = %(shard)s AND c.sequence > %(after)s AND c.sequence <= %(upto)s AND c.kind = 9
