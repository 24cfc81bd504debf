"""Valkey as an embedded server: how it is told to be durable, where it listens, and when it answers.

The life of the process (start, stop, orphans) is embedded.py's; every setting of the server is here.
"""

import socket
import subprocess
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

SOCKET_NAME = "valkey.sock"
ANSWER_TIMEOUT_S = 1.0

SETTINGS = {
    # Reached through one unix socket in a private directory, so no password and no port.
    "port": "0",
    "unixsocketperm": "700",
    "enable-debug-command": "no",
    "enable-module-command": "no",
    # A reply is sent only after its write is on disk.
    "appendonly": "yes",
    "appendfsync": "always",
    "no-appendfsync-on-rewrite": "no",  # "yes" would stop the fsync while the file is rewritten
    "aof-load-truncated": "yes",  # a torn last write was never acknowledged, so it may go
    # Trimmed journal entries stay in the file until it is rewritten; a small file is not worth the fork.
    "auto-aof-rewrite-percentage": "100",
    "auto-aof-rewrite-min-size": "128mb",
    "save": "",  # the append-only file is the only copy; a second one would cost a fork for nothing
    # Money is refused, never forgotten, when memory is full.
    "maxmemory-policy": "noeviction",
    "daemonize": "no",
}


def launch(spawn: Callable[..., subprocess.Popen[bytes]], binary: Path, home: Path, run_dir: Path) -> None:
    """Start the server on the files in home, which is made if need be, with its socket in run_dir.

    spawn: called with the argument list. Raises OSError if the binary cannot be run.
    """
    home.mkdir(mode=0o700, exist_ok=True)
    settings = SETTINGS | {"dir": str(home), "unixsocket": str(run_dir / SOCKET_NAME)}
    spawn([str(binary), *(word for name, value in settings.items() for word in (f"--{name}", value))])


def url(run_dir: Path) -> str:
    """The server's address in the form that redis-py's from_url takes."""
    return f"unix://{quote(str(run_dir / SOCKET_NAME))}"


def answers(run_dir: Path) -> bool:
    """True once commands are served; while the append-only file is read the reply is LOADING, not PONG."""
    with socket.socket(socket.AF_UNIX) as connection, suppress(OSError):
        connection.settimeout(ANSWER_TIMEOUT_S)
        connection.connect(str(run_dir / SOCKET_NAME))
        connection.sendall(b"PING\r\n")
        return connection.recv(64) == b"+PONG\r\n"
    return False
