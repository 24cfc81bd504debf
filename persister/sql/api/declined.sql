-- Refused movements, the newest first.
SELECT a.at, a.transfer_id, a.kind, a.status, a.rule, a.debit_wallet_id, a.credit_wallet_id, a.amount
FROM declined_attempt AS a
WHERE a.at >= coalesce(%(since)s::timestamptz, '-infinity')
    AND (a.at, a.transfer_id) < (coalesce(%(before_at)s::timestamptz, 'infinity'), %(before_id)s::uuid)
    AND (%(wallet)s::bigint IS NULL OR a.debit_wallet_id = %(wallet)s)
    AND (%(owner)s::bigint IS NULL OR EXISTS (
        SELECT FROM wallet AS w WHERE w.id = a.debit_wallet_id AND w.owner_id = %(owner)s AND w.flags & 1 = 0
    ))
ORDER BY a.at DESC, a.transfer_id DESC
LIMIT %(limit)s
