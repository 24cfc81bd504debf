"""The operations around the others: health, metrics, the OpenAPI document and its page. All but metrics
need no key."""

from __future__ import annotations

from importlib.resources import files

from engine import Unavailable
from gateway.http import types as t
from gateway.http.call import Answer, Call


async def live(_: Call, __: None) -> Answer:
    return Answer(200, t.HealthAnswer(status="ok"))


async def ready(call: Call, _: None) -> Answer:
    """Ready is: a payment would work."""
    try:
        found = call.service.is_ready(await call.service.shard_now())
    except Unavailable:
        found = "Redis cannot be reached"
    return Answer(503 if found else 200, t.HealthAnswer(status=found or "ok"))


async def metrics(call: Call, _: None) -> Answer:
    return Answer(200, await call.service.metrics(), content_type="text/plain; version=0.0.4")


async def openapi(_: Call, __: None) -> Answer:
    from gateway.http.openapi import document_json  # it needs the route table, which needs this

    return Answer(200, document_json())


async def docs(_: Call, __: None) -> Answer:
    page = files("gateway.http").joinpath("docs.html").read_bytes()
    return Answer(200, page, content_type="text/html; charset=utf-8")
