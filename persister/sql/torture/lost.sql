-- Acknowledged, and not in the ledger at that sequence, although no fault may have lost it.
SELECT a.id, format('%%s was acknowledged (%%s) as sequence %%s', a.id, (%(levels)s::text[])[a.level + 1], a.sequence)
FROM torture_acknowledged AS a
WHERE NOT EXISTS (SELECT FROM torture_happened AS h WHERE h.id = a.id AND h.sequence = a.sequence)
    AND NOT EXISTS (
        SELECT FROM torture_loss AS l
        WHERE l.level = a.level AND a.asked_us <= l.until_us AND a.sequence > l.after_sequence
    )
ORDER BY a.sequence
