-- Open holds, the oldest first: of a wallet, of an owner, of some purposes, or under review.
SELECT
    h.id, h.purpose, h.debit_wallet_id, h.credit_wallet_id, h.currency, h.remaining, h.captured, h.review, h.rule, h.at,
    h.expires_at, h.reference, h.metadata, h.sequence
FROM open_hold_list AS h
WHERE h.sequence > %(after)s
    AND (%(wallet)s::bigint IS NULL OR %(wallet)s IN (h.debit_wallet_id, h.credit_wallet_id))
    AND (%(owner)s::bigint IS NULL OR EXISTS (
        SELECT FROM wallet AS w
        WHERE w.id IN (h.debit_wallet_id, h.credit_wallet_id) AND w.owner_id = %(owner)s AND w.flags & 1 = 0
    ))
    AND (%(purposes)s::smallint[] IS NULL OR h.purpose = ANY (%(purposes)s::smallint[]))
    AND (%(under_review)s::boolean IS NULL OR (h.review <> 0) = %(under_review)s)
ORDER BY h.sequence
LIMIT %(limit)s
