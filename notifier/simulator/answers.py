"""What the simulated gateway can answer: the success, its refusals, and the bytes of any other answer."""

from __future__ import annotations

import http
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import orjson


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes over the wire, and the status and code that the ledger says of it (status 0: no answer is given).

    After ``delay`` seconds ``data`` is sent, then the pieces of ``stream`` with ``pause`` seconds between them. Then
    the connection does what ``then`` says.
    """

    status: int
    code: int | None
    data: bytes = b""
    stream: Callable[[], Iterator[bytes]] | None = None
    pause: float = 0
    then: Literal["keep", "close", "reset", "hang"] = "keep"
    delay: float = 0


def head_of(status: int, headers: dict[str, str]) -> bytes:
    """Return a status line and headers, with the empty line after them."""
    phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else "Simulated"
    lines = [f"HTTP/1.1 {status} {phrase}", "Server: notifier-simulator"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def answer_of(status: int, body: bytes, headers: dict[str, str] | None = None) -> Answer:
    """Return a whole answer; headers given beat the usual ones; ``code`` is the one in the body."""
    if status < 200 or status in (204, 304):
        return Answer(status, None, head_of(status, headers or {}))
    usual = {"Content-Type": "application/json", "Content-Length": str(len(body))}
    return Answer(status, _code_in(body), head_of(status, {**usual, **(headers or {})}) + body)


def json_answer(status: int, content: object, headers: dict[str, str] | None = None) -> Answer:
    """Return a whole answer with ``content`` as JSON."""
    return answer_of(status, orjson.dumps(content), headers)


def _code_in(body: bytes) -> int | None:
    try:
        code = orjson.loads(body)["code"]
    except (ValueError, TypeError, KeyError):
        return None
    return code if type(code) is int else None


SUCCESS = b'{"code":0,"message":"OK"}'
OK = answer_of(200, SUCCESS)
UNAUTHORIZED = json_answer(401, {"error": "wrong or missing bearer token"}, {"WWW-Authenticate": "Bearer"})
TOO_MANY = json_answer(429, {"error": "too many requests"}, {"Retry-After": "1"})
FAILED = json_answer(500, {"error": "simulated failure"})
