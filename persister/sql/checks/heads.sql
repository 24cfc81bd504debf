-- What earlier reconciliations noted of the sha256 chain is still true: nobody wrote the ledger anew, or cut its end.
SELECT
    'journal entry ' || r.sequence AS subject,
    coalesce('chain ' || encode(b.chain, 'hex'), 'no journal entry') AS found,
    format('chain %%s, noted at %%s', encode(r.chain, 'hex'), min(r.began_at)) AS expected,
    count(*) OVER () AS differences
FROM reconcile_run AS r
LEFT JOIN journal_batch AS b ON b.shard = r.shard AND b.last_sequence = r.sequence
WHERE r.shard = %(shard)s AND r.sequence > 0 AND b.chain IS DISTINCT FROM r.chain
GROUP BY r.sequence, r.chain, b.chain
ORDER BY r.sequence
LIMIT %(limit)s
