-- Outcomes of requests that no other rows tell.
SELECT o.sequence, j.id, o.kept
FROM outcome AS o
JOIN journal_event AS j ON j.shard = o.shard AND j.sequence = o.sequence
WHERE o.shard = %(shard)s AND o.sequence > %(after)s AND o.sequence <= %(upto)s
