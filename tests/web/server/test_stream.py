"""What is read of requests over a bare socket: heads, chunks, and clients that shut their side down."""

from __future__ import annotations

import asyncio
import json
import os

import pytest
from structlog.typing import EventDict

from notifier.web.routes import API
from tests.conftest import poll_until
from tests.web.conftest import TOKEN, Api
from tests.web.server.wire import GET, Slow, wire

LOGIN = b"POST /admin/login HTTP/1.1\r\nHost: x\r\n"
CHUNKED = LOGIN + b"Transfer-Encoding: chunked\r\n\r\n"


UNREADABLE = {
    "no host": (b"GET / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    "absolute form without a host": (b"GET http://x/ HTTP/1.1\r\n\r\n", 400),
    "a fragment in the absolute form": (b"GET http://x/healthz#x HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "an empty fragment": (b"GET http://x/healthz# HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "no request": (b"hello\r\n\r\n", 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    "a bad length": (b"POST /api/v1/clients HTTP/1.1\r\nHost: x\r\nContent-Length: two\r\n\r\n", 400),
    "two lengths": (LOGIN + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "length and chunks": (LOGIN + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
    "chunks in HTTP/1.0": (CHUNKED.replace(b"1.1", b"1.0") + b"0\r\n\r\n", 400),
    "an encoding": (LOGIN + b"Transfer-Encoding: gzip\r\n\r\n", 400),
    "a bad chunk": (CHUNKED + b"xyz\r\n", 400),
    "a chunk's line without end": (CHUNKED + b"1" * 10_000, 400),
    "a line end in an extension": (CHUNKED + b"1;a\n\r\nx\r\n0\r\n\r\n", 400),
    "many chunks": (CHUNKED + b"1\r\nx\r\n" * 300, 400),
    "trailers without end": (CHUNKED + b"0\r\n" + b"a: b\r\n" * 5_000, 400),
    "a long address": (b"GET /" + b"a" * 80_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "an address that came in one piece": (b"GET /" + b"a" * 17_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
    "a long header": (b"GET / HTTP/1.1\r\nHost: x\r\nCookie: " + b"a" * 80_000 + b"\r\n\r\n", 431),
    "many headers": (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a: b\r\n" * 5_000 + b"\r\n", 431),
}


@pytest.mark.parametrize("name", UNREADABLE)
async def test_what_cannot_be_read_is_answered_like_all_else(api: Api, logs: list[EventDict], name: str) -> None:
    sent, expected = UNREADABLE[name]
    async with wire(api) as each:
        each.writer.write(sent)
        status, headers, body = await each.whole()
        problem = json.loads(body)
        assert (status, problem["status"], headers["content-type"]) == (expected, expected, "application/problem+json")
        assert headers["x-request-id"] == problem["request_id"]
        assert len(problem["detail"]) > 20
        assert headers["connection"] == "close"
        assert await each.is_closed()
    (entry,) = [entry for entry in logs if entry["event"] == "request refused"]
    assert (entry["status"], entry["request_id"]) == (expected, problem["request_id"])
    assert (await api.get("//healthz")).status == 200


async def test_a_head_of_just_under_16_kb_is_read(api: Api) -> None:
    async with wire(api) as each:
        each.writer.write(GET[:-2] + b"Cookie: " + b"a" * 16_000 + b"\r\n\r\n")
        assert await each.answer() == 200


async def test_an_address_in_absolute_form(api: Api) -> None:
    for target, status in {
        "http://elsewhere:1/healthz": 200,
        "HTTP://elsewhere/healthz?a=b": 200,
        "http://elsewhere": 302,
        "http://elsewhere/nothing": 404,
        "ftp://elsewhere/healthz": 404,
        "*": 404,
    }.items():
        async with wire(api) as each:
            each.writer.write(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert await each.answer() == status, target


@pytest.mark.parametrize("pieces", [1, 0], ids=["at once", "byte by byte"])
async def test_chunks_with_extensions_and_trailers(api: Api, pieces: int) -> None:
    head = (
        f"POST {API}/clients HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
    body = b'{"phone": "79161234567"}'
    chunks = b'a;name="quoted \\" ; value"\r\n' + body[:10] + b"\r\n"
    chunks += b"e ; last\r\n" + body[10:] + b"\r\n000;x=y\r\nX-Checksum: 1\r\nX-More: 2\r\n\r\n"
    async with wire(api) as each:
        for part in [chunks] if pieces else [bytes([byte]) for byte in chunks]:
            each.writer.write(head.encode() + part)
            head = ""
            await each.writer.drain()
            await asyncio.sleep(0)
        assert await each.answer() == 201
        each.writer.write(GET)  # nothing of it was left over
        assert await each.answer() == 200


async def test_who_shuts_its_side_down_after_the_request_is_answered(slow: Api) -> None:
    port = int(slow.url.rpartition(":")[2])
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    body = b'{"phone": "79161234567"}'
    writer.write(
        f"POST {API}/clients HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\nContent-Length: {len(body)}"
        "\r\n\r\n".encode()
        + body
    )
    writer.write_eof()
    answer = await reader.read()
    assert answer.startswith(b"HTTP/1.1 201")
    assert b'"phone":"79161234567"' in answer
    writer.close()


async def test_an_answer_that_takes_time_reaches_who_has_shut_its_side_down(slow: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(slow.url.rpartition(":")[2]))
    writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    await poll_until(lambda: len(slow.server.busy()) == 1)
    writer.write_eof()
    spent = os.times().user
    await asyncio.sleep(0.3)
    assert os.times().user - spent < 0.2  # the end that is told again and again is not listened to
    Slow.release.set()
    assert (await reader.read()).endswith(b"at last")
    writer.close()


async def test_a_large_answer_reaches_who_has_shut_its_side_down(slow: Api) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(slow.url.rpartition(":")[2]))
    writer.write(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
    writer.write_eof()
    await asyncio.sleep(0.1)
    assert len(await reader.read()) > 64 * 2**20
    writer.close()
