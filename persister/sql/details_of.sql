-- Which requests have details that are about somebody: what their wallets took part in, what was asked under their ids
-- (late duplicates of a transfer, and whatever changed a hold, included), or what bears one of the references.
WITH about AS (
    SELECT shard, sequence FROM ledger_entry
    WHERE wallet_id = ANY (%(wallets)s)
        OR wallet_id IN (SELECT id FROM wallet WHERE owner_id = ANY (%(owners)s))
    UNION
    SELECT shard, sequence FROM transfer
    WHERE id = ANY (%(ids)s)
        OR id IN (SELECT transfer_id FROM transfer_duplicate WHERE duplicate_of = ANY (%(ids)s))
        OR id IN (SELECT transfer_id FROM transfer_detail WHERE reference = ANY (%(references)s))
    UNION
    SELECT shard, sequence FROM hold_change WHERE hold_id = ANY (%(ids)s)
    UNION
    SELECT shard, sequence FROM hold_detail WHERE reference = ANY (%(references)s)
)
SELECT a.shard, a.sequence
FROM about AS a
WHERE EXISTS (SELECT FROM hold_detail AS d WHERE (d.shard, d.sequence) = (a.shard, a.sequence))
    OR EXISTS (
        SELECT FROM journal_event AS e
        JOIN transfer AS t ON t.id = e.id AND (t.shard, t.sequence) = (e.shard, e.sequence)
        JOIN transfer_detail AS d ON d.transfer_id = t.id
        WHERE (e.shard, e.sequence) = (a.shard, a.sequence)
    )
ORDER BY a.shard, a.sequence
