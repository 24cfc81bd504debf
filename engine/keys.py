"""The only key builder. Lua derives the same keys from the hash tag, in lua/lib/keys.lua; a test compares them."""

from __future__ import annotations

import struct

_WALLET_ID = struct.Struct("<q")


class ShardKeys:
    """The keys of one shard: all carry its hash tag, so all live in one slot of a cluster."""

    def __init__(self, shard: int) -> None:
        self.tag = b"{s%d}" % shard
        self.meta = self.tag + b":meta"
        self.journal = self.tag + b":journal"
        self.touch = self.tag + b":touch"
        self.holds = self.tag + b":holds"
        self.due = self.tag + b":due"
        self.tiers = self.tag + b":tiers"
        self.declined = self.tag + b":declined"
        self.loading = self.tag + b":loading"
        self.persisted_channel = self.tag + b":persisted"

    def wallet(self, wallet_id: int) -> bytes:
        """The wallet's record; the id is 8 raw little-endian bytes, as it is on the wire."""
        return self.tag + b":w:" + _WALLET_ID.pack(wallet_id)

    def known_devices(self, wallet_id: int) -> bytes:
        return self.tag + b":known:" + _WALLET_ID.pack(wallet_id)

    def idempotency(self, generation: int) -> bytes:
        return self.tag + b":idem:%d" % generation

    def resolved_holds(self, generation: int) -> bytes:
        return self.tag + b":resolved:%d" % generation

    def refunded(self, generation: int) -> bytes:
        return self.tag + b":refunded:%d" % generation

    def attempts(self, day: int) -> bytes:
        """day: since 1970, UTC."""
        return self.tag + b":attempts:%d" % day
