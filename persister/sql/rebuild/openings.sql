-- Wallets with the requests that opened them.
SELECT w.opened_sequence AS sequence, j.id, w.id AS wallet_id, w.owner_id, w.currency, w.flags, w.overdraft_limit
FROM wallet AS w
JOIN journal_event AS j ON j.shard = w.shard AND j.sequence = w.opened_sequence
WHERE w.shard = %(shard)s AND w.opened_sequence > %(after)s AND w.opened_sequence <= %(upto)s
