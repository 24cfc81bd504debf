SELECT id, owner_id FROM wallet WHERE id = ANY (%(wallets)s) AND flags & 1 = 0
