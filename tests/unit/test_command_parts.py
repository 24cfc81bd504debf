"""What commands are made of: times as people write and read them, and options in bundles."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from inspect import signature
from typing import Annotated

import pytest
import typer

from engine import Fatal, InvalidRequest
from gateway.commands.bundles import bundled
from gateway.commands.options import duration_ms, expiry_ms
from gateway.exits import Exit, exit_of, message_of
from gateway.output import age, side, utc


@pytest.mark.parametrize(
    ("text", "ms"), [("1ms", 1), ("90s", 90_000), ("15m", 900_000), ("24h", 86_400_000), ("7d", 604_800_000), ("0s", 0)]
)
def test_times_as_people_write_them(text: str, ms: int) -> None:
    assert duration_ms(text, "--since") == expiry_ms(text) == ms


@pytest.mark.parametrize("text", ["", "7", "d", "-1d", "1.5h", "1 h", "1w", "7d\n", "1234567890123s", "٣s"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(InvalidRequest, match="--since must be a number and"):
        duration_ms(text, "--since")


def test_never_is_a_time_for_holds_only() -> None:
    assert expiry_ms("never") is None
    with pytest.raises(InvalidRequest):
        duration_ms("never", "--since")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-5, "0s"), (0.4, "0s"), (59.6, "1m"), (61, "1m 1s"), (3600, "1h"), (3661, "1h 1m"), (90_000, "1d 1h")],
)
def test_times_as_people_read_them(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_moments_and_wallets() -> None:
    assert utc(None) is None
    assert utc(0) == utc(datetime(1970, 1, 1, tzinfo=UTC)) == "1970-01-01 00:00:00"
    assert (side(17), side(-98902509891813376)) == ("17", "outside")


def test_an_error_in_a_task_is_told_as_itself() -> None:
    group = ExceptionGroup("tasks", [ExceptionGroup("more", [Fatal("broken")]), ValueError("cancelled by it")])
    assert exit_of(group) is Exit.FATAL
    assert message_of(group) == "broken"
    assert exit_of(ValueError()) is None


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(help="w")] = 1
    height: Annotated[int, typer.Option(help="h")] = 2


def test_a_bundle_is_its_fields_to_typer_and_one_value_to_the_command() -> None:
    called: list[object] = []

    @bundled
    def draw(name: str, size: Size, bold: bool = False) -> None:
        """Draws."""
        called.append((name, size, bold))

    assert list(signature(draw).parameters) == ["name", "bold", "width", "height"]
    assert draw.__doc__ == "Draws."
    draw(name="x", width=3, height=2, bold=True)
    assert called == [("x", Size(3, 2), True)]
