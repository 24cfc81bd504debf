-- Every key that was made or changed after a number, in that order.
SELECT prefix, secret_hash, name, scopes, owner_id, rate_per_s, created_at, expires_at, revoked_at, rotated_from, change
FROM api_key
WHERE change > %(after)s
ORDER BY change
