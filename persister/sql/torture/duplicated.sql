-- Ids that the ledger has more than once. Expiries (11) and ends of generations (32) are nobody's requests.
SELECT id, format('%%s happened at sequences %%s', id, string_agg(sequence::text, ', ' ORDER BY sequence))
FROM torture_happened
WHERE kind NOT IN (11, 32)
GROUP BY id
HAVING count(*) > 1
