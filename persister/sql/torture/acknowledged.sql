-- Some acknowledged requests that the ledger has, with the answer that was given.
SELECT a.id, a.status, a.rule, a.sequence, a.debit_available, a.credit_available, a.amount
FROM (SELECT DISTINCT ON (id) * FROM torture_acknowledged ORDER BY id) AS a
WHERE EXISTS (SELECT FROM torture_happened AS h WHERE h.id = a.id AND h.sequence = a.sequence)
ORDER BY md5(a.id::text)
LIMIT %(limit)s
