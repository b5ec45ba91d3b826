"""The kinds of answers that a script can ask for, and how the members of its objects are read.

The kinds of ``do`` (``KINDS``), with defaults:

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
"""

from __future__ import annotations

import base64
import itertools
import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from notifier.simulator.answers import OK, SUCCESS, Answer, answer_of, head_of, json_answer

PIECE = 64 * 1024
"""Bytes of ``huge`` that are sent at a time."""


def take(given: dict[str, Any], name: str, kind: type, default: Any) -> Any:
    """Take a member out of ``given``, where only unknown ones stay; raises ValueError for another type."""
    value = given.pop(name, default)
    if value is not default and type(value) is not kind:
        raise ValueError(f"{name}: must be {kind.__name__}, not {value!r}")
    return value


def number(given: dict[str, Any], name: str, default: float, high: float = math.inf) -> float:
    """Take a number from 0 to ``high`` out of ``given``; raises ValueError for anything else."""
    value = given.pop(name, default)
    if type(value) not in (int, float) or not 0 <= value <= high or value == math.inf:
        raise ValueError(f"{name}: must be a number from 0 to {high}, not {value!r}")
    return float(value)


def nothing_left(given: dict[str, Any]) -> None:
    """Raise ValueError if anything is left that nobody has taken."""
    if given:
        raise ValueError(f"unknown: {', '.join(given)}")


def _payload(do: dict[str, Any], default: bytes) -> bytes:
    text, encoded = take(do, "text", str, None), take(do, "base64", str, None)
    if text is not None and encoded is not None:
        raise ValueError("text and base64 exclude each other")
    if encoded is not None:
        return base64.b64decode(encoded, validate=True)
    return default if text is None else text.encode("utf-8", "surrogatepass")


def _headers(do: dict[str, Any]) -> dict[str, str]:
    headers = {
        "Content-Type": take(do, "content_type", str, "application/json"),
        **take(do, "headers", dict, {}),
    }
    for name, value in headers.items():
        if not isinstance(value, str):
            raise ValueError(f"headers: {name} must be str, not {value!r}")
    return headers


def _do_ok(do: dict[str, Any]) -> Answer:
    return OK


def _do_delay(do: dict[str, Any]) -> Answer:
    return replace(OK, delay=number(do, "ms", 0) / 1000)


def _do_status(do: dict[str, Any]) -> Answer:
    status = take(do, "status", int, None)
    if status is None or not 100 <= status <= 999:
        raise ValueError("status: must be an integer from 100 to 999")
    return answer_of(status, _payload(do, b'{"error":"simulated"}'), _headers(do))


def _do_body(do: dict[str, Any]) -> Answer:
    return answer_of(200, _payload(do, b""), _headers(do))


def _do_code(do: dict[str, Any]) -> Answer:
    code = take(do, "code", int, None)
    if code is None:
        raise ValueError("code: is required")
    return json_answer(200, {"code": code, "message": take(do, "message", str, "simulated refusal")})


def _do_drip(do: dict[str, Any]) -> Answer:
    body = _payload(do, SUCCESS)
    whole = answer_of(200, body)
    at_once = 0 if take(do, "head", bool, False) else len(whole.data) - len(body)
    slowly = whole.data[at_once:]

    def stream() -> Iterator[bytes]:
        return (slowly[i : i + 1] for i in range(len(slowly)))

    return replace(whole, data=whole.data[:at_once], stream=stream, pause=number(do, "every", 1000) / 1000)


def _do_hang(do: dict[str, Any]) -> Answer:
    return Answer(0, None, then="hang")


def _do_reset(do: dict[str, Any]) -> Answer:
    return Answer(0, None, then="reset")


def _do_close(do: dict[str, Any]) -> Answer:
    return Answer(0, None, then="close")


def _do_huge(do: dict[str, Any]) -> Answer:
    size = int(number(do, "bytes", 10**9))
    piece = b"x" * PIECE

    def stream() -> Iterator[bytes]:
        yield from itertools.repeat(piece, size // PIECE)
        yield piece[: size % PIECE]

    return Answer(200, None, head_of(200, {"Content-Type": "application/json", "Content-Length": str(size)}), stream)


def _do_gzip_bomb(do: dict[str, Any]) -> Answer:
    count, rest = divmod(int(number(do, "bytes", 10**9)), 2**20)
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

    return Answer(200, None, head_of(200, {**head, "Content-Length": str(length)}), stream)


def _packed(part: bytes) -> bytes:
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return compressor.compress(part) + compressor.flush(zlib.Z_FULL_FLUSH)


def _do_endless_headers(do: dict[str, Any]) -> Answer:
    def stream() -> Iterator[bytes]:
        return (b"X-Endless-%d: %s\r\n" % (n, b"x" * 1000) for n in itertools.count())

    return Answer(200, None, b"HTTP/1.1 200 OK\r\n", stream)


def _do_wrong_length(do: dict[str, Any]) -> Answer:
    promised = len(SUCCESS) + int(number(do, "missing", 100))
    head = head_of(200, {"Content-Type": "application/json", "Content-Length": str(promised)})
    return Answer(200, None, head + SUCCESS, then="close")


def _do_chunked_broken(do: dict[str, Any]) -> Answer:
    head = head_of(200, {"Content-Type": "application/json", "Transfer-Encoding": "chunked"})
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
