"""The simulated gateway: a stand-in for the external sending API that answers like one and texts nobody.

For development, tests and the demo. It keeps the contract (``POST /v1/send/{id}``), writes a ledger of what
it was asked and said, and misbehaves on command. The HTTP server is written by hand because much of the
misbehaviour is broken HTTP, which no library's server agrees to send.

A script is a JSON object; a key left out takes the value of the command line, and no ``rules`` means none::

    {"rules": [rule, …], "latency": ms, "jitter": ms, "fail": 0..1, "rate": requests a second, 0 = no limit}

A rule is ``{"match": {…}, "times": n or null, "share": 0..1, "do": {"kind": …}}``; the first that matches
wins. ``match`` may name ``id``, ``phone``, ``text_contains`` and ``attempt`` (1 = the first request with that
id); ``times`` is how often the rule applies (null = always), ``share`` how probably. The kinds of ``do``
(``KINDS``), with defaults:

================  ======================================================================================
ok                the contract's success, whatever ``fail`` and ``rate`` say
delay             ``ms`` later, the success
status            ``status``, with ``headers`` {}, and ``text`` or ``base64`` as the body of
                  ``content_type`` application/json
body              200 with ``text`` or ``base64`` of ``content_type`` application/json, ``headers`` {}
code              200 with ``{"code": code, "message": message}``
drip              the success (or ``text``/``base64``), a byte every ``every`` 1000 ms; with ``head`` true
                  the status line and headers too
hang              never an answer; the connection stays open
reset             RST after the request was read
close             closed without an answer and without waiting for the body, so it cannot match ``phone``
                  or ``text_contains``; looked at before all other rules, token and body
huge              200 with a body of ``bytes`` 10⁹
gzip_bomb         200 with ``Content-Encoding: gzip`` that unpacks to ``bytes`` 10⁹
endless_headers   200 and header lines without end
wrong_length      the success, but a Content-Length that promises ``missing`` 100 bytes more, then closed
chunked_broken    200 whose second chunk has no valid size, then closed
================  ======================================================================================

Every kind takes ``"accept": true``: the gateway has taken the message although the client cannot know.

The order for a request: 401, 400, rules, ``rate`` (429), a repeated id (the same success again), ``fail``
(500), success.

The ledger has a JSON line per request, written before the answer leaves: ``{"at", "id", "phone", "text",
"authorized", "repeat", "status", "code"}``. ``at`` is when the request arrived, ``repeat`` that this id was
accepted before. Status 200 with code 0 means that the gateway took the message, also where the client never
sees it (``accept``); status 0 means that no answer was given. ``drip`` and ``delay`` of the success count as
taken at once. A ledger that exists is continued, and its accepted ids stay accepted.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import gc
import http
import ipaddress
import itertools
import json
import math
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple, cast
from urllib.request import ProxyHandler, Request, build_opener

import click
import orjson

NOTE = "a simulation for development, tests and demo: it answers like a sending API and texts nobody"
SEND = "/v1/send/"
INT64 = range(-(2**63), 2**63)
MAX_HEAD = 64 * 1024
MAX_BODY = 1024 * 1024
PIECE = 64 * 1024
STOP_TIMEOUT = 30.0


# --- The ledger


class Entry(NamedTuple):
    """A line of the ledger; ``at`` is aware UTC, ``id``, ``phone`` and ``text`` are None where unreadable."""

    at: datetime
    id: int | None
    phone: int | None
    text: str | None
    authorized: bool
    repeat: bool
    status: int
    code: int | None

    @property
    def accepted(self) -> bool:
        """Whether the gateway took the message with this request, or had taken it and said so again."""
        return self.status == 200 and self.code == 0


def read_ledger(path: str | Path) -> list[Entry]:
    """Return the ledger's entries in order; a last line without its end (a killed writer) is left out.

    Raises ValueError, with the number of the line, for any other line that is not an entry.
    """
    entries = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n")[:-1], 1):
        try:
            given = orjson.loads(line)
            entries.append(Entry(**{**given, "at": datetime.fromisoformat(given["at"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a ledger entry: {error}") from error
    return entries


# --- What may be answered


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes over the wire, and what the ledger says about it.

    ``data`` after ``delay`` seconds, then the pieces of ``stream`` with ``pause`` seconds between, then
    ``then``. Status 0: no answer is given.
    """

    status: int
    code: int | None
    data: bytes = b""
    stream: Callable[[], Iterator[bytes]] | None = None
    pause: float = 0
    then: Literal["keep", "close", "reset", "hang"] = "keep"
    delay: float = 0


def _head(status: int, headers: dict[str, str]) -> bytes:
    phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else "Simulated"
    lines = [f"HTTP/1.1 {status} {phrase}", "Server: notifier-simulator"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _answer(status: int, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    """Return a whole answer; headers given beat the usual ones; ``code`` is the one in the body."""
    if status < 200 or status in (204, 304):
        return Answer(status, None, _head(status, headers or {}))
    usual = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return Answer(status, _code_in(body), _head(status, {**usual, **(headers or {})}) + body)


def _json(status: int, content: object, headers: dict[str, str] | None = None) -> Answer:
    return _answer(status, orjson.dumps(content), headers)


def _code_in(body: bytes) -> int | None:
    try:
        code = orjson.loads(body)["code"]
    except (ValueError, TypeError, KeyError):
        return None
    return code if type(code) is int else None


SUCCESS = b'{"code":0,"message":"OK"}'
OK = _answer(200, SUCCESS)
UNAUTHORIZED = _json(401, {"error": "wrong or missing bearer token"}, {"WWW-Authenticate": "Bearer"})
TOO_MANY = _json(429, {"error": "too many requests"}, {"Retry-After": "1"})
FAILED = _json(500, {"error": "simulated failure"})


# --- Scripts


def _take(given: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    """Take a member out of ``given``, where only unknown ones stay; raises ValueError for another type."""
    value = given.pop(name, default)
    if value is not default and type(value) is not kind:
        raise ValueError(f"{name}: must be {kind.__name__}, not {value!r}")
    return value


def _number(given: dict[str, Any], name: str, default: float, high: float = math.inf) -> float:
    value = given.pop(name, default)
    if type(value) not in (int, float) or not 0 <= value <= high or value == math.inf:
        raise ValueError(f"{name}: must be a number from 0 to {high}, not {value!r}")
    return float(value)


def _nothing_left(given: dict[str, Any]) -> None:
    if given:
        raise ValueError(f"unknown: {', '.join(given)}")


def _payload(do: dict[str, Any], default: bytes) -> bytes:
    text, encoded = _take(do, "text", str, None), _take(do, "base64", str, None)
    if text is not None and encoded is not None:
        raise ValueError("text and base64 exclude each other")
    if encoded is not None:
        return base64.b64decode(encoded, validate=True)
    return default if text is None else text.encode("utf-8", "surrogatepass")


def _headers(do: dict[str, Any]) -> dict[str, str]:
    headers = {
        "Content-Type": _take(do, "content_type", str, "application/json"),
        **_take(do, "headers", dict, {}),
    }
    for name, value in headers.items():
        if not isinstance(value, str):
            raise ValueError(f"headers: {name} must be str, not {value!r}")
    return headers


def _do_ok(do: dict[str, Any]) -> Answer:
    return OK


def _do_delay(do: dict[str, Any]) -> Answer:
    return replace(OK, delay=_number(do, "ms", 0) / 1000)


def _do_status(do: dict[str, Any]) -> Answer:
    status = _take(do, "status", int, None)
    if status is None or not 100 <= status <= 999:
        raise ValueError("status: must be an integer from 100 to 999")
    return _answer(status, _payload(do, b'{"error":"simulated"}'), _headers(do))


def _do_body(do: dict[str, Any]) -> Answer:
    return _answer(200, _payload(do, b""), _headers(do))


def _do_code(do: dict[str, Any]) -> Answer:
    code = _take(do, "code", int, None)
    if code is None:
        raise ValueError("code: is required")
    return _json(200, {"code": code, "message": _take(do, "message", str, "simulated refusal")})


def _do_drip(do: dict[str, Any]) -> Answer:
    body = _payload(do, SUCCESS)
    whole = _answer(200, body)
    at_once = 0 if _take(do, "head", bool, False) else len(whole.data) - len(body)
    slowly = whole.data[at_once:]

    def stream() -> Iterator[bytes]:
        return (slowly[i : i + 1] for i in range(len(slowly)))

    return replace(whole, data=whole.data[:at_once], stream=stream, pause=_number(do, "every", 1000) / 1000)


def _do_hang(do: dict[str, Any]) -> Answer:
    return Answer(0, None, then="hang")


def _do_reset(do: dict[str, Any]) -> Answer:
    return Answer(0, None, then="reset")


def _do_close(do: dict[str, Any]) -> Answer:
    return Answer(0, None, then="close")


def _do_huge(do: dict[str, Any]) -> Answer:
    size = int(_number(do, "bytes", 10**9))
    piece = b"x" * PIECE

    def stream() -> Iterator[bytes]:
        yield from itertools.repeat(piece, size // PIECE)
        yield piece[: size % PIECE]

    return Answer(200, None, _head(200, {"Content-Type": "application/json", "Content-Length": str(size)}), stream)


def _do_gzip_bomb(do: dict[str, Any]) -> Answer:
    count, rest = divmod(int(_number(do, "bytes", 10**9)), 2**20)
    fill = b"x" * 2**20
    # After a full flush deflate refers to nothing before it, so one packed block may be repeated.
    blocks = {len(part): (part, _packed(part)) for part in (fill, fill[:rest])}
    order = [2**20] * count + [rest]
    head = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    length = 10 + sum(len(blocks[size][1]) for size in order) + 2 + 8

    def stream() -> Iterator[bytes]:
        yield b"\x1f\x8b\x08\0\0\0\0\0\0\xff"
        checksum = 0
        for size in order:
            checksum = zlib.crc32(blocks[size][0], checksum)
            yield blocks[size][1]
        yield b"\x03\x00" + struct.pack("<II", checksum, sum(order) % 2**32)

    return Answer(200, None, _head(200, {**head, "Content-Length": str(length)}), stream)


def _packed(part: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(part) + compressor.flush(zlib.Z_FULL_FLUSH)


def _do_endless_headers(do: dict[str, Any]) -> Answer:
    def stream() -> Iterator[bytes]:
        return (b"X-Endless-%d: %s\r\n" % (n, b"x" * 1000) for n in itertools.count())

    return Answer(200, None, b"HTTP/1.1 200 OK\r\n", stream)


def _do_wrong_length(do: dict[str, Any]) -> Answer:
    promised = len(SUCCESS) + int(_number(do, "missing", 100))
    head = _head(200, {"Content-Type": "application/json", "Content-Length": str(promised)})
    return Answer(200, None, head + SUCCESS, then="close")


def _do_chunked_broken(do: dict[str, Any]) -> Answer:
    head = _head(200, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"})
    return Answer(200, None, head + b'8\r\n{"code":\r\nnonsense\r\n0}\r\n', then="close")


KINDS: dict[str, Callable[[dict[str, Any]], Answer]] = {
    "ok": _do_ok,
    "delay": _do_delay,
    "status": _do_status,
    "body": _do_body,
    "code": _do_code,
    "drip": _do_drip,
    "hang": _do_hang,
    "reset": _do_reset,
    "close": _do_close,
    "huge": _do_huge,
    "gzip_bomb": _do_gzip_bomb,
    "endless_headers": _do_endless_headers,
    "wrong_length": _do_wrong_length,
    "chunked_broken": _do_chunked_broken,
}


@dataclass(slots=True)
class Rule:
    """Which requests get which answer, and how often that happened (``used``)."""

    given: dict[str, Any]
    answer: Answer
    before_body: bool
    id: int | None
    phone: int | None
    text_contains: str | None
    attempt: int | None
    times: int | None
    share: float
    used: int = 0

    @classmethod
    def parse(cls, raw: Any) -> Rule:
        """Return the rule that a JSON object describes; raises ValueError."""
        if not isinstance(raw, dict):
            raise ValueError("a rule is an object")
        given = dict(raw)
        match, do = dict(_take(given, "match", dict, {})), dict(_take(given, "do", dict, {}))
        kind = _take(do, "kind", str, None)
        if kind not in KINDS:
            raise ValueError(f"do.kind: must be one of {', '.join(KINDS)}, not {kind!r}")
        accept = _take(do, "accept", bool, False)
        answer = KINDS[kind](do)
        _nothing_left(do)
        rule = cls(
            given=raw,
            answer=replace(answer, status=200, code=0) if accept else answer,
            before_body=kind == "close",
            id=_take(match, "id", int, None),
            phone=_take(match, "phone", int, None),
            text_contains=_take(match, "text_contains", str, None),
            attempt=_take(match, "attempt", int, None),
            times=_take(given, "times", int, None),
            share=_number(given, "share", 1, 1),
        )
        _nothing_left(match)
        _nothing_left(given)
        if rule.before_body and (rule.phone is not None or rule.text_contains is not None):
            raise ValueError("close acts before the body is read: it can match id and attempt only")
        return rule

    def applies(self, send: Send, luck: random.Random) -> bool:
        """Whether this request gets the rule's answer; counts it if so."""
        if (
            (self.times is not None and self.used >= self.times)
            or (self.id is not None and self.id != send.id)
            or (self.phone is not None and self.phone != send.phone)
            or (self.attempt is not None and self.attempt != send.attempt)
            or (self.text_contains is not None and self.text_contains not in (send.text or ""))
            or (self.share < 1 and luck.random() >= self.share)
        ):
            return False
        self.used += 1
        return True


@dataclass(slots=True)
class Script:
    """How the gateway behaves; ``latency`` and ``jitter`` (added evenly from 0 to it) in milliseconds."""

    rules: list[Rule] = field(default_factory=list)
    latency: float = 0
    jitter: float = 0
    fail: float = 0
    rate: int = 0

    @classmethod
    def parse(cls, raw: Any, default: Script) -> Script:
        """Return the script of a JSON object, numbers left out as in ``default``; raises ValueError."""
        if not isinstance(raw, dict):
            raise ValueError("a script is an object")
        given = dict(raw)
        script = cls(
            rules=[Rule.parse(rule) for rule in _take(given, "rules", list, [])],
            latency=_number(given, "latency", default.latency),
            jitter=_number(given, "jitter", default.jitter),
            fail=_number(given, "fail", default.fail, 1),
            rate=int(_number(given, "rate", default.rate, 10**6)),
        )
        _nothing_left(given)
        return script


# --- The gateway


@dataclass(slots=True)
class Send:
    """One request to send a message, as far as it could be read."""

    id: int | None
    attempt: int
    authorized: bool
    at: datetime
    phone: int | None = None
    text: str | None = None


class Gateway:
    """What the gateway knows: accepted ids, the script, the ledger, counts."""

    def __init__(
        self, script: Script, *, token: str | None = None, seed: int | None = None, ledger: Path | None = None
    ) -> None:
        """Continue ``ledger`` if it exists; raises OSError, and ValueError when it is none."""
        self.original = script
        self.token = token
        self.luck = random.Random(seed)
        self.accepted: set[int] = set()
        self.attempts: dict[int, int] = {}
        self.requests = self.accepted_now = self.repeated = self.in_flight = self.max_in_flight = 0
        self.connections: set[Connection] = set()
        self.failure: OSError | None = None
        self.stop = asyncio.Event()
        self._lines: list[bytes] = []
        self._answers: list[tuple[Connection, Answer]] = []
        self._ledger = None if ledger is None else self._continue(ledger)
        self.behave(script)

    def behave(self, script: Script) -> None:
        """Follow another script from the next request on; its rules count anew."""
        for rule in script.rules:
            rule.used = 0
        self.script = script
        self._recent: deque[float] = deque(maxlen=script.rate)

    def state(self) -> dict[str, Any]:
        """Return the script with the use of each rule, and the counts since the start."""
        script = self.script
        return {
            "simulation": True,
            "rules": [{**rule.given, "used": rule.used} for rule in script.rules],
            **{name: getattr(script, name) for name in ("latency", "jitter", "fail", "rate")},
            "requests": self.requests,
            "accepted": self.accepted_now,
            "repeated": self.repeated,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
        }

    def arrived(self, target: str, headers: dict[bytes, bytes]) -> Send:
        """Return the request as far as its head tells, counted as an attempt of its id."""
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        authorized = scheme.lower() == "bearer" and bool(token) and self.token in (None, token)
        number = target[len(SEND) :].partition("?")[0]
        id = int(number) if number.isascii() and number.isdecimal() and len(number) < 20 else None
        if id is None or id not in INT64:
            return Send(None, 1, authorized, datetime.now(UTC))
        attempt = self.attempts[id] = self.attempts.get(id, 0) + 1
        return Send(id, attempt, authorized, datetime.now(UTC))

    def early(self, send: Send) -> Answer | None:
        """Return the answer that does not wait for the body, if a rule asks for one."""
        for rule in self.script.rules:
            if rule.before_body and rule.applies(send, self.luck):
                return rule.answer
        return None

    def decide(self, send: Send, headers: dict[bytes, bytes], body: bytes) -> Answer:
        """Return the answer to a whole request, in the order that the module's docstring gives."""
        problem = _read_body(send, headers, body)
        if not send.authorized:
            return UNAUTHORIZED
        if problem is not None:
            return _json(400, {"error": problem})
        for rule in self.script.rules:
            if not rule.before_body and rule.applies(send, self.luck):
                return rule.answer
        if self.script.rate and self._too_many():
            return TOO_MANY
        if send.id in self.accepted:
            return OK
        if self.script.fail and self.luck.random() < self.script.fail:
            return FAILED
        return OK

    def _too_many(self) -> bool:
        now = time.monotonic()
        if len(self._recent) == self.script.rate and now - self._recent[0] < 1:
            return True
        self._recent.append(now)
        return False

    def settle(self, connection: Connection, send: Send, answer: Answer) -> None:
        """Enter the request into the ledger; the answer leaves when this turn's lines are written."""
        repeat = send.id in self.accepted
        self.requests += 1
        self.repeated += repeat
        if send.id is not None and answer.status == 200 and answer.code == 0 and not repeat:
            self.accepted.add(send.id)
            self.accepted_now += 1
        if self._ledger is not None:
            line = {
                "at": send.at.isoformat(timespec="microseconds")[:26] + "Z",
                "id": send.id,
                "phone": send.phone,
                "text": send.text,
                "authorized": send.authorized,
                "repeat": repeat,
                "status": answer.status,
                "code": answer.code,
            }
            self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._flush)
        self._answers.append((connection, answer))

    def _flush(self) -> None:
        lines, self._lines = b"".join(self._lines), []
        answers, self._answers = self._answers, []
        if self._ledger is not None:
            try:
                while lines:
                    lines = lines[os.write(self._ledger, lines) :]
            except OSError as error:
                # Nothing may be answered that is not written down.
                self.failure = error
                self.stop.set()
                return
        loop = asyncio.get_running_loop()
        for connection, answer in answers:
            delay = answer.delay + (self.script.latency + self.script.jitter * self.luck.random()) / 1000
            if delay:
                loop.call_later(delay, connection.play, answer)
            else:
                connection.play(answer)

    def _continue(self, path: Path) -> int:
        ledger = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)  # it has phones in it
        if path.is_file():  # a device or a pipe remembers nothing
            for entry in read_ledger(path):
                if entry.id is not None:
                    self.attempts[entry.id] = self.attempts.get(entry.id, 0) + 1
                    if entry.accepted:
                        self.accepted.add(entry.id)
            os.ftruncate(ledger, path.read_bytes().rfind(b"\n") + 1)
        return ledger


def _read_body(send: Send, headers: dict[bytes, bytes], body: bytes) -> str | None:
    """Fill in phone and text where they can be read; return what breaks the contract, if anything."""
    if send.id is None:
        return "the id in the path must be an int64"
    try:
        given = orjson.loads(body)
    except ValueError as error:
        return f"the body is not JSON: {error}"
    if not isinstance(given, dict):
        return "the body must be an object"
    id, phone, text = given.get("id"), given.get("phone"), given.get("text")
    if type(phone) is int and phone in INT64:
        send.phone = phone
    if type(text) is str:
        send.text = text
    if type(id) is not int or id != send.id:
        return "id must be an int64 and the same as in the path"
    if send.phone is None:
        return "phone must be an int64"
    if not send.text:
        return "text must be a string that is not empty"
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
        return "the Content-Type must be application/json"
    return None


# --- The server


@dataclass(slots=True)
class Head:
    """The head of a request; ``send`` where it is one to send a message."""

    method: str
    target: str
    headers: dict[bytes, bytes]
    length: int
    keep_alive: bool
    send: Send | None = None


def _parse_head(data: bytes) -> Head:
    """Return the head of a request; raises ValueError."""
    first, *lines = data.split(b"\r\n")
    method, target, version = first.decode("latin-1").split(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise ValueError("not HTTP/1.1")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError("a header without a colon")
        headers[name.lower()] = value.strip()
    if b"transfer-encoding" in headers:
        raise ValueError("the body needs a Content-Length")
    keep_alive = version == "HTTP/1.1" and headers.get(b"connection", b"").lower() != b"close"
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise ValueError("a bad Content-Length")
    return Head(method, target, headers, int(length), keep_alive)


class Connection(asyncio.Protocol):
    """One client's connection: requests are read and answered one after the other."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.transport: asyncio.Transport
        self.buffer = b""
        self.head: Head | None = None
        self.busy = False
        self.closed = False
        self.stream: Iterator[bytes] | None = None
        self.answer = OK
        self.scheduled = False
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.gateway.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.stream = None
        self.gateway.connections.discard(self)
        if self.busy:
            self.gateway.in_flight -= 1

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        if not self.busy:
            self._read()
        elif len(self.buffer) > MAX_BODY:
            self.transport.pause_reading()

    def _read(self) -> None:
        """Take whole requests from the buffer until one has to be waited for."""
        while not self.busy and not self.transport.is_closing():
            if self.head is None:
                end = self.buffer.find(b"\r\n\r\n")
                if end < 0 and len(self.buffer) <= MAX_HEAD:
                    return
                try:
                    if end < 0 or end > MAX_HEAD:
                        raise ValueError("the head is too long")
                    self.head = _parse_head(self.buffer[:end])
                    if self.head.length > MAX_BODY:
                        raise ValueError("the body is too long")
                except ValueError as error:
                    self._reply(_json(400, {"error": str(error)}), keep_alive=False)
                    return
                self.buffer = self.buffer[end + 4 :]
                if self.head.method == "POST" and self.head.target.startswith(SEND):
                    send = self.head.send = self.gateway.arrived(self.head.target, self.head.headers)
                    early = self.gateway.early(send)
                    if early is not None:
                        self._settle(send, early)
                        return
            head = self.head
            if len(self.buffer) < head.length:
                return
            body, self.buffer = self.buffer[: head.length], self.buffer[head.length :]
            if head.send is not None:
                self._settle(head.send, self.gateway.decide(head.send, head.headers, body))
            else:
                self.head = None
                self._reply(self._route(head, body), head.keep_alive)

    def _settle(self, send: Send, answer: Answer) -> None:
        gateway = self.gateway
        self.busy = True
        gateway.in_flight += 1
        gateway.max_in_flight = max(gateway.max_in_flight, gateway.in_flight)
        gateway.settle(self, send, answer)

    def _reply(self, answer: Answer, keep_alive: bool) -> None:
        self.transport.write(answer.data)
        if not keep_alive:
            self.transport.close()

    def _route(self, head: Head, body: bytes) -> Answer:
        """Answer what is not a request to send."""
        path = head.target.partition("?")[0]
        if path == "/" and head.method == "GET":
            return _json(200, {"simulation": True, "note": NOTE, "send": f"POST {SEND}{{id}}", "control": "/control"})
        if path == "/control":
            return self._control(head.method, body)
        if path.startswith(SEND):
            return _json(405, {"error": "only POST"}, {"Allow": "POST"})
        return _json(404, {"error": "not found"})

    def _control(self, method: str, body: bytes) -> Answer:
        if not ipaddress.ip_address(self.transport.get_extra_info("peername")[0].partition("%")[0]).is_loopback:
            return _json(403, {"error": "from this machine only"})
        gateway = self.gateway
        if method == "POST":
            try:
                gateway.behave(Script.parse(orjson.loads(body), gateway.original))
            except ValueError as error:
                return _json(400, {"error": str(error)})
        elif method == "DELETE":
            gateway.behave(gateway.original)
        elif method != "GET":
            return _json(405, {"error": "GET, POST or DELETE"}, {"Allow": "GET, POST, DELETE"})
        return _json(200, gateway.state())

    def play(self, answer: Answer) -> None:
        """Send an answer that is in the ledger."""
        if self.closed:
            return
        self.answer = answer
        if answer.data:
            self.transport.write(answer.data)
        if answer.stream is None:
            self._finish()
        else:
            self.stream = answer.stream()
            self._pump()

    def _pump(self) -> None:
        # One piece a turn, none while the client does not read: bounded memory, and others get their turn.
        self.scheduled = False
        if self.stream is None or self.paused:
            return
        piece = next(self.stream, None)
        if piece is None:
            self.stream = None
            self._finish()
            return
        self.transport.write(piece)
        self._schedule()

    def _schedule(self) -> None:
        self.scheduled = True
        asyncio.get_running_loop().call_later(self.answer.pause, self._pump)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.stream is not None and not self.scheduled:
            self._schedule()

    def _finish(self) -> None:
        then = self.answer.then
        if then == "hang":
            return
        if then == "reset":
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
            return
        assert self.head is not None
        if then == "close" or not self.head.keep_alive:
            self.transport.close()
            return
        self.head = None
        self.busy = False
        self.gateway.in_flight -= 1
        if self.buffer:
            self.transport.resume_reading()
            self._read()


async def _serve(gateway: Gateway, host: str, port: int, ledger: Path | None, exit_with_parent: bool) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(gateway), host, port, backlog=1024)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, gateway.stop.set)
    if exit_with_parent:
        loop.add_reader(0, _watch_parent, gateway.stop)
    bound = server.sockets[0].getsockname()[1]
    url = f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"
    started = {"event": "simulated gateway started", "url": url, "pid": os.getpid(), "note": NOTE}
    print(json.dumps({**started, "ledger": None if ledger is None else str(ledger)}), flush=True)
    # What exists now stays: the collector need not walk it again for each burst of connections.
    gc.freeze()
    gc.set_threshold(50_000)
    await gateway.stop.wait()
    server.close()
    for connection in list(gateway.connections):
        connection.transport.abort()


def _watch_parent(stop: asyncio.Event) -> None:
    if not os.read(0, 4096):
        stop.set()


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _misbehaviour() -> str:
    """Return what this module says of scripts, as a terminal shows it."""
    text = (__doc__ or "").partition("A script is")[2].partition("The order for a request")[0].replace("``", "")
    # A mark of click's at each paragraph: it leaves the lines as they are.
    return "\b\nA script is " + text.strip().replace("::", ":").replace("\n\n", "\n\n\b\n")


@click.command("gateway", context_settings={"show_default": True}, epilog=_misbehaviour())
@click.option("--host", default="127.0.0.1", help="Where to listen.")
@click.option("--port", default=8090, type=click.IntRange(0, 65535), help="0 takes a free one and prints it.")
@click.option("--latency", default=0.0, metavar="MS", help="Milliseconds before each answer.")
@click.option("--jitter", default=0.0, metavar="MS", help="Up to so many milliseconds more.")
@click.option("--fail", default=0.0, metavar="SHARE", help="Share of requests (0..1) answered 500 and not accepted.")
@click.option("--rate", default=0, metavar="N", help="429 with Retry-After beyond N requests a second; 0: no limit.")
@click.option("--token", metavar="T", help="The one bearer token that is right. [default: any]")
@click.option("--ledger", type=click.Path(path_type=Path, dir_okay=False), help="A JSON line per request; continued.")
@click.option(
    "--script",
    "script_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="JSON with rules for misbehaviour, as POST /control takes it; beats the options.",
)
@click.option("--seed", type=int, help="Makes jitter, --fail and shares repeatable.")
@click.option("--exit-with-parent", is_flag=True, help="End when standard input ends.")
def command(
    host: str,
    port: int,
    latency: float,
    jitter: float,
    fail: float,
    rate: int,
    token: str | None,
    ledger: Path | None,
    script_file: Path | None,
    seed: int | None,
    exit_with_parent: bool,
) -> None:
    """Run the simulated gateway: a stand-in for the external sending API that texts nobody.

    It accepts POST /v1/send/{id}, writes each request into the ledger before it answers, drops ids it has
    accepted already, and misbehaves as told by --script or by POST /control from this machine. For
    development, tests and the demo only: real sending needs GATEWAY_URL and GATEWAY_TOKEN.
    """
    try:
        options = {"latency": latency, "jitter": jitter, "fail": fail, "rate": rate}
        script = Script.parse(options, Script())
        if script_file is not None:
            script = Script.parse(orjson.loads(script_file.read_bytes()), script)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            gateway = Gateway(script, token=token, seed=seed, ledger=ledger)
            runner.run(_serve(gateway, host, port, ledger, exit_with_parent))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        reason = "the port is taken" if error.errno == errno.EADDRINUSE else str(error)
        click.echo(f"Cannot run the simulated gateway on {host}:{port}: {reason}", err=True)
        raise SystemExit(2) from error
    if gateway.failure is not None:
        click.echo(f"The ledger cannot be written: {gateway.failure}", err=True)
        raise SystemExit(1)


# --- A handle for tests and the demo


class Simulator:
    """A simulated gateway in a process of its own, started here and ended with this process at the latest.

    ``with Simulator(latency=50) as gateway:`` takes the command's options by keyword; the port is a free one
    and stays the same when it is stopped and started again. Without ``ledger`` the ledger lies in a folder
    that goes with the handle. Starting blocks for about 0.3 s: in a busy loop use ``asyncio.to_thread``.
    """

    def __init__(self, *, ledger: Path | None = None, port: int = 0, **options: str | int | float | Path) -> None:
        if ledger is None:
            folder = tempfile.mkdtemp(prefix="gateway-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            ledger = Path(folder) / "ledger.jsonl"
        self.ledger = ledger
        self.port = port
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._options = options

    def start(self) -> Simulator:
        """Start the process and wait until it listens; raises RuntimeError when it does not."""
        options = {**self._options, "port": self.port, "ledger": self.ledger}
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        package = Path(__file__).resolve().parent.parent
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "notifier.simulator", "--exit-with-parent", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            # Ctrl-C in the terminal is the parent's business.
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError("the simulated gateway did not start")
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rpartition(":")[2])
        return self

    def stop(self) -> int:
        """End the process, by its id, and return its exit code; what it has written stays readable."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.terminate()
        try:
            code = process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return code

    def script(self, *rules: dict[str, Any], **settings: float) -> dict[str, Any]:
        """Replace the script by these rules and settings (``latency=…``); returns the state."""
        return self._control("POST", json.dumps({"rules": rules, **settings}).encode())

    def reset(self) -> dict[str, Any]:
        """Go back to the script it was started with; returns the state."""
        return self._control("DELETE")

    def state(self) -> dict[str, Any]:
        """Return script and counts: requests, accepted, repeated, in_flight, max_in_flight."""
        return self._control("GET")

    def entries(self) -> list[Entry]:
        """Return the ledger so far."""
        return read_ledger(self.ledger)

    def _control(self, method: str, body: bytes | None = None) -> dict[str, Any]:
        request = Request(f"{self.url}/control", body, method=method)
        with build_opener(ProxyHandler({})).open(request, timeout=STOP_TIMEOUT) as answer:
            state: dict[str, Any] = json.loads(answer.read())
        return state

    def __enter__(self) -> Simulator:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


if __name__ == "__main__":
    command()
