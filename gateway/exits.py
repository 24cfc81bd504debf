"""Exit statuses of `hotledger`, and which error ends with which. Expected errors are one line, never a traceback."""

from __future__ import annotations

from enum import IntEnum

import psycopg
import redis
from psycopg import errors

from engine.errors import Fatal, InvalidRequest, OutcomeUnknown, Unavailable
from engine.servers import redact_url
from gateway.embedded import DataDirectoryBusy, EmbeddedServerError
from gateway.replay_rows import BadRow, UnreadableFile


class Exit(IntEnum):
    """Part of the interface: scripts depend on the numbers."""

    DONE = 0
    REFUSED = 1
    USAGE = 2
    UNAVAILABLE = 3
    UNKNOWN = 4
    FATAL = 5
    UNDER_REVIEW = 6
    AMBER = 7
    RED = 8
    INTERRUPTED = 130
    TERMINATED = 143


MEANINGS = """\
0    done: posted, or reconciled without a difference
1    refused by a status, not found, or reconciliation found differences
2    wrong usage or input; the field and its bound are on stderr, nothing of it was applied
3    servers unavailable or the data directory is busy; nothing was applied, try again with the same key
4    the outcome is unknown: look it up, or send the same key again
5    fatal: something is broken and a person has to look
6    under review: a fraud rule locked the money until an operator approves or rejects it
7    doctor: something is amber
8    doctor: something is red
130  ended by Ctrl-C; what was sent is decided, send it again with the same keys to learn how
143  ended by SIGTERM, likewise"""

_STATUS_OF: tuple[tuple[tuple[type[Exception], ...], Exit], ...] = (
    ((InvalidRequest, BadRow, UnreadableFile), Exit.USAGE),
    ((OutcomeUnknown,), Exit.UNKNOWN),
    ((Fatal, errors.InsufficientPrivilege), Exit.FATAL),
    ((Unavailable, DataDirectoryBusy, EmbeddedServerError), Exit.UNAVAILABLE),
    ((psycopg.OperationalError, psycopg.InterfaceError), Exit.UNAVAILABLE),
    ((redis.ConnectionError, redis.TimeoutError), Exit.UNAVAILABLE),
)


def exit_of(error: BaseException) -> Exit | None:
    """The status that this error ends a command with; None if it is not an expected one."""
    error = cause_of(error)
    return next((status for kinds, status in _STATUS_OF if isinstance(error, kinds)), None)


def message_of(error: BaseException) -> str:
    """What to tell the user, without secrets."""
    error = cause_of(error)
    return redact_url(str(error).strip()) or type(error).__name__


def cause_of(error: BaseException) -> BaseException:
    """What to tell of: the first error of those that ended a group of tasks; the driver's error in one of SQLAlchemy's,
    which only migrations can raise and which is not imported for its name alone."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    original = getattr(error, "orig", None)
    return original if isinstance(original, Exception) else error
