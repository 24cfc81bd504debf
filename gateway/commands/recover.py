"""Recovery: Redis made anew from the ledger."""

from __future__ import annotations

import resource
import sys
import time
from typing import Annotated

import typer

from gateway.commands.bundles import bundled
from gateway.commands.options import Place
from gateway.output import note, print_json, say
from gateway.progress import meter
from gateway.session import SHARD, open_servers
from persister.follower import Settings
from persister.recover import Recovered
from persister.recover import recover as run_recovery

_MIB = 1 << 20


@bundled
def recover(
    place: Place,
    discard_redis: Annotated[
        bool,
        typer.Option("--discard-redis", help="Drop what only Redis has, if it cannot be brought into the ledger."),
    ] = False,
    wait_s: Annotated[float, typer.Option(min=0, metavar="S", help="How long to wait for a persister to stop.")] = 10.0,
) -> None:
    """Rebuild Redis from the ledger: drain it, fill it anew, compare it wallet by wallet, open it.

    For a Redis that was lost or that differs from the ledger. Every persister has to be stopped. Payments wait
    meanwhile. Interrupted, run it again.

    \b
    Example: hotledger recover --redis-url redis://cache:6379 --postgres-url postgresql://ledger/hotledger
    """
    from persister.migrate import migrate as apply_migrations

    began_at = time.monotonic()
    with open_servers(place.settings) as servers, meter("Recovery") as shown:

        def progress(what: str, done: int, total: int) -> None:
            shown.show(done / total if total else 1.0, f"{what}: {done:,} of {total:,}")

        apply_migrations(servers.postgres_url)
        recovered = run_recovery(
            servers.redis_url,
            servers.postgres_url,
            Settings(shard=SHARD, digest_key=place.settings.digest_key),
            progress=progress,
            discard=discard_redis,
            wait_s=wait_s,
            waiting=lambda: note("waiting for the persister that leads the shard to stop"),
        )
    seconds, peak_bytes = time.monotonic() - began_at, _peak_bytes()
    if place.as_json:
        loaded = recovered.loaded._asdict() | {"seconds": round(recovered.loaded.seconds, 3)}
        figures = recovered._asdict() | {"loaded": loaded}
        print_json({"shard": SHARD, **figures, "seconds": round(seconds, 3), "peak_memory_bytes": peak_bytes})
    else:
        _tell(recovered, seconds, peak_bytes)


def _tell(recovered: Recovered, seconds: float, peak_bytes: int) -> None:
    loaded = recovered.loaded
    if recovered.drained:
        say(f"Drained first: {recovered.drained:,} records that only Redis had.")
    if recovered.discarded != 0:
        many = "an unknown number of" if recovered.discarded is None else f"{recovered.discarded:,}"
        say(f"DISCARDED: {many} records that only Redis had.")
    say(
        f"Rebuilt shard {SHARD} at sequence {recovered.sequence:,} as epoch {recovered.epoch}: "
        f"{loaded.wallets:,} wallets, {loaded.outcomes:,} outcomes, {loaded.holds:,} open holds, "
        f"{loaded.tiers:,} tiers."
    )
    say(f"Verified {loaded.verified:,} wallets. Open. {seconds:.1f} s, at most {peak_bytes / _MIB:.0f} MiB of memory.")


def _peak_bytes() -> int:
    """The most memory that this process had."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
