"""Whose wallets a key may see and move. What it may not see answers as what does not exist.

A key bound to an owner may debit and read that owner's wallets only; crediting another's is what a payment does. The
ledger says whose a wallet is: it never changes, so it is asked once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from engine import Engine, HoldNow, Status
from gateway.http.keyring import ApiKey
from gateway.http.ledger import POLL_S, WAIT_S, Ledger
from gateway.http.problems import Refused

MAX_KEPT = 500_000


class Access:
    """Answers for the keys of one worker."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._owners: dict[int, int] = {}

    def learn(self, wallet_id: int, owner_id: int) -> None:
        """A wallet that was just opened."""
        if len(self._owners) >= MAX_KEPT:
            self._owners.clear()
        self._owners[wallet_id] = owner_id

    async def owner_of(self, engine: Engine, wallet_id: int) -> int | None:
        """None for a wallet that was never opened. Raises Refused, Unavailable."""
        return (await self.owners_of(engine, [wallet_id]))[0]

    async def owners_of(self, engine: Engine, wallet_ids: Sequence[int]) -> list[int | None]:
        """In the order given. A wallet that is so new that the ledger lacks it is waited for. Raises as owner_of."""
        unknown = [one for one in dict.fromkeys(wallet_ids) if one not in self._owners]
        if unknown:
            await self._ask(engine, unknown)
        return [self._owners.get(one) for one in wallet_ids]

    async def _ask(self, engine: Engine, unknown: list[int]) -> None:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + WAIT_S
        while True:
            for wallet_id, owner_id in await self._ledger.rows("owners_of", wallets=unknown):
                self.learn(wallet_id, owner_id)
            unknown = [one for one in unknown if one not in self._owners]
            if not unknown:
                return
            balances = await engine.balances(unknown)
            unknown = [one for one, balance in zip(unknown, balances, strict=True) if balance is not None]
            if not unknown:
                return
            if loop.time() >= until_s:
                raise Refused("NOT_YET_IN_LEDGER", f"wallet {unknown[0]} is too new", retry_after_s=1)
            await asyncio.sleep(POLL_S)

    async def owns(self, engine: Engine, key: ApiKey, wallet_id: int) -> bool:
        """Whether the key may see the wallet."""
        return key.owner_id is None or await self.owner_of(engine, wallet_id) == key.owner_id

    async def need(self, engine: Engine, key: ApiKey, wallet_id: int, code: str, field: str | None = None) -> None:
        """Raises Refused with the code, one of 404, unless the key may see the wallet."""
        if not await self.owns(engine, key, wallet_id):
            raise Refused(code, field=field)

    async def hold(self, engine: Engine, key: ApiKey, hold_id: UUID) -> tuple[HoldNow, bool, bool]:
        """A hold that the key may see, and whether it may see its debit and its credit wallet.

        Raises Refused: HOLD_NOT_FOUND.
        """
        [found] = await engine.find_holds([hold_id])
        if found is None:
            raise Refused(Status.HOLD_NOT_FOUND)
        if key.owner_id is None:
            return found, True, True
        users = [wallet for wallet in (found.debit, found.credit) if wallet > 0]
        owned = dict(zip(users, await self.owners_of(engine, users), strict=True))
        debit, credit = (owned.get(wallet) == key.owner_id for wallet in (found.debit, found.credit))
        if not debit and not credit:
            raise Refused(Status.HOLD_NOT_FOUND)
        return found, debit, credit
