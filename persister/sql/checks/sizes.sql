-- How much each check looks at.
SELECT
    (SELECT count(*) FROM wallet WHERE shard = %(shard)s) AS wallets,
    (SELECT count(*) FROM transfer WHERE shard = %(shard)s) AS transfers,
    (SELECT count(*) FROM ledger_entry WHERE shard = %(shard)s) AS entries,
    (SELECT count(*) FROM journal_event WHERE shard = %(shard)s) AS events,
    (SELECT count(*) FROM journal_batch WHERE shard = %(shard)s) AS batches,
    (SELECT count(*) FROM hold WHERE shard = %(shard)s) AS holds,
    (SELECT count(*) FROM hold_change WHERE shard = %(shard)s) AS hold_changes,
    (SELECT count(*) FROM refund WHERE shard = %(shard)s) AS refunds,
    (SELECT sequence FROM shard_state WHERE shard = %(shard)s) AS sequence,
    (SELECT encode(chain, 'hex') FROM shard_state WHERE shard = %(shard)s) AS chain
