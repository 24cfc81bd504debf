-- What a wallet had at a time; no row before its opening.
SELECT w.currency::text, e.available_after, e.locked_after, e.version, e.at, e.sequence
FROM wallet AS w JOIN ledger_entry AS e ON e.wallet_id = w.id
WHERE w.id = %(wallet)s AND e.version = version_at(%(wallet)s, %(at)s)
