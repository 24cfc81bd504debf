-- Movements between wallets that the client named, and the ledger has others, or another amount.
SELECT h.id, format(
    '%%s: asked for %%s from %%s to %%s, the ledger has %%s from %%s to %%s',
    h.id, a.amount, a.debit, a.credit, h.amount, h.debit, h.credit
)
FROM torture_happened AS h
JOIN torture_asked AS a ON a.id = h.id
WHERE h.kind IN (1, 2, 3, 4, 7) AND (
    (h.debit, h.credit) <> (a.debit, a.credit) OR h.amount > a.amount OR h.amount < a.amount AND a.may_be_less = 0
)
