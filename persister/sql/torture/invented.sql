-- In the ledger, and nobody asked for it; or everybody who did was told, for sure, that it was not done.
SELECT h.id, format(
    '%%s happened at sequence %%s, and %%s', h.id, h.sequence,
    CASE WHEN a.id IS NULL THEN 'nobody asked for it' ELSE 'every attempt was refused or said to be not applied' END
)
FROM torture_happened AS h
LEFT JOIN torture_asked AS a ON a.id = h.id
WHERE h.kind NOT IN (11, 32) AND (
    a.id IS NULL
    OR NOT a.in_doubt AND NOT EXISTS (
        SELECT FROM torture_acknowledged AS k WHERE k.id = h.id AND k.sequence = h.sequence
    )
)
