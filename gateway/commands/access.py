"""Who may do what on the servers."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import Annotated

import typer

from engine import InvalidRequest
from engine.domain.wallet import MAX_SHARD
from gateway.acl import User, rules
from gateway.output import note, print_json

PASSWORD_VARIABLE = "HOTLEDGER_ACL_PASSWORD"  # noqa: S105  its name
MIN_PASSWORD_CHARS = 16


def acl(
    role: Annotated[User, typer.Argument(help="What the user is for.")],
    user: Annotated[str | None, typer.Option(help="Its name; hotledger-ROLE by default.")] = None,
    shard: Annotated[int, typer.Option(min=0, max=MAX_SHARD, help="Whose keys.")] = 0,
    config_get: Annotated[
        bool, typer.Option("--config-get", help="Let it read the server's settings, secrets among them.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, on the last line of stdout.")] = False,
) -> None:
    """Print the ACL rules of a Redis user that can do its work and nothing else.

    engine: programs that make payments. persister: `hotledger persist`, and this program's other commands.
    reader: reconciliation and reports. The password is taken from HOTLEDGER_ACL_PASSWORD and printed as a hash; without
    it the user keeps the passwords that it has. Rules are not replicated: give them to each node.

    \b
    Example: hotledger acl engine --shard 0
    """
    name = user or f"hotledger-{role.value}"
    if not name.isprintable() or any(char.isspace() for char in name):
        raise InvalidRequest("--user", "a name without spaces", name)
    given = rules(role, shard, config_get=config_get)
    password = os.environ.get(PASSWORD_VARIABLE)
    if password is not None:
        if len(password) < MIN_PASSWORD_CHARS:
            raise InvalidRequest(PASSWORD_VARIABLE, f"{MIN_PASSWORD_CHARS} characters or more", f"{len(password)}")
        given[1:1] = ["resetpass", f"#{sha256(password.encode()).hexdigest()}"]
    if as_json:
        print_json({"user": name, "rules": given})
        return
    typer.echo(" ".join(("ACL SETUSER", name, *given)))
    if password is None:
        note(f"No password in {PASSWORD_VARIABLE}: a new user cannot log in before it gets one.")
