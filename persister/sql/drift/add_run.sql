INSERT INTO reconcile_run (
    shard, kind, began_at, seconds, after_sequence, sequence, chain, checked, differences, incomplete
)
VALUES (
    %(shard)s, %(kind)s, clock_timestamp() - make_interval(secs => %(seconds)s), %(seconds)s, %(after)s, %(sequence)s,
    %(chain)s, %(checked)s, %(differences)s, %(incomplete)s
)
