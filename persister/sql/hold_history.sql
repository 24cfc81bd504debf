-- What happened to a hold, from its beginning: of the last hold that was made under an id.
SELECT
    c.sequence, j.at, c.kind, j.id, c.amount, c.released, c.state, c.remaining, c.captured, c.review,
    coalesce(d.reference, t.reference), coalesce(d.metadata, t.metadata)
FROM (
    SELECT id, shard, sequence FROM hold WHERE id = %(id)s ORDER BY sequence DESC LIMIT 1
) AS h
JOIN hold_change AS c ON c.hold_id = h.id AND c.shard = h.shard AND c.sequence >= h.sequence
JOIN journal_event AS j ON j.shard = c.shard AND j.sequence = c.sequence
LEFT JOIN hold_detail AS d ON d.shard = c.shard AND d.sequence = c.sequence
LEFT JOIN transfer_detail AS t ON c.kind = 8 AND t.transfer_id = j.id
ORDER BY c.sequence
LIMIT %(limit)s
