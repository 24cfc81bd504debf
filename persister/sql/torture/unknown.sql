-- The ids whose callers do not know what became of them, and the sequence at which the ledger has them, if it does.
SELECT a.id, (SELECT min(sequence) FROM torture_happened AS h WHERE h.id = a.id)
FROM torture_asked AS a
WHERE a.in_doubt AND NOT a.is_acknowledged
