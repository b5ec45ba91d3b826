"""What the answers of the API and of the pages have in common: the request's id, errors, logs and metrics."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Awaitable, Mapping, Sequence
from functools import cache
from random import getrandbits
from types import TracebackType
from typing import Any, ClassVar

import orjson
import structlog
import tornado.web
from marshmallow import Schema
from prometheus_client import Counter, Histogram

from notifier import errors, telemetry
from notifier.models import INT64_MAX
from notifier.storage.database import Db
from notifier.web import schemas
from notifier.web.addresses import client_of, network_of
from notifier.web.auth import PUBLIC, Caller
from notifier.web.budgets import Busy
from notifier.web.context import Context
from notifier.web.problems import Forbidden, Misdirected, TooLarge, TooMany, problem_of

SMALL_BODY = 64 * 1024
"""Bytes that are read before anybody asks whose they are: as much as a head may have."""
BODY = 1024 * 1024
LARGEST_BODY = 8 * 1024 * 1024
PATH_SHOWN, PART_MAX = 200, 1024
"""Characters of a path that are logged, and that one part of it may have: no name here is longer."""
RETRY_AFTER = 2
"""Seconds after which a client may try again while the database is unavailable."""

log = structlog.get_logger("notifier.web")


def path_value(name: str, text: str) -> Any:
    """Return a part of the path; ``id`` and what ends in ``_id`` as an integer. Raises ``NotFound`` for none."""
    if not (name == "id" or name.endswith("_id")):
        return text
    if not re.fullmatch(r"[1-9][0-9]{0,18}", text) or int(text) > INT64_MAX:
        raise errors.NotFound(errors.Code.NO_ID, text=text[:40], most=INT64_MAX)
    return int(text)


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
            raise errors.NotFound(errors.Code.NO_ADDRESS_WITH_SLASH)
        raise tornado.web.HTTPError(404)


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
