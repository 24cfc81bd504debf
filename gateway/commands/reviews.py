"""What the fraud rules stopped: review list, approve, reject; declined list, offenders."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

import typer

from engine import InvalidRequest
from engine.domain.ids import ORIGIN_BYTES
from gateway.commands.bundles import bundled
from gateway.commands.calls import ask_ledger, both_sides, debit_side, send
from gateway.commands.open_holds import report_open
from gateway.commands.options import Limit, Place, WritingPlace, duration_ms, uuid_of
from gateway.output import in_words, print_json, record_json, rule_name, say, side, table, utc
from persister import declined_queries, hold_queries
from persister.declined_queries import OffenderBy, Reason

review = typer.Typer(help="Decide what a fraud rule sent to an operator.", no_args_is_help=True, rich_markup_mode=None)
declined = typer.Typer(help="Movements that were refused, and by whom.", no_args_is_help=True, rich_markup_mode=None)

_LONGEST_MS = 36_600 * 86_400_000

Since = Annotated[str, typer.Option(metavar="TIME", help="How far back: 30m, 24h, 7d.")]
ReviewId = Annotated[str, typer.Argument(metavar="REVIEW", help="The id that `review list` shows.")]


@review.command("list")
@bundled
def list_reviews(place: Place, limit: Limit = 50) -> None:
    """What waits for an operator, the oldest first.

    \b
    Example: hotledger review list
    """
    report_open("Reviews", place, ask_ledger(place, lambda ledger: hold_queries.reviews(ledger, limit)), with_rule=True)


@review.command()
@bundled
def approve(review_id: ReviewId, place: WritingPlace) -> None:
    """Let it go on: a movement happens now, a hold may be captured from now on.

    \b
    Example: hotledger review approve 0197b2a1-5c3e-7f00-8a11-000000000031
    """
    held = uuid_of(review_id, "REVIEW")
    send(place, lambda engine: engine.approve(held), {}, tell=both_sides, about=f"review {held}")


@review.command()
@bundled
def reject(
    review_id: ReviewId,
    place: WritingPlace,
    reason: Annotated[str | None, typer.Option(help="Kept in the ledger.")] = None,
) -> None:
    """Do not let it happen: the money is given back.

    \b
    Example: hotledger review reject 0197b2a1-5c3e-7f00-8a11-000000000032 --reason "stolen phone"
    """
    held = uuid_of(review_id, "REVIEW")
    send(place, lambda engine: engine.reject(held, reason=reason), {}, tell=debit_side, about=f"review {held}")


@declined.command("list")
@bundled
def list_declined(
    place: Place,
    since: Since = "24h",
    wallet_id: Annotated[
        int | None, typer.Option("--wallet", metavar="WALLET", help="Only what this wallet was to pay.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="DIGEST", help="Only from this device; its digest as `declined` shows it.")
    ] = None,
    ip: Annotated[str | None, typer.Option(metavar="DIGEST", help="Only from this IP, likewise.")] = None,
    limit: Limit = 50,
) -> None:
    """Refused movements, the newest first. Kept by best effort: a moment late, and under a flood not all of them.

    \b
    Example: hotledger declined list --since 1h --wallet 17
    """
    asked: dict[str, Any] = {"since": _ago(since), "wallet_id": wallet_id, "limit": limit}
    asked |= {"device": _digest(device, "--device"), "ip": _digest(ip, "--ip")}
    found = ask_ledger(place, lambda ledger: declined_queries.declined_attempts(ledger, **asked))
    if place.as_json:
        print_json({"declined": [record_json(one) for one in found]})
        return
    if not found:
        say("Declined: none.")
        return
    table(
        "Declined",
        ("at (UTC)", "what", "status", "rule", "from", "to", "amount", "device", "ip"),
        [
            (
                utc(one.at),
                in_words(one.kind),
                one.status,
                rule_name(one.rule),
                side(one.debit),
                side(one.credit),
                one.amount_minor,
                one.device and one.device.hex(),
                one.ip and one.ip.hex(),
            )
            for one in found
        ],
    )


@declined.command()
@bundled
def offenders(
    place: Place,
    by: Annotated[OffenderBy, typer.Option(help="What to count by.")] = OffenderBy.DEVICE,
    since: Since = "24h",
    limit: Limit = 20,
) -> None:
    """Who was refused most. Devices and IPs are keyed digests: the same one is the same device.

    \b
    Example: hotledger declined offenders --by wallet --since 7d
    """
    from_then = _ago(since)
    found = ask_ledger(place, lambda ledger: declined_queries.top_offenders(ledger, by, from_then, limit))
    if place.as_json:
        offenders = [record_json(one) | {"reasons": [record_json(reason) for reason in one.reasons]} for one in found]
        print_json({"by": by, "offenders": offenders})
        return
    if not found:
        say("Declined: none.")
        return
    table(
        f"Most often declined in the last {since}",
        (str(by), "attempts", "amount", "last (UTC)", "why"),
        [
            (one.subject, one.attempts, one.amount_minor, utc(one.last_at), ", ".join(map(_why, one.reasons)))
            for one in found
        ],
    )


def _why(reason: Reason) -> str:
    return f"{reason.attempts:,} {rule_name(reason.rule) or reason.status}"


def _ago(since: str) -> datetime:
    return datetime.now(UTC) - timedelta(milliseconds=min(duration_ms(since, "--since"), _LONGEST_MS))


def _digest(text: str | None, name: str) -> bytes | None:
    if text is None:
        return None
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != ORIGIN_BYTES:
        raise InvalidRequest(name, f"{2 * ORIGIN_BYTES} hexadecimal digits", text)
    return digest
