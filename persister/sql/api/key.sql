-- Locked, so that two who change it take turns.
SELECT prefix, secret_hash, name, scopes, owner_id, rate_per_s, created_at, expires_at, revoked_at, rotated_from, change
FROM api_key
WHERE prefix = %(prefix)s
FOR UPDATE
