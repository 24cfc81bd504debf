UPDATE api_key SET revoked_at = now() WHERE prefix = %(prefix)s
