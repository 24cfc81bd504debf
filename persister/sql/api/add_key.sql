INSERT INTO api_key (prefix, secret_hash, name, scopes, owner_id, rate_per_s, expires_at, rotated_from)
VALUES (
    %(prefix)s, %(secret_hash)s, %(name)s, %(scopes)s, %(owner_id)s, %(rate_per_s)s, %(expires_at)s, %(rotated_from)s
)
