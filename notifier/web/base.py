"""What every answer has in common: the envelope, who may call, ETags, pages and repeated requests.

A handler's verb is a function with an `operation`, which says what comes in and what goes out; the same words check
the request, shape the answer and become the OpenAPI document. By the time the verb runs, the token is known to
suffice, ``self.params`` holds the checked query, ``self.body`` the checked body, and ids in the path are integers.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial, wraps
from random import getrandbits
from types import TracebackType
from typing import Any, ClassVar, TypeVar

import orjson
import structlog
import tornado.web
from marshmallow import Schema
from prometheus_client import Counter, Histogram
from tornado.httputil import HTTPHeaders, HTTPServerRequest

from notifier import errors, telemetry
from notifier.models import INT64_MAX
from notifier.storage import idempotency
from notifier.storage.database import Connection, Db, Pool, transaction
from notifier.storage.installation import Hold
from notifier.web import schemas
from notifier.web.addresses import Network, PublicUrl, client_of, network_of
from notifier.web.budgets import FAILURES_MAX, Budget, Busy, LargeBodies, LogLimit
from notifier.web.problems import (
    BadRequest,
    Encoded,
    Forbidden,
    Misdirected,
    TooLarge,
    TooMany,
    Unauthorized,
    problem_of,
)
from notifier.web.showing import show

SMALL_BODY = 64 * 1024
"""Bytes that are read before anybody asks whose they are: as much as a head may have."""
BODY = 1024 * 1024
LARGEST_BODY = 8 * 1024 * 1024
LARGE = 64 * 1024
"""Bytes of JSON from which on a thread parses it, so that the loop goes on (8 MB take 0.2 s)."""
PATH_SHOWN, PART_MAX = 200, 1024
"""Characters of a path that are logged, and that one part of it may have: no name here is longer."""
RETRY_AFTER = 2
"""Seconds after which a client may try again while the database is unavailable."""
INT32_MAX = 2**31 - 1

PUBLIC = ""
"""The scope of what needs no token."""
SCOPES = frozenset(
    {
        "clients:read",
        "clients:write",
        "mailings:read",
        "mailings:write",
        "messages:read",
        "messages:write",
        "statistics:read",
        "gateways:read",
        "gateways:write",
    }
)

log = structlog.get_logger("notifier.web")
T = TypeVar("T")


# ---- what the composition root hands in


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the name of a token, its SHA-256, and what it may do."""

    name: str
    digest: bytes
    scopes: frozenset[str]


TokenCheck = Callable[[bytes], Awaitable[Caller | None]]
"""Returns whose token has this SHA-256, or None; asked for every call that needs one."""


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of a token: all that is kept of it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def bootstrap_token(token: str | None) -> TokenCheck:
    """Return the check that knows one token, with every scope; with None it knows none."""
    known = None if token is None else digest_of(token)

    async def check(digest: bytes) -> Caller | None:
        if known is None or not hmac.compare_digest(digest, known):
            return None
        return Caller("bootstrap", digest, SCOPES)

    return check


@dataclass(frozen=True, slots=True)
class GatewayDefaults:
    """What the environment says of the gateway; ``timeout`` in seconds, ``rate`` in messages a second, 0 = no limit."""

    url: str | None
    concurrency: int
    rate: float
    timeout: float
    on_unknown: str


@dataclass(frozen=True, slots=True)
class Context:
    """The parts that handlers use.

    ``wake`` tells the scheduler to look at once. ``hold`` says whether the database looks like a copy. ``ready`` says
    why requests should go elsewhere, or None.
    ``proxies`` are the networks whose forwarding headers are believed. ``failures``, ``log_limit`` and ``large_bodies``
    bound wrong tokens by network, log lines that anybody can cause, and large bodies that are parsed.
    """

    db: Pool
    hold: Hold
    wake: Callable[[], None]
    tokens: TokenCheck
    secret_key: str
    default_timezone: str
    gateway: GatewayDefaults
    ready: Callable[[], Awaitable[str | None]]
    pause_all: bool
    version: str
    public: PublicUrl
    proxies: Collection[Network]
    failures: Budget = field(default_factory=partial(Budget, FAILURES_MAX))
    log_limit: LogLimit = field(default_factory=LogLimit)
    large_bodies: LargeBodies = field(default_factory=LargeBodies)


# ---- operations


@dataclass(frozen=True, slots=True)
class Operation:
    """What a verb takes and gives; see `operation`."""

    name: str
    query: type[Schema]
    body: type[Schema] | None
    answer: type[Schema] | None
    status: int
    errors: tuple[int, ...]
    examples: Mapping[str, Any]
    text: bool
    idempotent: bool
    personal: bool
    cacheable: bool


Verb = TypeVar("Verb", bound=Callable[..., Awaitable[None]])


def operation(
    name: str = "",
    *,
    query: type[Schema] = schemas.NoQuery,
    body: type[Schema] | None = None,
    answer: type[Schema] | None = None,
    status: int = 200,
    errors: Iterable[int] = (),
    examples: Mapping[str, Any] | None = None,
    text: bool = False,
    personal: bool = False,
    cacheable: bool = False,
) -> Callable[[Verb], Verb]:
    """Say what a verb takes and gives; ``name`` is what generated clients call it, like ``startMailing``.

    ``errors`` are the statuses beyond those that follow from the rest; with 412 the verb honours ``If-Match``.
    ``examples`` are bodies by name that work when sent as they are; ``text`` says that the answer is plain text.
    A ``post`` also honours ``Idempotency-Key``: the verb then runs with ``self.db`` inside a transaction, and its
    answer is stored in the same. With ``personal`` it shows what is erased with a client: of its body only what the
    handler puts into ``kept`` is stored, and a repeated request is answered by its ``answer_again``. ``cacheable``:
    all that is shown changes with the version only, so ``If-None-Match`` may be answered 304.
    """

    def declare(verb: Verb) -> Verb:
        idempotent = verb.__name__ == "post"
        wrapped = _idempotent(verb) if idempotent else verb
        wrapped.operation = Operation(  # type: ignore[attr-defined]
            name, query, body, answer, status, tuple(errors), examples or {}, text, idempotent, personal, cacheable
        )
        return wrapped

    return declare


def operation_of(verb: Any) -> Operation | None:
    """Return what `operation` said of a verb."""
    return getattr(verb, "operation", None)


def _idempotent(verb: Verb) -> Verb:
    """Answer a repeated request as the first one was answered: for 24 h, per token and path.

    Not stored are answers after which nothing stands: 400, 422 (so that the corrected body may use the same key) and
    from 500 on. Of a personal answer only that it was given is stored; see `operation`.
    """

    @wraps(verb)
    async def once(self: Handler, **kwargs: Any) -> None:
        text = self.request.headers.get("Idempotency-Key")
        if text is None:
            return await verb(self, **kwargs)
        if not re.fullmatch(r"[\x21-\x7e]{1,255}", text):
            raise BadRequest("Idempotency-Key: 1 to 255 visible ASCII characters, please")
        key, body = self.once_key(text)

        async def make(connection: Connection) -> idempotency.Answer:
            try:
                async with transaction(connection) as inner:
                    self.db = inner
                    await verb(self, **kwargs)
            except errors.NotifierError as error:
                problem = problem_of(error)
                if problem["status"] in (400, 422) or problem["status"] >= 500:
                    raise
                self.write_problem(problem)
            return self._as_stored()

        stored, replayed = await idempotency.once(self.context.db, key, body, make)
        if replayed:
            await self._replay(stored, **kwargs)

    return once  # type: ignore[return-value]


# ---- handlers


def path_value(name: str, text: str) -> Any:
    """Return a part of the path; ``id`` and what ends in ``_id`` as an integer. Raises ``NotFound`` for none."""
    if not (name == "id" or name.endswith("_id")):
        return text
    if not re.fullmatch(r"[1-9][0-9]{0,18}", text) or int(text) > INT64_MAX:
        raise errors.NotFound(f"{text[:40]!r} is no id: ids are integers from 1 to {INT64_MAX}.")
    return int(text)


SAFE_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",  # pages list what they need
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), display-capture=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Referrer-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}


def safe_headers(public: PublicUrl) -> dict[str, str]:
    """Return what every answer tells a browser not to do."""
    if not public.is_https:
        return SAFE_HEADERS
    # Others may share the host of a prefix: they decide about its subdomains.
    subdomains = "" if public.prefix else "; includeSubDomains"
    return {**SAFE_HEADERS, "Strict-Transport-Security": f"max-age=31536000{subdomains}"}


class Safe(tornado.web.OutputTransform):
    """Gives each answer the safe headers that its handler has not set otherwise.

    Together and at the end: set one by one at the beginning, each would be checked anew, and twice where it comes to an
    error.
    """

    def __init__(self, headers: Mapping[str, str], request: HTTPServerRequest) -> None:
        self._safe = headers

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        for name, value in self._safe.items():
            if name not in headers:
                headers[name] = value
        return status_code, headers, chunk


@cache
def _answers(method: str, pattern: str, status: int) -> Counter:
    return telemetry.HTTP_REQUESTS.labels(method, pattern, str(status))


@cache
def _seconds(pattern: str) -> Histogram:
    return telemetry.HTTP_SECONDS.labels(pattern)


class Base(tornado.web.RequestHandler):
    """What API and pages share: the context, the request's id, errors as problems, logs and metrics."""

    TAG: ClassVar[str] = "System"
    """The heading in the documentation."""
    ACCESS: ClassVar[Mapping[str, str]] = {}
    """Method → scope or `PUBLIC`, where no route says it."""
    ANY_HOST: ClassVar[bool] = False
    """Whether it is answered under whatever name it is asked for."""
    MAX_BODY: ClassVar[int] = BODY
    """Bytes; `SMALL_BODY` where no token is asked for."""

    caller: Caller | None = None

    def initialize(
        self,
        pattern: str = "unmatched",
        access: Mapping[str, str] | None = None,
        refused: Exception | None = None,
    ) -> None:
        self.pattern = pattern
        self.refused = refused  # by the head alone: there is no body
        self.access = self.ACCESS if access is None else access
        self.context: Context = self.settings["context"]
        self.db: Db = self.context.db
        self.client = client_of(self.request, self.context.proxies)
        given = self.request.headers.get("X-Request-ID", "")
        self.request_id = given if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", given) else f"{getrandbits(128):032x}"
        self.set_header("X-Request-ID", self.request_id)  # the first call had come before there was one
        self._wake = False

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        self.clear_header("Content-Type")
        if hasattr(self, "request_id"):
            self.set_header("X-Request-ID", self.request_id)

    @property
    def verb(self) -> str:
        """The method; HEAD is a GET whose body Tornado keeps to itself."""
        method = self.request.method or ""
        return "GET" if method == "HEAD" else method

    async def head(self, *args: Any, **kwargs: Any) -> None:
        """Answer as to a GET."""
        await self.get(*args, **kwargs)  # type: ignore[misc]

    def prepare(self) -> Awaitable[None] | None:
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=self.request_id)
        if self.refused is not None:
            raise self.refused
        self._check_host()
        self._check_method()
        if any("\0" in text or len(text) > PART_MAX for text in self.path_kwargs.values()):
            raise tornado.web.HTTPError(404)
        return None

    async def admit(self, length: int | None) -> int:
        """Return how many bytes the body may have; raises what the head is to be answered with.

        ``length`` is what the head says of it, None where it does not. Asked of large bodies before they are read.
        """
        self._check_host()
        self._check_method()
        await self.authorize()
        most = SMALL_BODY if self.access[self.verb] == PUBLIC else self.MAX_BODY
        if length is not None and length > most:
            raise TooLarge(most)
        return most

    def _check_host(self) -> None:
        public = self.context.public
        if not (self.ANY_HOST or public.is_of(self.request.host, self.client.address)):
            raise Misdirected(self.request.host, public.url)

    def _check_method(self) -> None:
        if self.verb not in self.access:
            raise tornado.web.HTTPError(405)

    async def authorize(self) -> None:
        """Raise unless whoever asks may: here everybody."""

    def note(self, event: str, **fields: Any) -> None:
        """Log what happened to who asks; not all of what strangers cause."""
        if self.caller is not None or self.context.log_limit.allows():
            log.warning(event, address=self.client.address, request_id=self.request_id, **fields)

    def count_failure(self, event: str) -> None:
        """Count a wrong token, and log the ``event``. Raises `TooMany` once there were too many from this address."""
        network = network_of(self.client.address)
        beyond = self.context.failures.spend(network)
        if beyond == 0:
            self.note(event)
            return
        seconds = self.context.failures.wait(network)
        if beyond == 1:
            log.warning("wrong tokens are refused for a while", network=network, seconds=seconds)  # once a minute
        raise TooMany(seconds)

    def read_query(self, schema: type[Schema], arguments: Mapping[str, list[bytes]] | None = None) -> dict[str, Any]:
        """Return the checked query, or ``arguments`` in its place; raises ``Invalid``."""
        given = self.request.query_arguments if arguments is None else arguments
        return schemas.load_query(schema, given, self.request.path)

    def next_cursor(self, values: Sequence[int] | None, query: Mapping[str, Any]) -> str | None:
        """Return the cursor of the page of this list that begins at ``values``, None for None."""
        return None if values is None else schemas.write_cursor(values, schemas.list_key(self.request.path, query))

    def redirect(self, url: str, permanent: bool = False, status: int | None = None) -> None:
        """Lead to another path of ours."""
        super().redirect(self.context.public.prefix + url, permanent, status)

    def once_key(self, name: str) -> tuple[bytes, bytes]:
        """Return what a request of this name is known by when it is repeated: caller, path and name, and the body.

        Both as SHA-256, for `idempotency.once`.
        """
        assert self.caller is not None
        key = b"\0".join((self.caller.digest, self.request.path.encode(), name.encode()))
        return hashlib.sha256(key).digest(), hashlib.sha256(self.request.body).digest()

    def wake(self) -> None:
        """Have the scheduler look at once, when the answer is out and what it says is committed."""
        self._wake = True

    def compute_etag(self) -> str | None:
        return None  # ours are versions, not hashes of the body

    def check_etag_header(self) -> bool:
        return False  # sending changes a mailing's numbers and not its version: no 304

    # errors

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        problem = problem_of(value)
        if problem["status"] == 503:
            log.warning(
                "too busy" if isinstance(value, Busy) else "database unavailable",
                error=repr(value),
                request_id=self.request_id,
            )
        elif problem["status"] >= 500:
            path = self.request.path[:PATH_SHOWN]
            log.error("request failed", path=path, request_id=self.request_id, exc_info=(typ, value, tb))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        self.write_problem(problem_of(error, status_code), error)

    def write_problem(self, problem: dict[str, Any], error: BaseException | None = None) -> None:
        """Make the answer a problem; ``error`` may add what belongs in its headers."""
        status = problem["status"]
        self.set_status(status)
        self.set_header("Content-Type", "application/problem+json")
        if status == 401:
            mark = ', error="invalid_token"' if "Authorization" in self.request.headers else ""
            self.set_header("WWW-Authenticate", f'Bearer realm="notifier"{mark}')
        elif status == 403 and isinstance(error, Forbidden):
            scope = self.access[self.verb]
            self.set_header("WWW-Authenticate", f'Bearer realm="notifier", error="insufficient_scope", scope="{scope}"')
        elif status == 405:
            self.set_header("Allow", ", ".join(sorted({*self.access, *(["HEAD"] if "GET" in self.access else [])})))
        elif status == 415:
            self.set_header("Accept-Encoding", "identity")
        elif isinstance(error, TooMany):
            self.set_header("Retry-After", str(error.seconds))
        elif status == 503:
            self.set_header("Retry-After", str(RETRY_AFTER))
        self.write(orjson.dumps({**problem, "request_id": self.request_id}))

    def on_finish(self) -> None:
        if self._wake:
            self.context.wake()
        method = self.request.method if self.request.method in self.SUPPORTED_METHODS else "other"
        _answers(method, self.pattern, self.get_status()).inc()
        _seconds(self.pattern).observe(self.request.request_time())


class NotFound(Base):
    """What answers where there is no route."""

    async def admit(self, length: int | None) -> int:
        self._check_host()
        raise tornado.web.HTTPError(404)

    def prepare(self) -> None:
        self._check_host()
        if self.request.path.startswith("/api/") and self.request.path.endswith("/"):
            raise errors.NotFound("There is nothing at this address; there may be without the slash at its end.")
        raise tornado.web.HTTPError(404)


class Handler(Base):
    """A handler of the JSON API; ``params`` is the checked query, ``body`` the checked body."""

    params: dict[str, Any]
    body: dict[str, Any]
    kept = b""
    """What a personal `operation` has stored of its answer's body."""

    async def prepare(self) -> None:
        super().prepare()
        await self.authorize()
        if self.request.body and self.request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Encoded
        self.path_kwargs = {name: path_value(name, text) for name, text in self.path_kwargs.items()}
        self.operation = operation_of(getattr(self, self.verb.lower()))
        if self.operation is not None:
            self.params = self.read_query(self.operation.query)
            self.body = await self._read_body(self.operation.body)

    async def authorize(self) -> None:
        """Raise unless the token has the scope."""
        scope = self.access[self.verb]
        if scope == PUBLIC:
            return
        kind, _, token = self.request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unauthorized
        self.caller = await self.context.tokens(digest_of(token.strip()))
        if self.caller is None:
            self.count_failure("token refused")
            raise Unauthorized("The token is not known.")
        if scope not in self.caller.scopes:
            self.note("scope refused", token=self.caller.name, scope=scope)
            raise Forbidden(f"The token lacks the scope {scope}.")

    async def _read_body(self, schema: type[Schema] | None) -> dict[str, Any]:
        body = self.request.body
        if schema is None and (not body or self.verb in ("GET", "DELETE")):
            return {}
        if len(body) < LARGE:
            value = schemas.parse(body)
        else:
            async with self.context.large_bodies.turn(len(body)):
                value = await asyncio.to_thread(schemas.parse, body)
        return schemas.load(schema or schemas.NoBody, value)

    @property
    def if_match(self) -> int | None:
        """The version that ``If-Match`` asks for; None when any will do. Raises `Stale` for one that never was.

        A weak one is taken as well: proxies that compress answers make ``W/"7"`` of our ``"7"``.
        """
        text = self.request.headers.get("If-Match", "*").strip()
        if text == "*":
            return None
        if not re.fullmatch(r'(W/)?"[\x21\x23-\x7e\x80-\xff]*"', text):
            raise BadRequest('If-Match: one ETag (not several) as it was given, like "7", or *')
        version = text.removeprefix("W/").strip('"')
        if not re.fullmatch(r"[1-9][0-9]{0,9}", version) or int(version) > INT32_MAX:
            raise errors.Stale
        return int(version)

    def _is_known(self, version: int) -> bool:
        """Whether ``If-None-Match`` names this version; compared weakly (RFC 9110, 13.1.2)."""
        known = self.request.headers.get("If-None-Match", "")
        return known.strip() == "*" or f'"{version}"' in re.findall(r'"[^"]*"', known)

    def answer(self, value: Any = None, *, location: str | None = None) -> None:
        """Answer with ``value`` as the operation's schema shows it, its ``version`` as the ETag, and its status.

        ``location`` is a path of ours.
        """
        assert self.operation is not None
        self.set_status(self.operation.status)
        if location is not None:
            self.set_header("Location", self.context.public.prefix + location)
        version = getattr(value, "version", None)
        if version is not None:
            self.set_header("ETag", f'"{version}"')
            if self.operation.cacheable and self._is_known(version):
                self.set_status(304)
                self.set_header("Vary", "Accept-Encoding")  # as the whole answer has it
                return
        if self.operation.answer is not None:
            self.set_header("Content-Type", "application/json")
            self.write(orjson.dumps(show(self.operation.answer, value)))

    def answer_page(self, items: list[Any], next_cursor: Sequence[int] | None) -> None:
        """Answer with a page of a list; ``next_cursor`` holds the integers where the next one begins."""
        self.answer({"items": items, "next_cursor": self.next_cursor(next_cursor, self.params)})

    async def answer_again(self, stored: idempotency.Answer, **ids: int) -> None:
        """Answer a repeated ``post`` that is personal from what there is now and was stored of the first answer."""
        raise NotImplementedError

    def _as_stored(self) -> idempotency.Answer:
        assert self.operation is not None
        names = ("Content-Type", "Location", "ETag")
        headers = {name: self._headers[name] for name in names if name in self._headers}
        is_personal = self.operation.personal and self.get_status() < 400
        body = self.kept if is_personal else b"".join(self._write_buffer)
        return idempotency.Answer(self.get_status(), headers, body)

    async def _replay(self, stored: idempotency.Answer, **ids: int) -> None:
        assert self.operation is not None
        self.set_header("Idempotency-Replayed", "true")
        if self.operation.personal and stored.status < 400:
            await self.answer_again(stored, **ids)
            return
        self.set_status(stored.status)
        for name, value in stored.headers.items():
            self.set_header(name, value)
        if stored.body:
            self.write(stored.body)


def log_request(handler: tornado.web.RequestHandler) -> None:
    """Log an answer; the query is left out, for it may hold a phone, and much of what strangers cause."""
    assert isinstance(handler, Base)
    status, caller = handler.get_status(), handler.caller
    quiet = status < 400 and handler.pattern in ("/healthz", "/readyz", "/metrics")
    strange = status < 500 and caller is None
    if strange and not quiet and not handler.context.log_limit.allows():
        return
    write = log.debug if quiet else log.error if status >= 500 else log.info
    write(
        "request",
        method=handler.request.method,
        path=handler.request.path[:PATH_SHOWN],
        status=status,
        ms=round(handler.request.request_time() * 1000, 1),
        address=handler.client.address,
        token=None if caller is None else caller.name,
        request_id=handler.request_id,
    )
