-- Acknowledged, and gone by a fault that may lose it.
SELECT count(DISTINCT a.id)
FROM torture_acknowledged AS a
WHERE NOT EXISTS (SELECT FROM torture_happened AS h WHERE h.id = a.id AND h.sequence = a.sequence)
    AND EXISTS (
        SELECT FROM torture_loss AS l
        WHERE l.level = a.level AND a.asked_us <= l.until_us AND a.sequence > l.after_sequence
    )
