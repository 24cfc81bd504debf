-- Each transfer that has details or says it has, and each detail, with its transfer's digest.
SELECT coalesce(t.id, d.transfer_id), t.details_digest, d.reference, d.metadata::text
FROM transfer AS t
FULL JOIN transfer_detail AS d ON d.transfer_id = t.id
WHERE coalesce(t.shard, %(shard)s) = %(shard)s AND (t.details_digest <> 0 OR d.transfer_id IS NOT NULL)
