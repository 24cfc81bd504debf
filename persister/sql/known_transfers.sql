-- Which of these ids the ledger has.
SELECT id FROM transfer WHERE id = ANY (%(ids)s)
