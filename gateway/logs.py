"""Logs: to stderr, so that stdout stays the command's answer; for people or, one object a line, for programs.

HOTLEDGER_LOG_LEVEL: debug, info, warning or error. HOTLEDGER_LOG_FORMAT: console or json.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any

import orjson
import structlog

from engine.errors import InvalidRequest
from engine.servers import redact_url

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
FORMATS = ("console", "json")


def configure_logs(default_level: str = "warning") -> None:
    """Set up structlog for this process. Raises InvalidRequest if the environment names no level or format."""
    level = os.environ.get("HOTLEDGER_LOG_LEVEL", default_level).lower()
    if level not in LEVELS:
        raise InvalidRequest("HOTLEDGER_LOG_LEVEL", f"one of {', '.join(LEVELS)}", level)
    form = os.environ.get("HOTLEDGER_LOG_FORMAT", "console")
    if form not in FORMATS:
        raise InvalidRequest("HOTLEDGER_LOG_FORMAT", f"one of {', '.join(FORMATS)}", form)
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            hide_secrets,
            _line if form == "json" else structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def hide_secrets(_: Any, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """A structlog processor: passwords in URLs never reach a log, whoever forgot to hide them."""
    for name, value in event.items():
        if isinstance(value, str) and ("://" in value or "password" in value):
            event[name] = redact_url(value)
    return event


def _line(_: Any, __: str, event: structlog.typing.EventDict) -> str:
    return orjson.dumps(event, default=str).decode()
