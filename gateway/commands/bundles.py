"""Options that several commands share, as one parameter: a dataclass whose fields are Typer options."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import wraps
from inspect import Parameter, Signature, signature
from typing import Any, get_type_hints


def bundled(command: Callable[..., None]) -> Callable[..., None]:
    """The command as Typer shall see it: each parameter that is a bundle is replaced by the bundle's fields.

    Two bundles of one command must have no field in common.
    """
    hints = get_type_hints(command, include_extras=True)
    bundles: dict[str, Any] = {}
    own: list[Parameter] = []
    shared: list[Parameter] = []
    for name, parameter in signature(command).parameters.items():
        if is_dataclass(hints[name]):
            bundles[name] = hints[name]
            shared += _options_of(hints[name])
        else:
            own.append(parameter.replace(kind=Parameter.KEYWORD_ONLY, annotation=hints[name]))

    @wraps(command)
    def call(**given: Any) -> None:
        made = {
            name: bundle(**{field.name: given.pop(field.name) for field in fields(bundle)})
            for name, bundle in bundles.items()
        }
        command(**given, **made)

    # Typer lists them in this order.
    call.__signature__ = Signature([*own, *shared])  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *shared)}
    return call


def _options_of(bundle: Any) -> list[Parameter]:
    hints = get_type_hints(bundle, include_extras=True)
    return [
        Parameter(field.name, Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name])
        for field in fields(bundle)
    ]
