"""What Redis users of one deployment may do: their ACL rules, as narrow as a server allows.

A function's body runs under the rules of whoever calls it, so each user needs the commands of the functions it calls.
Tests run every kind of traffic under these users, and compare each list with the commands that were really used.
"""

from __future__ import annotations

from enum import StrEnum

from engine.keys import ShardKeys
from engine.library import VERSION_KEY


class User(StrEnum):
    ENGINE = "engine"
    PERSISTER = "persister"
    READER = "reader"


_CONNECT = ("client|setinfo",)
_ASK = ("exists", "fcall_ro", "get", "hlen", "hmget", "info", "mget", "time", "xinfo|stream", "xrevrange")
_COMPARE = ("exec", "hgetall", "hscan", "multi", "scan", "xread", "zmscore")
_POST = ("fcall", "function|list", "hdel", "hget", "hset", "mset", "pexpireat", "set", "xadd", "xlen", "zadd", "zcard",
         "zrem")  # fmt: skip
_LISTEN = ("subscribe", "waitaof")
_LEAD = ("function|load", "publish", "unlink", "unwatch", "watch", "xrange", "xtrim", "zrangebyscore")

COMMANDS = {
    User.ENGINE: (*_CONNECT, *_ASK, *_POST, *_LISTEN),
    User.PERSISTER: (*_CONNECT, *_ASK, *_COMPARE, *_POST, *_LISTEN, *_LEAD),
    User.READER: (*_CONNECT, *_ASK, *_COMPARE),
}
"""By user. A persister posts too, and `hotledger` itself connects as it does, so it may all that an engine may."""


def rules(user: User, shard: int, *, config_get: bool = False) -> list[str]:
    """The rules for ACL SETUSER, besides a password; they replace what the user had before, passwords aside.

    config_get: lets it read the server's settings, its passwords included, and so say what its durability means.
    """
    keys = ShardKeys(shard)
    tag, channel = keys.tag.decode(), keys.persisted_channel.decode()
    reads_only = "%R" if user is User.READER else ""
    # The bare tag is the functions' declared key.
    patterns = [f"{reads_only}~{tag}", f"{reads_only}~{tag}:*"]
    if user is not User.ENGINE:
        patterns.append(f"{reads_only}~{VERSION_KEY}")
    channels = [] if user is User.READER else [f"&{channel}"]
    commands = sorted((*COMMANDS[user], *(("config|get",) if config_get else ())))
    return ["on", "resetkeys", "resetchannels", "clearselectors", "-@all", *patterns, *channels,
            *(f"+{command}" for command in commands)]  # fmt: skip
