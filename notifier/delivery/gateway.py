"""One gateway: a request, and how its answer becomes an outcome. Nothing it does raises, whatever comes back."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import math
import re
import time
import zlib
from collections import deque
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_tz
from typing import Any, NamedTuple, Self

import aiohttp
import orjson
from aiohttp import hdrs
from yarl import URL

from notifier import __version__, hosts
from notifier.delivery.http import BODY_LIMIT, Response, Wire
from notifier.delivery.lenient import Unreadable
from notifier.models import Outcome, Reason

CONNECT_TIMEOUT = 3.0  # seconds for name, TCP and TLS together; a gateway that takes longer is away
# Seconds that a connection may have been idle and be used again: under the shortest time that a server can be set to in
# whole seconds, or a request may cross with the other side's end. A server that says `Keep-Alive: timeout=…` is
# believed, up to the second figure; one that is seen to close earlier, or loses a request, sets a shorter time.
KEEP_ALIVE, KEEP_ALIVE_MOST = 0.9, 15.0
# A connection that was idle for so long (seconds) is looked at once more before it is used; under load none is.
LOOK_AFTER = 0.05
# A server that closes earlier than so many seconds after an answer does not do it for idleness.
IDLE_LEAST = 0.5
SECRET_LEAST = 8  # characters of a token that is looked for in a gateway's words
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
    ``key`` makes `identity` of address and token, which replicas compare over the database.
    """

    def __init__(self, name: str, url: str, token: str, *, timeout: float, key: bytes = b"") -> None:
        self.name = name
        self.url = url
        self._key = key
        base = URL(url.rstrip("/") + "/v1/send/")
        self._loop = asyncio.get_running_loop()
        self._timeout = timeout
        # under the whole request's, so that what was surely not sent is known to be so
        self._connect_timeout = aiohttp.ClientTimeout(connect=min(CONNECT_TIMEOUT, timeout * 0.8))
        self._in_address = tuple(hosts.secrets_in(url))
        self._connector = aiohttp.TCPConnector(limit=0)
        self._target = aiohttp.ClientRequest("POST", base, loop=self._loop)
        self._idle: deque[tuple[Wire, float]] = deque()  # since when, by the loop's time; the last used at the end
        self._tidying: asyncio.TimerHandle | None = None
        self._apart, self._apart_until = APART[0], 0.0
        self._promised: float | None = None  # seconds that the server says it keeps an idle connection
        self._closes_after = math.inf  # seconds of idleness after which it was seen to close one
        self._start = f"POST {base.raw_path}".encode()
        self._host = base.host_port_subcomponent
        self.use(token)

    def use(self, token: str) -> None:
        """Send with this token from now on."""
        self.token = token
        # a gateway may repeat both; what is shorter than a word could be any
        self._secrets = (*self._in_address, *([token] if len(token) >= SECRET_LEAST else []))
        self._headers = (
            f" HTTP/1.1\r\nHost: {self._host}\r\nAuthorization: Bearer {token}\r\n"
            f"User-Agent: notifier/{__version__}\r\nAccept: application/json\r\nAccept-Encoding: identity\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode()
        self.identity = hmac.digest(self._key, f"gateway {self.url} {token}".encode(), hashlib.sha256).hex()[:32]

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
        reused, idle = self._reused()
        try:
            wire = reused or await self._opened()
        except Exception as error:  # whatever a stranger's server makes a library do
            return _unsent(error)
        try:
            response = await wire.request(request, deadline)
            if reused:
                self._apart = APART[0]
            if wire.reusable:
                self._keep(wire, response.headers.get("Keep-Alive"))
            return classify(response, self._secrets)
        except Exception as error:
            answer = classify_error(error, self._secrets)
            if reused and answer.reason is Reason.RESET:
                self._learn(idle)
                self._keep_apart()
            return answer

    def _reused(self) -> tuple[Wire | None, float]:
        """The connection that was used last, so that what is not needed grows old; and how long it was idle."""
        now = self._loop.time()
        while self._idle:
            wire, idle_since = self._idle.pop()
            idle = now - idle_since
            if wire.reusable and idle <= self._keep_for() and (idle < LOOK_AFTER or wire.is_quiet()):
                return wire, idle
            self._let_go(wire, idle_since)
        return None, 0.0

    def _keep_for(self) -> float:
        """Seconds that an idle connection may be used again."""
        promised = KEEP_ALIVE if self._promised is None else min(KEEP_ALIVE_MOST, self._promised * 0.8)
        return min(promised, self._closes_after * 0.75)

    def _let_go(self, wire: Wire, idle_since: float) -> None:
        """Close it; where the other side had done so, that tells how long it keeps one."""
        if wire.ended_at is not None:
            self._learn(wire.ended_at - idle_since)
        wire.close()

    def _learn(self, idle: float) -> None:
        """The other side closes a connection that was idle for so long."""
        if idle >= IDLE_LEAST:
            self._closes_after = min(self._closes_after, idle)

    def _keep(self, wire: Wire, promise: str | None) -> None:
        found = promise and _KEEP_ALIVE_TIMEOUT.search(promise)
        self._promised = float(found[1]) if found else None
        if self._connector.closed or self._loop.time() < self._apart_until:
            wire.close()
            return
        self._idle.append((wire, self._loop.time()))
        if self._tidying is None:
            self._tidying = self._loop.call_later(self._keep_for(), self._tidy)

    def _keep_apart(self) -> None:
        if self._loop.time() >= self._apart_until:  # else it is one of those that were under way together
            self._apart_until = self._loop.time() + self._apart
            self._apart = min(APART[1], self._apart * 2)
        while self._idle:
            self._idle.pop()[0].close()

    def _tidy(self) -> None:
        """Close what was idle for long, or was closed by the gateway."""
        keep_for = self._keep_for()
        since = self._loop.time() - keep_for
        while self._idle and (self._idle[0][1] <= since or not self._idle[0][0].reusable):
            self._let_go(*self._idle.popleft())
        self._tidying = self._loop.call_later(keep_for, self._tidy) if self._idle else None

    async def _opened(self) -> Wire:
        return Wire(await self._connector.connect(self._target, [], self._connect_timeout))


_KEEP_ALIVE_TIMEOUT = re.compile(r"timeout\s*=\s*(\d{1,6})", re.IGNORECASE)


def classify(response: Response, secrets: Sequence[str] = ()) -> Answer:
    """What a response means; its words are kept without ``secrets`` and phone numbers."""
    status = response.status
    if status == 200:
        coding = response.headers.get(hdrs.CONTENT_ENCODING)
        return classify_body(response.body, coding, secrets)
    if 200 < status < 300:
        return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, status, _said(response, secrets))
    answer = classify_status(status, ", ".join(response.headers.getall(hdrs.RETRY_AFTER, ())), time.time())
    if 300 <= status < 400:
        return answer._replace(detail=_where_to(response.headers.get(hdrs.LOCATION)))
    said = _said(response, secrets)
    if answer.outcome is Outcome.REJECTED and said and ABOUT_US.search(said):
        return Answer(Outcome.DECLINED, Reason.ACCOUNT_REFUSED, status, said)
    return answer._replace(detail=said)


def classify_body(body: bytes | None, coding: str | None = None, secrets: Sequence[str] = ()) -> Answer:
    """The success rule for a 200: a JSON object whose ``code`` is the integer 0.

    ``coding`` is the Content-Encoding: what can be read is read, whatever that says.
    """
    if body is None:
        return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, 200, f"an answer of more than {BODY_LIMIT} bytes")
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError:
        body = _readable(body)
        try:
            answer = orjson.loads(body)
        except orjson.JSONDecodeError:
            answer = None
    code = answer.get("code") if isinstance(answer, dict) else None
    if type(code) is not int or _contradicts_itself(body):  # a bool is an int, but no code
        words = body.decode("utf-8", "replace")
        return Answer(
            Outcome.UNKNOWN,
            Reason.BAD_ANSWER,
            200,
            _words(f"Content-Encoding {coding!r}: {words}" if coding else words, secrets),
        )
    if code == 0:
        return _ACCEPTED
    words = _words(f"{code}: {answer.get('message', '')}", secrets)
    reason = Reason.ACCOUNT_REFUSED if ABOUT_US.search(words) else Reason.DECLINED
    return Answer(Outcome.DECLINED, reason, 200, words)


def _contradicts_itself(body: bytes) -> bool:
    """Whether the object says two different things of its code (RFC 8259, 4, leaves open which one counts)."""
    if body.count(b'"code"') < 2 and b"\\u" not in body:
        return False
    codes: list[Any] = []

    def pairs(found: list[tuple[str, Any]]) -> None:
        codes[:] = [value for name, value in found if name == "code"]  # the outermost object comes last

    json.loads(body.decode("utf-8", "replace"), object_pairs_hook=pairs)
    return any(code != codes[0] for code in codes)


def _readable(body: bytes) -> bytes:
    """The body without a byte order mark and unpacked, up to twice, as far as it can be."""
    for _ in range(2):
        unpacked = next((each for each in map(_unpacked, [body] * len(_PACKED), _PACKED) if each), None)
        if unpacked is None:
            break
        body = unpacked
    return body.removeprefix(b"\xef\xbb\xbf")


# What zlib is told: a gzip or zlib header, or none (a raw deflate stream, which RFC 9110, 8.4.1.2, calls common).
_PACKED = (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS)


def _unpacked(body: bytes, wbits: int) -> bytes | None:
    decoder = zlib.decompressobj(wbits=wbits)
    try:
        unpacked = decoder.decompress(body, BODY_LIMIT)
    except zlib.error:
        return None
    return unpacked if decoder.eof else None


def _said(response: Response, secrets: Sequence[str]) -> str | None:
    """What an answer says beside its status."""
    return _words(_readable(response.body).decode("utf-8", "replace"), secrets) if response.body else None


def _where_to(location: str | None) -> str | None:
    """The address that a redirect names, without what may be secret in it."""
    if not location:
        return None
    try:
        shown = hosts.without_secrets(location)
    except ValueError:
        shown = "an address that is none"
    return _words(f"it points to {shown}")


# What a refusal says after an attempt in doubt when it is because of that attempt: the gateway has the message.
_HAS_IT = re.compile(
    r"\bduplicat|\balready\b(?: been)? (?:exist|sent|accepted|received|processed|queued|submitted|used|known|delivered)"
    r"|\b(?:exists|sent|accepted|received|processed|queued|submitted|used) already\b"
    r"|дублик|повторн|уже (?:был[ао]? )?(?:существует|отправлен|принят|получен|обработан|использован)",
    re.IGNORECASE,
)
# What a refusal says when it is about our account and not about the recipient: credentials, money, sender.
ABOUT_US = re.compile(
    r"credential|\bunauthori[sz]ed|\bauthenticat|\bauthori[sz]ation|\bapi[ _-]?key"
    r"|\b(?:invalid|wrong|bad|expired|missing|unknown|revoked) (?:access )?(?:token|login|password|username|jwt)\b"
    r"|\b(?:token|login|password|username|jwt) (?:is |has )?(?:invalid|wrong|expired|missing|unknown|revoked)\b"
    r"|\baccess denied|\bbalance\b|\binsufficient (?:funds|credits?)"
    r"|\b(?:no|not enough|out of) (?:money|funds|credits?)\b"
    r"|\bpayment\b|\baccount (?:is |has been |was )?(?:suspended|blocked|disabled|inactive|expired|closed)"
    r"|\b(?:invalid|wrong|bad|missing|unknown|unregistered) (?:sender|originator)\b"
    r"|\b(?:sender|originator)\b.{0,20}\b(?:not|invalid|wrong|missing|unknown|unregistered|blocked|rejected)\b"
    r"|баланс|недостаточно средств|нет (?:средств|денег)|авторизаци|аутентификаци|неверн\w+ (?:логин|пароль|токен|ключ)"
    r"|отправител.{0,20}\bне\b",
    re.IGNORECASE,
)


def has_it_already(answer: Answer) -> bool:
    """Whether a refusal means, after an attempt in doubt, that the gateway took the message then.

    That is a 409, or a refusal that says duplicate, already exists, already sent and the like; not one about us, which
    may say that of a token or a sender.
    """
    if answer.outcome not in (Outcome.REJECTED, Outcome.DECLINED):
        return False
    about_us = answer.reason is Reason.ACCOUNT_REFUSED
    return answer.status_code == 409 or bool(answer.detail and not about_us and _HAS_IT.search(answer.detail))


def classify_status(status: int, retry_after: str | None, now: float) -> Answer:
    """Every answer but 2xx; ``now`` is in seconds since the epoch, for a Retry-After that is a date."""
    if status == 429:
        return Answer(Outcome.THROTTLED, Reason.THROTTLED, status, None, parse_retry_after(retry_after, now))
    if status == 503:
        return Answer(Outcome.UNAVAILABLE, Reason.UNAVAILABLE, status, None, parse_retry_after(retry_after, now))
    if status in (407, 511):
        return Answer(Outcome.UNAVAILABLE, Reason.PROXY_AUTHENTICATION, status)
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
    # about the form of our request, or about the way to the gateway: nobody can be sent to until that is put right
    **dict.fromkeys((411, 413, 414, 415, 421, 423, 425, 426, 428, 431, 451), Reason.REQUEST_REFUSED),
}


def classify_error(error: Exception, secrets: Sequence[str] = ()) -> Answer:
    """What was raised instead of an answer to a request that was written, at least in part."""
    detail = _words(f"{type(error).__name__}: {error}", secrets)
    if isinstance(error, asyncio.TimeoutError):
        return Answer(Outcome.UNKNOWN, Reason.TIMEOUT, None, detail)
    if isinstance(error, Unreadable):
        return Answer(Outcome.UNKNOWN, Reason.BAD_ANSWER, None, _words(str(error), secrets))
    if isinstance(error, aiohttp.ClientConnectionError | aiohttp.ClientPayloadError | OSError):
        return Answer(Outcome.UNKNOWN, Reason.RESET, None, detail)
    if isinstance(error, aiohttp.ClientError | ValueError | zlib.error):
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
    """Whole seconds to wait, clamped; None for nothing or nonsense.

    Seconds, with a fraction too, or any date of RFC 9110, 5.6.7; a date without a zone is UTC. Of several, as lines of
    a header that are joined by commas, the longest.
    """
    waits = [wait for wait in (_wait(part.strip(), now) for part in _BETWEEN.split(value or "")) if wait is not None]
    return min(max(math.ceil(min(max(waits), RETRY_AFTER[1])), RETRY_AFTER[0]), RETRY_AFTER[1]) if waits else None


def _wait(value: str, now: float) -> float | None:
    if _SECONDS.fullmatch(value):
        return float(value)
    parts = parsedate_tz(value)
    if parts is None:
        return None
    if parts[0] > 9999:
        return math.inf
    try:
        return datetime(*parts[:6], tzinfo=UTC).timestamp() - (parts[9] or 0) - now
    except (ValueError, OverflowError):
        return None


_SECONDS = re.compile(r"[+-]?\d+(?:\.\d*)?", re.ASCII)
_BETWEEN = re.compile(r"(?<=[\dT])\s*,")  # not the comma after a weekday

# Phone numbers in a gateway's words: they must not outlive the client, nor be read by whoever may read words.
_NUMBER = re.compile(r"(?<!\d)\d{7,15}(?!\d)|\+\d[\d ().-]{5,20}\d")


def _words(text: str, secrets: Sequence[str] = ()) -> str:
    """A stranger's words, fit to be stored: none of ours, no phone number, no NUL, no lone surrogates, not long."""
    for secret in secrets:
        text = text.replace(secret, "***")
    text = _NUMBER.sub("***", text[: 4 * DETAIL_LIMIT])[:DETAIL_LIMIT]
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode("utf-8")
