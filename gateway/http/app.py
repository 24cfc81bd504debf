"""One worker's application: every request goes the same way through the route table's checks.

A request is refused as early as it can be: address and method, key, scope, rate, then its size, form and fields; only
then is anybody asked. What is wrong with it is answered as a problem (problems.py), never as a traceback.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any
from urllib.parse import parse_qsl

import falcon
import falcon.asgi
import msgspec
import structlog

from engine.domain.transfer import MAX_KEY_CHARS
from engine.domain.wallet import MAX_TIER, MAX_WALLET_ID
from engine.errors import InvalidRequest
from gateway.http import metrics
from gateway.http.call import Call
from gateway.http.keyring import ApiKey
from gateway.http.problems import Refused, RefusedByStatus, invalid, refusal_of, unreadable
from gateway.http.routes import OPERATIONS, Operation, Who
from gateway.http.service import Service, Settings
from gateway.http.types import BatchAnswer
from gateway.logs import configure_logs

MAX_BODY_BYTES = 64 * 1024
MAX_BATCH_BODY_BYTES = 4 * 1024 * 1024
BODY_TIMEOUT_S = 10.0
MAX_QUERY_FIELDS = 20
PROBLEM = "application/problem+json"

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}\Z")
_DURABILITY = re.compile(rb"(?:^|[,;\s])durability=\"?([a-z]*)")
_LEVELS = frozenset({b"accepted", b"replicated", b"persisted"})
_CONVERTERS = {
    "{wallet_id}": f"{{wallet_id:int(min=1, max={MAX_WALLET_ID})}}",
    "{tier}": f"{{tier:int(min=0, max={MAX_TIER})}}",
    "{id}": "{id:uuid}",
}
_NOBODY: Any = None
_PROCESS = secrets.token_hex(6)
_REQUESTS = itertools.count(1)

log = structlog.get_logger(__name__)
Responder = Callable[..., Coroutine[Any, Any, None]]


class Endpoint:
    """A resource for falcon: one responder for each method that the path has."""


class Door:
    """Turns operations into responders."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._encode = msgspec.json.Encoder().encode
        self._patience = Patience()
        self._counters: dict[str, Any] = {}

    def responder(self, operation: Operation) -> Responder:
        service, encode, patience, count = self._service, self._encode, self._patience, self._count
        handler, scope, body_type = operation.handler, operation.scope, operation.body
        decode = msgspec.json.Decoder(body_type).decode if body_type else None
        most = MAX_BATCH_BODY_BYTES if operation.id == "postBatch" else MAX_BODY_BYTES
        open_to_all, operators = operation.who is Who.ANYBODY, operation.who is Who.OPERATORS
        asks_id = operation.needs_id or operation.may_have_id
        observe = metrics.SECONDS.labels(operation.id).observe
        counters: dict[int, Any] = {}

        async def respond(req: Any, resp: Any, **params: Any) -> None:
            began = time.perf_counter()
            headers: dict[bytes, bytes] = dict(req.scope["headers"])
            request_id = _request_id(headers.get(b"x-request-id"))
            resp.set_header("X-Request-Id", request_id)
            key: ApiKey | None = None
            code = ""
            try:
                if not open_to_all:
                    key = service.keyring.find(_text(headers.get(b"authorization")))
                    service.keyring.spend(key, 1)
                    if scope not in key.scopes:
                        raise Refused("FORBIDDEN", f"the key lacks the scope {scope}")
                    if operators and key.owner_id is not None:
                        raise Refused("FORBIDDEN", "the key is bound to an owner, and this is for operators")
                query = _query(operation, req.scope["query_string"])
                id_key = _id_key(operation, headers.get(b"idempotency-key")) if asks_id else None
                durable = _durable(headers.get(b"prefer")) if operation.writes else {}
                body = None
                if decode is not None:
                    body = _decoded(decode, await _read(req, headers, most, patience))
                    if operation.id == "postBatch" and len(body.transfers) > 1 and key is not None:
                        service.keyring.spend(key, len(body.transfers) - 1)
                call = Call(service, key or _NOBODY, request_id, params, query, id_key, durable)
                answer = await handler(call, body)
                resp.status = answer.status
                resp.content_type = answer.content_type
                resp.data = answer.body if type(answer.body) is bytes else encode(answer.body)
                if answer.replayed:
                    resp.set_header("Idempotent-Replayed", "true")
                if durable:
                    resp.set_header("Preference-Applied", f"durability={durable['durability']}")
                if operation.writes:
                    if type(answer.body) is BatchAnswer:
                        for result in answer.body.results:
                            count(result.status)
                    else:
                        count(getattr(answer.body, "status", "POSTED"))
            except Exception as error:
                refused = refusal_of(error)
                if refused is None:
                    log.error("http.bug", operation=operation.id, request_id=request_id, exc_info=error)
                    refused = Refused("INTERNAL")
                elif refused.code == "BROKEN":
                    log.error("http.broken", operation=operation.id, request_id=request_id, error=str(error))
                code = refused.code
                self._refuse(resp, refused, request_id)
                if operation.writes:
                    count(code)
            status = resp.status
            counter = counters.get(status)
            if counter is None:
                counter = counters[status] = metrics.REQUESTS.labels(operation.id, str(status))
            counter.inc()
            seconds = time.perf_counter() - began
            observe(seconds)
            if service.settings.log_requests:
                log.info(
                    "http.request",
                    operation=operation.id,
                    request_id=request_id,
                    status=status,
                    code=code or None,
                    key=key.prefix if key else None,
                    ms=round(seconds * 1000, 2),
                )

        return respond

    def _count(self, code: str) -> None:
        counter = self._counters.get(code)
        if counter is None:
            counter = self._counters[code] = metrics.OUTCOMES.labels(code)
        counter.inc()

    def _refuse(self, resp: Any, refused: Refused, request_id: str) -> None:
        resp.status = refused.http
        resp.content_type = PROBLEM
        resp.data = self._encode(refused.problem(request_id))
        if refused.retry_after_s is not None:
            resp.set_header("Retry-After", str(refused.retry_after_s))
        if refused.http == 401:
            resp.set_header("WWW-Authenticate", 'Bearer realm="hotledger"')
        if isinstance(refused, RefusedByStatus) and refused.outcome.replayed:
            resp.set_header("Idempotent-Replayed", "true")

    async def refuse_http(self, req: Any, resp: Any, error: falcon.HTTPError, _: Any) -> None:
        """What falcon itself refuses: an unknown address or method, a header that is none."""
        request_id = _request_id(dict(req.scope["headers"]).get(b"x-request-id"))
        resp.set_header("X-Request-Id", request_id)
        refused = Refused({404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "INVALID_REQUEST"))
        for name, value in dict(error.headers or {}).items():
            resp.set_header(name, value)
        self._refuse(resp, refused, request_id)
        metrics.REQUESTS.labels("none", str(refused.http)).inc()

    async def refuse_bug(self, _: Any, resp: Any, error: Exception, __: Any) -> None:
        log.error("http.bug", operation="none", exc_info=error)
        self._refuse(resp, Refused("INTERNAL"), _request_id(None))


def _request_id(given: bytes | None) -> str:
    """The caller's own if it is a plain word, so that it can be found in the caller's logs too."""
    if given is not None and _REQUEST_ID.match(given):
        return given.decode()
    return f"{_PROCESS}-{next(_REQUESTS):x}"


def _text(header: bytes | None) -> str | None:
    return None if header is None else header.decode("latin-1")


def _id_key(operation: Operation, header: bytes | None) -> str | None:
    """The Idempotency-Key: any text of 1 to 255 characters in UTF-8."""
    if header is None:
        if operation.needs_id:
            raise invalid("Idempotency-Key", f"given: text of 1 to {MAX_KEY_CHARS} characters")
        return None
    try:
        found = header.decode()
    except UnicodeDecodeError:
        raise invalid("Idempotency-Key", "text in UTF-8") from None
    if not 1 <= len(found) <= MAX_KEY_CHARS:
        raise invalid("Idempotency-Key", f"text of 1 to {MAX_KEY_CHARS} characters")
    return found


def _durable(prefer: bytes | None) -> dict[str, Any]:
    """The durability that a Prefer header asks for; other preferences are ignored, as they should be."""
    found = _DURABILITY.search(prefer) if prefer else None
    if found is None:
        return {}
    if found[1] not in _LEVELS:
        raise invalid("Prefer", "durability=accepted, replicated or persisted")
    return {"durability": found[1].decode()}


def _query(operation: Operation, packed: bytes) -> Any:
    if operation.query is None and not packed:
        return None
    try:
        pairs = parse_qsl(
            packed.decode("ascii"),
            keep_blank_values=True,
            errors="strict",
            max_num_fields=MAX_QUERY_FIELDS,
        )
    except ValueError:  # of UTF-8 too
        raise invalid("query", f"at most {MAX_QUERY_FIELDS} parameters in UTF-8") from None
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise invalid("query", "without a parameter that comes twice")
    if operation.query is None:
        if fields:
            raise invalid(next(iter(fields))[:80], "absent: this operation has no parameters")
        return None
    try:
        return msgspec.convert(fields, operation.query, strict=False)
    except msgspec.ValidationError as error:
        raise unreadable(error, "query") from None


class Patience:
    """Ends the reading of bodies that do not arrive. One timer looks at all: a timer for each would cost every request,
    of which nearly all have their body at once."""

    def __init__(self, timeout_s: float = BODY_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._late: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, reading: Awaitable[bytes]) -> bytes:
        """What is read. Raises Refused: REQUEST_TIMEOUT."""
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        self._reading[task] = loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = loop.call_later(1.0, self._look, loop)
        try:
            return await reading
        except asyncio.CancelledError:
            if task not in self._late:
                raise
            task.uncancel()
            raise Refused("REQUEST_TIMEOUT") from None
        finally:
            del self._reading[task]
            self._late.discard(task)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now_s = loop.time()
        for task, until_s in self._reading.items():
            if until_s <= now_s:
                self._late.add(task)
                task.cancel()
        self._timer = loop.call_later(1.0, self._look, loop) if self._reading else None


async def _read(req: Any, headers: dict[bytes, bytes], most: int, patience: Patience) -> bytes:
    length = headers.get(b"content-length")
    if length is not None and (not length.isdigit() or len(length) > 12):
        raise invalid("Content-Length", "a number of bytes")
    if length is not None and int(length) > most:
        raise Refused("TOO_LARGE", f"at most {most} bytes")
    if length == b"0":
        return b""
    if length is not None or b"transfer-encoding" in headers:
        kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
        if kind != b"application/json":
            raise Refused("UNSUPPORTED_MEDIA_TYPE")
    found: bytes = await patience.wait(req.stream.read(most + 1))
    if len(found) > most:
        raise Refused("TOO_LARGE", f"at most {most} bytes")
    return found


def _decoded(decode: Callable[[bytes], Any], packed: bytes) -> Any:
    try:
        return decode(packed or b"{}")
    except msgspec.MsgspecError as error:
        raise unreadable(error, "body") from None
    except (UnicodeDecodeError, RecursionError):
        raise invalid("body", "JSON in UTF-8 that is not nested too deep") from None


def make_app(service: Service) -> falcon.asgi.App[Any, Any]:
    """The application; its service starts and ends with it."""

    class Lifespan:
        async def process_startup(self, _: Any, __: Any) -> None:
            await service.start()

        async def process_shutdown(self, _: Any, __: Any) -> None:
            await service.close()

    app: falcon.asgi.App[Any, Any] = falcon.asgi.App(middleware=[Lifespan()])
    door = Door(service)
    app.add_error_handler(Exception, door.refuse_bug)
    app.add_error_handler(falcon.HTTPError, door.refuse_http)
    endpoints: dict[str, Endpoint] = {}
    for operation in OPERATIONS:
        endpoint = endpoints.setdefault(operation.path, Endpoint())
        setattr(endpoint, f"on_{operation.method.lower()}", door.responder(operation))
    for path, endpoint in endpoints.items():
        for name, converter in _CONVERTERS.items():
            path = path.replace(name, converter)
        app.add_route(path, endpoint)
    return app


def settings_of_environment() -> Settings:
    """What `hotledger serve` left for its workers. Raises InvalidRequest."""
    environment = os.environ
    digest_key = environment.get("HOTLEDGER_DIGEST_KEY")
    try:
        return Settings(
            environment["HOTLEDGER_REDIS_URL"],
            environment["HOTLEDGER_POSTGRES_URL"],
            digest_key.encode() if digest_key else None,
            int(environment.get("SERVE_TIMEOUT_MS", "5000")),
            environment.get("SERVE_LOG_REQUESTS") == "1",
        )
    except (KeyError, ValueError) as error:
        raise InvalidRequest("environment", "as `hotledger serve` sets it", str(error)) from error


def worker() -> Any:
    """The factory that the server calls in each worker process."""
    configure_logs("info")
    app: Any = None
    settings = settings_of_environment()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        nonlocal app
        if app is None:  # in the event loop, which the service needs
            app = make_app(Service(settings))
        await app(scope, receive, send)

    return application
