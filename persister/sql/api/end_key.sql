-- Never later than it would end anyway.
UPDATE api_key SET expires_at = least(expires_at, %(ends_at)s) WHERE prefix = %(prefix)s
