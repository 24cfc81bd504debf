-- How much each check looks at.
SELECT
    (SELECT count(*) FROM wallet WHERE shard = %(shard)s AND (
        %(after)s = 0 OR id = ANY (%(wallets)b::bigint[])
    )) AS wallets,
    (SELECT count(*) FROM ledger_entry WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s) AS entries,
    (SELECT count(*) FROM journal_event WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s) AS events,
    (SELECT count(*) FROM hold WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s) AS holds,
    (SELECT count(*) FROM hold_change WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s) AS hold_changes,
    (SELECT count(*) FROM refund WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s) AS refunds,
    (SELECT count(DISTINCT sequence) FROM reconcile_run WHERE shard = %(shard)s) AS heads
