-- Each transfer and change of a hold that has details or says it has, and each detail, with the digest. Not what was
-- erased: of that only the digest is left.
SELECT 'transfer ' || coalesce(t.id, d.transfer_id), t.details_digest, d.reference, d.metadata::text
FROM transfer AS t
FULL JOIN transfer_detail AS d ON d.transfer_id = t.id
WHERE coalesce(t.shard, %(shard)s) = %(shard)s AND (t.details_digest <> 0 OR d.transfer_id IS NOT NULL)
    AND (d.transfer_id IS NOT NULL OR (t.shard, t.sequence) NOT IN (SELECT shard, sequence FROM erasure))
UNION ALL
SELECT 'hold''s change at sequence ' || coalesce(c.sequence, d.sequence), c.details_digest, d.reference, d.metadata::text
FROM hold_change AS c
FULL JOIN hold_detail AS d ON d.shard = c.shard AND d.sequence = c.sequence
WHERE coalesce(c.shard, d.shard) = %(shard)s AND (c.details_digest <> 0 OR d.sequence IS NOT NULL)
    AND (d.sequence IS NOT NULL OR (c.shard, c.sequence) NOT IN (SELECT shard, sequence FROM erasure))
