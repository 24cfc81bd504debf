"""How lists of open holds are reported: all of them, what is pending, what is under review."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from gateway.commands.options import Place
from gateway.output import age, in_words, print_json, record_json, rule_name, say, side, table
from persister.hold_queries import OpenHold


def report_open(title: str, place: Place, holds: Sequence[OpenHold], *, with_rule: bool = False) -> None:
    """The oldest first, with how long each has been open; with_rule: which fraud rule stopped it."""
    if place.as_json:
        print_json({"holds": [record_json(hold) for hold in holds]})
        return
    if not holds:
        say(f"{title}: none.")
        return
    now = datetime.now(UTC)
    columns = ("id", "for", "from", "to", "locked", "open for", "ends in", "rule" if with_rule else "reference")
    table(title, columns, [_row(hold, now, with_rule) for hold in holds])


def _row(hold: OpenHold, now: datetime, with_rule: bool) -> tuple[object, ...]:
    return (
        hold.id,
        in_words(hold.purpose),
        side(hold.debit),
        side(hold.credit),
        f"{hold.remaining_minor:,} {hold.currency}",
        age(hold.open_for_s),
        "never" if hold.expires_at is None else age((hold.expires_at - now).total_seconds()),
        rule_name(hold.rule) if with_rule else hold.reference,
    )
