"""Progress on stderr: a bar on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from gateway.output import err, note

PLAIN_INTERVAL_S = 5.0
BAR_INTERVAL_S = 0.1


class Meter:
    """How far something is. Cheap enough to be told of every batch."""

    def __init__(self, title: str, bar: Progress | None, task: TaskID | None) -> None:
        self._title = title
        self._bar = bar
        self._task = task
        self._interval_s = PLAIN_INTERVAL_S if bar is None else BAR_INTERVAL_S
        self._shown_at = time.monotonic()

    def due(self) -> bool:
        return time.monotonic() - self._shown_at >= self._interval_s

    def show(self, done: float, text: str) -> None:
        """done: from 0 to 1."""
        if not self.due():
            return
        self._shown_at = time.monotonic()
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, text=text)
        else:
            note(f"{self._title}: {done:.0%}, {text}")


@contextmanager
def meter(title: str) -> Iterator[Meter]:
    if not err.is_terminal:
        yield Meter(title, None, None)
        return
    columns = (TextColumn(title), BarColumn(), TextColumn("{task.fields[text]}"), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as bar:
        yield Meter(title, bar, bar.add_task(title, total=1, text=""))
