"""The OpenAPI 3.1 document, made from the route table and the types that requests are checked with."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import msgspec
import orjson

from gateway.http import types as t
from gateway.http.call import JSON
from gateway.http.problems import OWN
from gateway.http.routes import OPERATIONS, Operation, Who

_REF = "#/components/schemas/{name}"
_PATH_PARAMETERS = {
    "wallet_id": {"type": "integer", "minimum": 1, "maximum": 2**63 - 1},
    "tier": {"type": "integer", "minimum": 0, "maximum": 2**16 - 1},
    "id": {"type": "string", "format": "uuid"},
}
_MEANING = {
    200: "Done", 201: "Posted", 202: "Under review: a hold until an operator approves or rejects it",
    402: "Not enough money", 409: "A refusal by the state of things", 412: "The request's own condition failed",
    422: "The key was used with other content, or the content can never be accepted",
    404: "Not found, or not visible for this key",
}  # fmt: skip


def document() -> dict[str, Any]:
    """As JSON values."""
    types = {one for operation in OPERATIONS for one in (operation.body, operation.answer) if one} | {t.Problem}
    _, schemas = msgspec.json.schema_components(sorted(types, key=lambda one: one.__name__), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "hotledger",
            "version": "1",
            "description": "Wallets, payments and the ledger. Amounts are integers in minor units.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "hl_<prefix>_<secret>"}},
        },
    }


@cache
def document_json() -> bytes:
    return orjson.dumps(document())


def _operation(operation: Operation) -> dict[str, Any]:
    made: dict[str, Any] = {
        "operationId": operation.id,
        "summary": operation.summary,
        "description": _description(operation),
        "parameters": [*_path_parameters(operation), *_headers(operation), *_query(operation)],
        "responses": _responses(operation),
    }
    if operation.who is not Who.ANYBODY:
        made["security"] = [{"key": []}]
    if operation.body is not None:
        needed = any(field.required for field in msgspec.structs.fields(operation.body))
        made["requestBody"] = {
            "required": needed,
            "content": {JSON: {"schema": {"$ref": _REF.format(name=operation.body.__name__)}}},
        }
    return made


def _description(operation: Operation) -> str:
    doc = (operation.body or operation.answer or t.Body).__doc__ or ""
    if operation.who is Who.ANYBODY:
        return f"{doc}\n\nNeeds no key."
    bound = "" if operation.who is Who.OWNERS else ", not bound to an owner"
    return f"{doc}\n\nNeeds a key with the scope {operation.scope}{bound}."


def _path_parameters(operation: Operation) -> list[dict[str, Any]]:
    names = re.findall(r"{(\w+)}", operation.path)
    return [{"name": name, "in": "path", "required": True, "schema": _PATH_PARAMETERS[name]} for name in names]


def _headers(operation: Operation) -> list[dict[str, Any]]:
    found = []
    if operation.needs_id or operation.may_have_id:
        found.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": operation.needs_id,
                "description": "The same request under the same key happens once; a repetition gets the first answer.",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255},
            }
        )
    if operation.writes:
        found.append(
            {
                "name": "Prefer",
                "in": "header",
                "required": False,
                "description": "durability=accepted, durability=replicated or durability=persisted",
                "schema": {"type": "string", "pattern": "^durability=(accepted|replicated|persisted)$"},
            }
        )
    return found


def _query(operation: Operation) -> list[dict[str, Any]]:
    if operation.query is None:
        return []
    _, schemas = msgspec.json.schema_components([operation.query], ref_template=_REF)
    schema = schemas[operation.query.__name__]
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": _never_null(of_field)}
        for name, of_field in schema["properties"].items()
    ]


def _never_null(schema: dict[str, Any]) -> dict[str, Any]:
    """A parameter is absent where a field would be null."""
    others = [one for one in schema.get("anyOf", ()) if one != {"type": "null"}]
    return others[0] if len(others) == 1 else {name: value for name, value in schema.items() if name != "default"}


def _responses(operation: Operation) -> dict[str, Any]:
    headers: dict[str, Any] = {"X-Request-Id": {"schema": {"type": "string"}}}
    if operation.writes:
        headers["Idempotent-Replayed"] = {"schema": {"type": "string", "enum": ["true"]}}
    found: dict[str, Any] = {}
    for status in operation.success:
        schema = {"$ref": _REF.format(name=operation.answer.__name__)} if operation.answer else {}
        content = {one: {"schema": schema if one == JSON else {"type": "string"}} for one in operation.content_types}
        found[str(status)] = {"description": _MEANING.get(status, "Not ready"), "headers": headers, "content": content}
    for status in sorted(refusals(operation)):
        codes = ", ".join(code for code, own in OWN.items() if own.http == status)
        found[str(status)] = {
            "description": ": ".join(filter(None, (_MEANING.get(status, ""), codes))),
            "headers": headers,
            "content": {"application/problem+json": {"schema": {"$ref": _REF.format(name="Problem")}}},
        }
    return found


def refusals(operation: Operation) -> set[int]:
    """The HTTP statuses of an operation's problems."""
    found = {400, 500, *operation.refusals}
    if operation.who is not Who.ANYBODY:
        found |= {401, 403, 429, 503}
    if operation.path.count("{"):
        found.add(404)
    if operation.body is not None:
        found |= {408, 413, 415}
    if operation.writes:
        found.add(504)
    return found
