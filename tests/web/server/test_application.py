"""Large bodies that nobody wants: refused by the head, never kept, never looked at."""

from __future__ import annotations

from contextlib import suppress

import pytest

from notifier.web import application, base
from notifier.web.base import SMALL_BODY
from notifier.web.routes import API
from tests.web.conftest import TOKEN, Api
from tests.web.server.wire import wire

REFUSED = {
    f"{API}/clients": 401,
    f"{API}/clients/batch": 401,
    f"{API}/statistics": 405,
    "/nothing": 404,
    "/healthz": 405,
    "/admin/login": 413,
    "/admin/mailings": 401,
}


@pytest.mark.parametrize("announced", ["Content-Length: 5000000000", "Transfer-Encoding: chunked"])
async def test_a_large_body_is_refused_by_the_head_alone(api: Api, announced: str) -> None:
    for path, status in REFUSED.items():
        if announced.startswith("Transfer") and status == 413:
            continue
        async with wire(api) as each:
            each.send(path, announced, "Content-Type: multipart/form-data; boundary=x")
            assert await each.answer() == status, path
    async with wire(api) as each:
        each.send(f"{API}/clients", "Content-Length: 1048577", token=TOKEN)
        assert await each.answer() == 413


async def test_of_a_refused_body_nothing_is_kept_and_the_connection_lives(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(base.Base, "on_finish", lambda self: kept.append(len(self.request.body)))
    async with wire(api) as each:
        each.send(f"{API}/clients/batch", "Content-Length: 8000000")
        assert await each.answer() == 401
        each.writer.write(b" " * 8_000_000)
        each.send(f"{API}/clients", "Content-Length: 25", body=b'{ "phone": "79161234567"}', token=TOKEN)
        assert await each.answer() == 201
        each.send("/admin/login", "Transfer-Encoding: chunked")
        for _ in range(5):
            each.writer.write(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        assert await each.answer() == 413
    assert kept[0] == 0
    assert kept[2] <= SMALL_BODY


async def test_who_asks_before_sending_a_body_is_told_not_to(api: Api) -> None:
    async with wire(api) as each:
        each.send(f"{API}/clients/batch", "Content-Length: 8000000", "Expect: 100-continue")
        assert await each.answer() == 401
        assert await each.reader.read() == b""  # closed: what came next could be a body or not
    async with wire(api) as each:
        each.send(f"{API}/clients/batch", "Content-Length: 8000000", "Expect: 100-continue", token=TOKEN)
        assert (await each.reader.readline()).split()[1] == b"100"


async def test_a_refused_body_without_end_ends_the_connection(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "DROPPED_MAX", 2**20)
    async with wire(api) as each:
        each.send("/nothing", "Content-Length: 5000000000", body=b" " * 2**21)
        assert await each.answer() == 404
        with suppress(ConnectionResetError):
            assert await each.reader.read() == b""


CHUNKS_REFUSED = (f"{API}/clients/batch", "Transfer-Encoding: chunked")


async def test_chunks_of_a_refused_body_are_not_looked_at(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "DROPPED_MAX", 2**20)
    async with wire(api) as each:
        each.send(*CHUNKS_REFUSED)
        status, headers, _ = await each.whole()
        assert (status, headers["connection"]) == (401, "close")
        for _ in range(3):
            each.writer.write(b"1\r\nx\r\n" * 10_000)
            each.writer.write(b"no chunk\r\n" * 10)
            await each.writer.drain()
            assert (await api.get("//healthz")).status == 200
        assert not each.reader.at_eof()
        with suppress(ConnectionError):
            for _ in range(200):
                each.writer.write(b"1\r\nx\r\n" * 10_000)
                await each.writer.drain()
        assert await each.is_closed()


@pytest.mark.parametrize("token", [None, TOKEN])
async def test_who_reads_only_after_a_large_body_in_chunks_gets_its_answer(api: Api, token: str | None) -> None:
    async with wire(api) as each:
        each.send(*CHUNKS_REFUSED, token=token)
        for _ in range(800):
            each.writer.write(b"4000\r\n" + b" " * 0x4000 + b"\r\n")
            await each.writer.drain()
        each.writer.write(b"0\r\n\r\n")
        await each.writer.drain()
        assert await each.answer() == (401 if token is None else 413)
