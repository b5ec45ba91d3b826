"""One gateway: a request, and how its answer becomes an outcome. Nothing it does raises, whatever comes back."""

from __future__ import annotations

import asyncio
import math
import time
import zlib
from collections import deque
from email.utils import parsedate_to_datetime
from typing import NamedTuple, Self

import aiohttp
import orjson
from aiohttp import hdrs
from aiohttp.http import HttpProcessingError
from yarl import URL

from notifier import __version__
from notifier.delivery.http import BODY_LIMIT, Response, Wire
from notifier.models import Outcome, Reason

CONNECT_TIMEOUT = 3.0  # seconds for name, TCP and TLS together; a gateway that takes longer is away
KEEP_ALIVE = 15.0  # seconds; under the idle timeouts of usual proxies, so that they do not close under our hands
DETAIL_LIMIT = 300  # characters of a gateway's words that are kept
# Seconds. A request was lost on a connection that was used before: the gateway may close them without a word, so each
# request has its own for so long, twice as long each time, until a second one on a connection is answered.
APART = (5.0, 300.0)
RETRY_AFTER = (1.0, 3600.0)  # seconds; what a Retry-After is clamped to


class Answer(NamedTuple):
    """What one request came to; ``retry_after`` is in seconds where the gateway named a time."""

    outcome: Outcome
    reason: Reason | None = None
    status_code: int | None = None
    detail: str | None = None
    retry_after: float | None = None


_ACCEPTED = Answer(Outcome.ACCEPTED, None, 200)


class Gateway:
    """Connections of its own with one gateway; made inside a running loop, closed with `close`.

    ``timeout`` is for a whole request, in seconds. No cookies, no proxies from the environment, no redirects.
    """

    def __init__(self, name: str, url: str, token: str, *, timeout: float) -> None:
        self.name = name
        base = URL(url.rstrip("/") + "/v1/send/")
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        # under the whole request's, so that what was surely not sent is known to be so
        self._connect_timeout = aiohttp.ClientTimeout(connect=min(CONNECT_TIMEOUT, timeout * 0.8))
        self._connector = aiohttp.TCPConnector(limit=0)
        self._target = aiohttp.ClientRequest("POST", base, loop=self._loop)
        self._idle: deque[tuple[Wire, float]] = deque()  # since when, by the loop's time; the last used at the end
        self._tidying: asyncio.TimerHandle | None = None
        self._apart, self._apart_until = APART[0], 0.0
        self._start = f"POST {base.raw_path}".encode()
        self._headers = (
            f" HTTP/1.1\r\nHost: {base.host_port_subcomponent}\r\nAuthorization: Bearer {token}\r\n"
            f"User-Agent: notifier/{__version__}\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()

    async def close(self) -> None:
        """Close all connections."""
        if self._tidying is not None:
            self._tidying.cancel()
        self._idle.clear()
        await self._connector.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send(self, message_id: int, phone: int, text: bytes) -> Answer:
        """POST one message and classify what comes back; ``text`` is JSON. Raises nothing but CancelledError."""
        body = b'{"id":%d,"phone":%d,"text":%b}' % (message_id, phone, text)
        request = b"%b%d%b%d\r\n\r\n%b" % (self._start, message_id, self._headers, len(body), body)
        deadline = self._loop.time() + self._timeout
        reused = self._reused()
        try:
            wire = reused or await self._opened()
        except Exception as error:  # whatever a stranger's server makes a library do
            return _unsent(error)
        try:
            response = await wire.request(request, deadline)
            if reused:
                self._apart = APART[0]
            if wire.reusable:
                self._keep(wire)
            return classify(response)
        except Exception as error:
            answer = classify_error(error)
            if reused and answer.reason is Reason.RESET:
                self._keep_apart()
            return answer

    def _reused(self) -> Wire | None:
        """The connection that was used last, so that what is not needed grows old."""
        since = self._loop.time() - KEEP_ALIVE
        while self._idle:
            wire, idle_since = self._idle.pop()
            if wire.reusable and idle_since >= since:
                return wire
            wire.close()
        return None

    def _keep(self, wire: Wire) -> None:
        if self._connector.closed or self._loop.time() < self._apart_until:
            wire.close()
            return
        self._idle.append((wire, self._loop.time()))
        if self._tidying is None:
            self._tidying = self._loop.call_later(KEEP_ALIVE, self._tidy)

    def _keep_apart(self) -> None:
        if self._loop.time() >= self._apart_until:  # else it is one of those that were under way together
            self._apart_until = self._loop.time() + self._apart
            self._apart = min(APART[1], self._apart * 2)
        while self._idle:
            self._idle.pop()[0].close()

    def _tidy(self) -> None:
        """Close what was idle for long, or was closed by the gateway."""
        since = self._loop.time() - KEEP_ALIVE
        while self._idle and (self._idle[0][1] <= since or not self._idle[0][0].reusable):
            self._idle.popleft()[0].close()
        self._tidying = self._loop.call_later(KEEP_ALIVE, self._tidy) if self._idle else None

    async def _opened(self) -> Wire:
        return Wire(await self._connector.connect(self._target, [], self._connect_timeout))


def classify(response: Response) -> Answer:
    """What a response means."""
    status = response.status
    if status == 200:
        return classify_body(_decoded(response))
    if 200 < status < 300:
        return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, status)
    answer = classify_status(status, response.headers.get(hdrs.RETRY_AFTER), time.time())
    if answer.outcome in (Outcome.REJECTED, Outcome.MISCONFIGURED):
        return answer._replace(detail=_said(response))
    return answer


def _decoded(response: Response) -> bytes | None:
    """The decoded body, or None when it is larger than the limit or not to be decoded."""
    encoding = response.headers.get(hdrs.CONTENT_ENCODING, "identity").lower()
    if response.body is None or encoding == "identity":
        return response.body
    if encoding not in ("gzip", "x-gzip", "deflate"):
        return None
    decoder = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    decoded = decoder.decompress(response.body, BODY_LIMIT + 1)
    return decoded if len(decoded) <= BODY_LIMIT else None


def _said(response: Response) -> str | None:
    """What a refusal says; whatever is wrong with its body changes nothing."""
    try:
        body = _decoded(response)
    except zlib.error:
        return None
    return _words(body.decode("utf-8", "replace")) if body else None


def classify_body(body: bytes | None) -> Answer:
    """The success rule for a 200: a JSON object whose ``code`` is the integer 0."""
    if body is None:
        return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, 200, f"more than {BODY_LIMIT} bytes, or an unknown encoding")
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, 200, _words(body.decode("utf-8", "replace")))
    code = answer.get("code") if isinstance(answer, dict) else None
    if type(code) is not int:  # a bool is an int, but no code
        return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, 200, _words(body.decode("utf-8", "replace")))
    if code == 0:
        return _ACCEPTED
    return Answer(Outcome.DECLINED, Reason.DECLINED, 200, _words(f"{code}: {answer.get('message', '')}"))


def classify_status(status: int, retry_after: str | None, now: float) -> Answer:
    """Every answer but 2xx; ``now`` is in seconds since the epoch, for a Retry-After that is a date."""
    if status == 429:
        return Answer(Outcome.THROTTLED, Reason.THROTTLED, status, None, parse_retry_after(retry_after, now))
    if status == 503:
        return Answer(Outcome.UNAVAILABLE, Reason.UNAVAILABLE, status, None, parse_retry_after(retry_after, now))
    if 300 <= status < 400:
        return Answer(Outcome.MISCONFIGURED, Reason.REDIRECTED, status)
    if status in _MISCONFIGURED:
        return Answer(Outcome.MISCONFIGURED, _MISCONFIGURED[status], status)
    if status == 408:
        return Answer(Outcome.UNKNOWN, Reason.TIMEOUT, status)
    if 400 <= status < 500:
        return Answer(Outcome.REJECTED, Reason.REJECTED, status)
    if 500 <= status < 600:
        return Answer(Outcome.UNKNOWN, Reason.SERVER_ERROR, status)
    return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, status)


_MISCONFIGURED = {
    401: Reason.UNAUTHORIZED,
    402: Reason.PAYMENT_REQUIRED,
    403: Reason.UNAUTHORIZED,
    404: Reason.WRONG_ADDRESS,
    405: Reason.WRONG_ADDRESS,
    407: Reason.PROXY_AUTHENTICATION,
}


def classify_error(error: Exception) -> Answer:
    """What was raised instead of an answer to a request that was written, at least in part."""
    detail = _words(f"{type(error).__name__}: {error}")
    if isinstance(error, asyncio.TimeoutError):
        return Answer(Outcome.UNKNOWN, Reason.TIMEOUT, None, detail)
    if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
        return Answer(Outcome.UNKNOWN, Reason.RESET, None, detail)
    if isinstance(error, aiohttp.ClientError | HttpProcessingError | zlib.error | ValueError):
        return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, None, detail)
    return Answer(Outcome.UNKNOWN, Reason.INTERNAL_ERROR, None, detail)


def _unsent(error: Exception) -> Answer:
    """What was raised instead of a connection: surely nothing was sent."""
    detail = _words(f"{type(error).__name__}: {error}")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return Answer(Outcome.UNAVAILABLE, Reason.DNS, None, detail)
    if isinstance(error, aiohttp.ClientSSLError):
        return Answer(Outcome.UNAVAILABLE, Reason.TLS, None, detail)
    if isinstance(error, asyncio.TimeoutError):
        return Answer(Outcome.UNAVAILABLE, Reason.CONNECT_TIMEOUT, None, detail)
    if isinstance(error, ValueError):  # a name that is none
        return Answer(Outcome.UNAVAILABLE, Reason.DNS, None, detail)
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return Answer(Outcome.UNAVAILABLE, Reason.REFUSED, None, detail)
    return Answer(Outcome.UNAVAILABLE, Reason.INTERNAL_ERROR, None, detail)


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Seconds to wait, from seconds or an HTTP date (RFC 9110, 10.2.3), clamped; None for nothing or nonsense."""
    if value is None:
        return None
    try:
        seconds = float(value) if value.strip().isdigit() else parsedate_to_datetime(value).timestamp() - now
    except (ValueError, TypeError, OverflowError):
        return None
    if not math.isfinite(seconds):
        return None
    return min(max(seconds, RETRY_AFTER[0]), RETRY_AFTER[1])


def _words(text: str) -> str:
    """A stranger's words, fit to be stored: no NUL, no lone surrogates, not long."""
    return text[:DETAIL_LIMIT].replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
