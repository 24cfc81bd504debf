-- Invariant 4, first half: the shard's sequences have no gap, from 1 to where shard_state is.
-- Of a part of the ledger that ends before it, shard_state says nothing.
WITH state AS (SELECT * FROM shard_state WHERE shard = %(shard)s AND sequence <= %(to)s),
events AS (
    SELECT sequence, lag(sequence, 1, %(after)s::bigint) OVER (ORDER BY sequence) AS before
    FROM journal_event WHERE shard = %(shard)s AND sequence > %(after)s AND sequence <= %(to)s
),
batches AS (
    SELECT
        *,
        lag(last_sequence, 1, %(after)s::bigint) OVER w AS before,
        lag(epoch, 1, 0::bigint) OVER w AS epoch_before,
        row_number() OVER (ORDER BY last_sequence DESC) AS from_the_end
    FROM journal_batch
    WHERE shard = %(shard)s AND last_sequence > %(after)s AND last_sequence <= %(to)s
    WINDOW w AS (ORDER BY last_sequence)
),
found AS (
    SELECT 'event ' || sequence AS subject, 'follows ' || before AS found, 'follows ' || sequence - 1 AS expected
    FROM events WHERE sequence <> before + 1
    UNION ALL
    SELECT 'journal entry ' || last_sequence, format('begins at %%s, epoch %%s', first_sequence, epoch),
        format('begins at %%s, epoch %%s or later', before + 1, epoch_before)
    FROM batches WHERE first_sequence <> before + 1 OR last_sequence < first_sequence OR epoch < epoch_before
    UNION ALL
    SELECT 'the last event', 'sequence ' || coalesce(max(e.sequence), %(after)s), 'sequence ' || s.sequence
    FROM state AS s LEFT JOIN events AS e ON true
    GROUP BY s.sequence
    HAVING coalesce(max(e.sequence), %(after)s) <> s.sequence
    UNION ALL
    SELECT
        'the last journal entry',
        format('sequence %%s, epoch %%s, hash %%s', b.last_sequence, b.epoch, encode(b.journal_hash, 'hex')),
        format('sequence %%s, epoch %%s, hash %%s', s.sequence, s.epoch, encode(s.journal_hash, 'hex'))
    FROM state AS s LEFT JOIN batches AS b ON b.from_the_end = 1
    WHERE s.sequence > %(after)s AND (b.last_sequence, b.journal_hash) IS DISTINCT FROM (s.sequence, s.journal_hash)
)
SELECT subject, found, expected, count(*) OVER () AS differences FROM found LIMIT %(limit)s
