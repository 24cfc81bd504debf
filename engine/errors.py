"""The error tree. A refusal is not here: it is a value, an Outcome with a status.

HotledgerError
|-- InvalidRequest      the caller's bug, found before any I/O; names the field and the bound
|-- Unavailable         nothing was applied; safe to retry with the same id
|   |-- Overloaded      this process's own queue is full
|   |-- ShardNotOpen    the shard waits for its persister to check its history
|   `-- LedgerBacklog   Postgres is too far behind
|-- OutcomeUnknown      the deadline passed after the request was sent: look it up, or send the same id again
`-- Fatal               something is broken; a person has to look
    |-- JournalGap      the journal does not continue the ledger
    |-- HistoryMismatch Redis and Postgres do not belong together, or their histories differ
    |-- LedgerImbalance an invariant of the ledger does not hold
    |-- LibraryMismatch the server's function library is not one that this engine can use
    |-- ServerRefused   the server's version or settings cannot carry the guarantees
    `-- CorruptRecord   a key in Redis is damaged; nothing was written
"""

from __future__ import annotations

from uuid import UUID


class HotledgerError(Exception):
    """The root of everything that hotledger raises on purpose."""


class InvalidRequest(HotledgerError, ValueError):
    """A request that cannot be meant; nothing was sent.

    field: the argument's name. bound: what it may be. value: what it was.
    """

    def __init__(self, field: str, bound: str, value: object) -> None:
        shown = repr(value)
        super().__init__(f"{field} must be {bound}, not {shown if len(shown) <= 80 else shown[:77] + '...'}")
        self.field = field
        self.bound = bound
        self.value = value


class Unavailable(HotledgerError):
    """Not applied; the same id may be sent again."""


class Overloaded(Unavailable):
    """The engine's queue is full; nothing was sent."""


class ShardNotOpen(Unavailable):
    """The shard takes no payment until a persister has compared it with the ledger."""


class LedgerBacklog(Unavailable):
    """The journal holds as many records that Postgres lacks as it may."""


class OutcomeUnknown(HotledgerError):
    """The deadline passed between send and reply: the transfer may or may not have been applied. Or it was accepted,
    but is not known to be as durable as was asked.

    transfer_ids: what to look up, or to send again unchanged. accepted: it is known to be accepted, and sending it
    again waits on for its durability. what: happened, in words.
    """

    def __init__(
        self, transfer_ids: list[UUID], what: str = "no answer before the deadline", *, accepted: bool = False
    ) -> None:
        first = f"{transfer_ids[0]}" if transfer_ids else "?"
        more = f" and {len(transfer_ids) - 1} more" if len(transfer_ids) > 1 else ""
        super().__init__(f"{what} for {first}{more}: look it up or send the same id again")
        self.transfer_ids = transfer_ids
        self.accepted = accepted


class Fatal(HotledgerError):
    """Broken: retrying does not help."""


class JournalGap(Fatal):
    """A sequence, a wallet version or a hash does not continue what the ledger has."""


class HistoryMismatch(Fatal):
    """This Redis and this Postgres do not hold the same history."""


class LedgerImbalance(Fatal):
    """The journal's figures contradict the ledger's."""


class LibraryMismatch(Fatal):
    """The server's function library has another code or an unknown wire version."""


class ServerRefused(Fatal):
    """The server is too old, or its settings would lose money."""


class CorruptRecord(Fatal):
    """A record or key is damaged, missing where it must exist, or of the wrong type."""
