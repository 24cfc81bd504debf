"""What can be asked of a shard, and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum
from typing import Any, NamedTuple
from uuid import UUID

from engine.domain.status import Status


class Kind(IntEnum):
    """What a journalled request is. Numbers go into records: they never change."""

    TRANSFER = 1
    TOP_UP = 2
    PAYMENT = 3
    WITHDRAWAL = 4
    OPEN_WALLET = 16
    END_GENERATION = 32


MOVEMENTS = frozenset({Kind.TRANSFER, Kind.TOP_UP, Kind.PAYMENT, Kind.WITHDRAWAL})
"""The kinds that move money from a debit to a credit wallet. The rule of money is the same for all of them."""

MAX_REFERENCE_CHARS = 64
MAX_METADATA_BYTES = 2048
MAX_KEY_CHARS = 255


class Transfer(NamedTuple):
    """A movement of money to be decided, for Engine.post.

    debit, credit: wallet ids; amount_minor leaves the first and reaches the second.
    key or id: the idempotency key, exactly one of them; an id is a UUID (version 7 advised).
    currency: if given, both wallets must have it.
    reference: up to 64 characters; metadata: a JSON object of up to 2 KiB; both reach the ledger.
    """

    debit: int
    credit: int
    amount_minor: int
    key: str | None = None
    id: UUID | None = None
    kind: Kind = Kind.TRANSFER
    currency: str | None = None
    reference: str | None = None
    metadata: Mapping[str, Any] | None = None


class OpenWallet(NamedTuple):
    """A wallet to be opened, for Engine.post and Engine.open_wallets.

    key and id default to one derived from wallet_id, so opening the same wallet again is a replay.
    """

    wallet_id: int
    owner_id: int
    currency: str
    overdraft_limit_minor: int = 0
    key: str | None = None
    id: UUID | None = None


Request = Transfer | OpenWallet


class Outcome(NamedTuple):
    """The answer to one request.

    status: POSTED, or why not. sequence: the journal's sequence of the request, or of the shard when it was refused.
    replayed: the id was decided before and this is that decision, with the balances of that time.
    *_available_minor: what each side had available just after the decision; 0 for a wallet that does not exist.
    For the opening of a wallet, debit is the wallet.
    """

    status: Status
    sequence: int
    replayed: bool
    debit_available_minor: int
    credit_available_minor: int
    id_bytes: bytes

    @property
    def transfer_id(self) -> UUID:
        """The id that the request was decided under: the caller's, or the one derived from its key."""
        return UUID(bytes=self.id_bytes)

    @property
    def posted(self) -> bool:
        return self.status is Status.POSTED
