-- In the ledger, but with another answer than the one that was given.
SELECT a.id, format(
    '%%s at sequence %%s was answered %%s, the ledger has %%s', a.id, a.sequence,
    ROW(a.status, a.rule, a.debit_available, a.credit_available, a.amount),
    ROW(h.status, h.rule, h.debit_available, h.credit_available, h.amount)
)
FROM torture_acknowledged AS a
JOIN torture_happened AS h ON h.id = a.id AND h.sequence = a.sequence
WHERE (a.status, a.rule, a.debit_available, a.credit_available, a.amount)
    <> (h.status, h.rule, h.debit_available, h.credit_available, h.amount)
