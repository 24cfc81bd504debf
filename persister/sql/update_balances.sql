-- Each wallet that a batch touches, from exactly what it must be before to what it is after. A row that is not as
-- the journal says stays as it is, and the caller counts.
UPDATE wallet_balance AS b
SET available = c.available, locked = c.locked, version = c.version
FROM unnest(
    %(wallet)b::bigint[], %(version_before)b::bigint[], %(available_before)b::bigint[], %(locked_before)b::bigint[],
    %(version)b::bigint[], %(available)b::bigint[], %(locked)b::bigint[]
) AS c (wallet_id, version_before, available_before, locked_before, version, available, locked)
WHERE b.wallet_id = c.wallet_id
    AND b.version = c.version_before
    AND b.available = c.available_before
    AND b.locked = c.locked_before
