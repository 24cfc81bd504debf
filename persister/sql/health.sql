-- What an operator should know of a shard's ledger at a glance. overdue: open holds whose time was over a minute ago.
-- waiting: top-ups and withdrawals that have waited for their provider for more than a day. duplicates: transfers that
-- were paid twice under one id (transfer_duplicate) and of which nobody took that much back.
SELECT
    current_setting('server_version') AS version,
    (SELECT max(version_num) FROM alembic_version) AS revision,
    EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = %(leader)s AND objid = %(shard)s::int::oid
        AND granted AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS leader,
    EXISTS (SELECT FROM pg_locks WHERE locktype = 'advisory' AND classid = %(reconciler)s
        AND objid = %(shard)s::int::oid AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())) AS reconciler,
    (SELECT extract(epoch FROM clock_timestamp() - persisted_at)::float8 FROM shard_state WHERE shard = %(shard)s)
        AS idle_s,
    (SELECT count(*) FROM open_hold
        WHERE shard = %(shard)s AND expires_at_ms > 0
            AND expires_at_ms < (extract(epoch FROM clock_timestamp()) - 60) * 1000) AS overdue,
    (SELECT count(*) FROM open_hold
        WHERE shard = %(shard)s AND purpose IN (2, 4) AND review = 0 AND at < clock_timestamp() - interval '1 day')
        AS waiting,
    (SELECT count(*)
        FROM transfer_duplicate AS d JOIN transfer AS t ON t.id = d.transfer_id
        WHERE d.shard = %(shard)s
            AND t.amount > (SELECT coalesce(sum(r.amount), 0) FROM refund AS r
                WHERE r.original_id IN (d.duplicate_of, d.transfer_id))) AS duplicates
