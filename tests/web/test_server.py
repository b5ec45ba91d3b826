"""The server's edge, met over bare sockets: clients that are silent, slow, many, odd or rude."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import socket
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

import pytest
from structlog.typing import EventDict
from tornado.ioloop import IOLoop

from chaos.stage import PATIENCE
from notifier import telemetry
from notifier.web import application, base, files, server
from notifier.web.auth import PUBLIC
from notifier.web.base import SMALL_BODY, Base
from notifier.web.budgets import LogLimit
from notifier.web.handlers import Handler
from notifier.web.routes import API, ROUTES, Route, make_application
from tests.conftest import poll_until
from tests.web.conftest import TOKEN, Api, MakeApi


@dataclass
class Wire:
    """A bare connection: what a client sends that keeps no rules."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, path: str, *headers: str, body: bytes = b"", token: str | None = None) -> None:
        lines = [f"POST {path} HTTP/1.1", "Host: x", *headers, *([f"Authorization: Bearer {token}"] if token else [])]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def answer(self) -> int:
        """Read an answer to its end and return the status."""
        return (await self.whole())[0]

    async def whole(self) -> tuple[int, dict[str, str], bytes]:
        """Read an answer to its end: status, headers by their names in lower case, body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        headers = {name.lower(): value for name, value in re.findall(r"(?m)^([^:\r\n]+): (.*?)\r$", head)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head.split()[1]), headers, body

    async def is_closed(self) -> bool:
        """Wait until the server closes."""
        with suppress(ConnectionResetError):
            return await self.reader.read(1) == b""
        return True


@asynccontextmanager
async def wire(api: Api) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def figure(name: str, **labels: str) -> float:
    return telemetry.REGISTRY.get_sample_value(name, labels) or 0.0


# ---- how many connections


async def test_a_crowd_that_says_nothing_keeps_nobody_out(make_api: MakeApi, logs: list[EventDict]) -> None:
    api = make_api(most=20)
    crowded = figure("notifier_http_closed_total", reason="crowded")
    async with wire(api) as kept, AsyncExitStack() as stack:
        kept.writer.write(GET)
        assert await kept.answer() == 200
        silent = [await stack.enter_async_context(wire(api)) for _ in range(60)]
        for _ in range(5):
            async with wire(api) as each:
                each.writer.write(GET)
                assert await each.answer() == 200
        assert figure("notifier_http_connections") <= 20
        assert await silent[0].is_closed()  # the one that was silent longest
        assert figure("notifier_http_closed_total", reason="crowded") - crowded >= 40
        assert len([each for each in logs if str(each["event"]).startswith("too many connections")]) == 1


class Slow(Base):
    """Answers when it is told to."""

    release: asyncio.Event

    async def get(self) -> None:
        await Slow.release.wait()
        self.write("at last")


class Large(Base):
    async def get(self) -> None:
        self.write(b" " * 64 * 2**20)


SLOW = (*ROUTES, Route("/slow", Slow, {"GET": PUBLIC}), Route("/large", Large, {"GET": PUBLIC}))


@pytest.fixture
def slow(make_api: MakeApi) -> Api:
    Slow.release = asyncio.Event()
    return make_api(lambda context: make_application(context, SLOW), most=5)


async def test_who_is_being_answered_makes_room_for_nobody(slow: Api) -> None:
    wires = [await asyncio.open_connection("127.0.0.1", int(slow.url.rpartition(":")[2])) for _ in range(5)]
    for _, writer in wires:
        writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
    await poll_until(lambda: len(slow.server.busy()) == 5)
    async with wire(slow) as sixth:
        assert await sixth.is_closed()
    Slow.release.set()
    for reader, writer in wires:
        assert (await reader.readline()).split()[1] == b"200"
        writer.close()


class Mine(Handler):
    async def get(self) -> None:
        self.write(b" " * 64 * 2**20)


@contextmanager
def asking(api: Api, *requests: str, token: str = "") -> Iterator[socket.socket]:
    """A client that asks, and reads what it is made to read only."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # before it connects: the window is never larger
        client.connect(("127.0.0.1", int(api.url.rpartition(":")[2])))
        client.setblocking(False)
        for path in requests:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        yield client


async def received(client: socket.socket, size: int) -> bytes:
    """Read so many bytes, none once the server has closed."""
    with suppress(ConnectionResetError):
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, size), PATIENCE)
    return b""


async def test_who_reads_slowest_makes_room_and_who_has_a_token_does_not(make_api: MakeApi) -> None:
    """Four who do not read what they asked for, one who reads, and one who does not and has a token."""
    routes = (*SLOW, Route("/mine", Mine, {"GET": "clients:read"}))
    api = make_api(lambda context: make_application(context, routes), most=6)
    with ExitStack() as stack:
        holding = [stack.enter_context(asking(api, "/large")) for _ in range(4)]
        reading, mine = (
            stack.enter_context(asking(api, "/large")),
            stack.enter_context(asking(api, "/mine", token=TOKEN)),
        )
        for client in (*holding, reading, mine):
            assert (await received(client, 12)).endswith(b"200")
        left = 2**20
        while left > 0:  # 16 s, as it is counted
            left -= len(await received(reading, 65_536))
        async with AsyncExitStack() as newcomers:
            for _ in range(4):
                each = await newcomers.enter_async_context(wire(api))
                each.writer.write(GET)
                assert await each.answer() == 200
            for client in holding:
                while await received(client, 65_536):
                    pass
            assert await received(mine, 10)
            assert len(await received(reading, 10)) == 10


async def test_if_all_who_read_slowly_have_a_token_the_new_one_is_closed(make_api: MakeApi) -> None:
    routes = (*SLOW, Route("/mine", Mine, {"GET": "clients:read"}))
    api = make_api(lambda context: make_application(context, routes), most=3)
    with ExitStack() as stack:
        for client in [stack.enter_context(asking(api, "/mine", token=TOKEN)) for _ in range(3)]:
            assert (await received(client, 12)).endswith(b"200")
        async with wire(api) as fourth:
            assert await fourth.is_closed()


async def test_a_file_is_in_memory_once_however_many_do_not_read_it(make_api: MakeApi) -> None:
    """Each asks for it four times at once: the second answer is not made before the first is read."""
    script = "vendor/swagger-ui/swagger-ui-bundle.js"
    api = make_api()
    size = len(files.files()[script].body)
    async with wire(api) as each:  # what is made once only
        each.writer.write(GET)
        assert await each.answer() == 200
    tracemalloc.start()
    try:
        with ExitStack() as stack:
            clients = [stack.enter_context(asking(api, *[f"/static/{script}"] * 4)) for _ in range(20)]
            for client in clients:
                assert (await received(client, 12)).endswith(b"200")
            assert len(api.server.busy()) == 20
            assert tracemalloc.get_traced_memory()[1] < size
    finally:
        tracemalloc.stop()


async def test_where_no_file_is_left_accepting_rests_and_says_so_once(api: Api, logs: list[EventDict]) -> None:
    port = int(api.url.rpartition(":")[2])
    assert (await api.get("//healthz")).status == 200
    waiting = [socket.create_connection(("127.0.0.1", port)) for _ in range(5)]  # in the kernel's queue
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/dev/fd"))), hard))
    holes = []
    with suppress(OSError):
        while True:
            holes.append(os.dup(0))
    try:
        for _ in range(5):
            await asyncio.sleep(server.PAUSE / 2)
            assert (await api.get("//healthz")).status == 200  # on its kept connection
        short = [each for each in logs if str(each["event"]).startswith("cannot accept connections")]
        assert [each["log_level"] for each in short] == ["error"]
        assert "raise the limit of open files" in short[0]["event"]
    finally:
        for each in holes:
            os.close(each)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    for client in waiting:
        client.sendall(GET)
        client.setblocking(False)
        got = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 100), PATIENCE)
        assert got.startswith(b"HTTP/1.1 200")
        client.close()


def test_room_is_what_the_gateway_and_the_database_leave() -> None:
    assert server.room_for_connections(1024, 100) == 1024 - 100 - 20 - 64
    assert server.room_for_connections(1024, 2000) < server.CONNECTIONS_LEAST
    assert server.room_for_connections(65_536, 100) == server.CONNECTIONS_MOST


# ---- for how long


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, seconds in {"FIRST_HEAD": 0.2, "SWEEP": 0.05, "STALLED": 0.3, "BODY_TIME": 0.2}.items():
        monkeypatch.setattr(server, name, seconds)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"GET / HTTP/1.1\r\nHo",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{",
        f"POST {API}/clients/batch HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Length: {2 * SMALL_BODY}\r\n\r\n{{".encode(),
    ],
    ids=["nothing", "head", "body", "large body with a token"],
)
async def test_who_stalls_is_cut_off(make_api: MakeApi, sent: bytes) -> None:
    async with wire(make_api()) as each:
        each.writer.write(sent)
        assert await each.is_closed()


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("before", [b"", GET], ids=["first", "second"])
async def test_a_head_that_trickles_is_cut(api: Api, before: bytes) -> None:
    async with wire(api) as each:
        if before:
            each.writer.write(before)
            assert await each.answer() == 200

        async def trickle() -> None:
            with suppress(ConnectionError):
                for letter in b"GET /healthz HTTP/1.1\r\nX-Long: " + b"a" * 100_000:
                    each.writer.write(bytes([letter]))
                    await each.writer.drain()
                    await asyncio.sleep(0.02)

        task = asyncio.ensure_future(trickle())
        assert await each.is_closed()
        task.cancel()


@pytest.mark.usefixtures("impatient")
async def test_between_requests_there_is_more_time_than_for_a_head(api: Api) -> None:
    async with wire(api) as each:
        for _ in range(2):
            each.writer.write(GET)
            assert await each.answer() == 200
            await asyncio.sleep(4 * server.FIRST_HEAD)


@pytest.mark.usefixtures("impatient")
async def test_who_asks_nothing_more_is_closed_in_time(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "IDLE", 1.0)
    slow = figure("notifier_http_closed_total", reason="slow_head")
    async with wire(api) as each:
        each.writer.write(GET)
        assert await each.answer() == 200
        assert await each.is_closed()
    assert figure("notifier_http_closed_total", reason="slow_head") == slow


@pytest.mark.usefixtures("impatient")
async def test_who_waits_for_an_answer_has_sent_its_body_in_time(slow: Api) -> None:
    async with wire(slow) as each:
        each.writer.write(b"GET /slow HTTP/1.1\r\nHost: x\r\n\r\n")
        await poll_until(lambda: len(slow.server.busy()) == 1)
        await asyncio.sleep(3 * server.BODY_TIME)
        Slow.release.set()
        assert await each.answer() == 200


@pytest.mark.usefixtures("impatient")
async def test_who_does_not_read_what_it_asked_for_is_cut(slow: Api) -> None:
    with socket.create_connection(("127.0.0.1", int(slow.url.rpartition(":")[2]))) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
        await poll_until(lambda: len(slow.server.busy()) == 1)
        await poll_until(lambda: len(slow.server.busy()) == 0)
    assert figure("notifier_http_closed_total", reason="stalled") >= 1


@pytest.mark.usefixtures("impatient")
async def test_who_reads_too_slowly_is_cut(slow: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SLOWEST", 2**30)
    stalled = figure("notifier_http_closed_total", reason="stalled")
    with asking(slow, "/large") as client:
        got = 0
        while data := await received(client, 65_536):  # some progress within each 10 ms
            got += len(data)
            await asyncio.sleep(0.01)
    assert got < 64 * 2**20
    assert figure("notifier_http_closed_total", reason="stalled") == stalled + 1


async def test_a_client_that_asks_on_at_once_does_not_have_us_listen_anew(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind, changed = type(IOLoop.current()), []
    update = kind.update_handler

    def counted(self: IOLoop, fd: int, events: int) -> None:
        changed.append(events)
        update(self, fd, events)

    monkeypatch.setattr(kind, "update_handler", counted)

    def ask() -> None:
        with socket.create_connection(("127.0.0.1", int(api.url.rpartition(":")[2]))) as client:
            for _ in range(300):
                client.sendall(GET)
                assert client.recv(65_536).startswith(b"HTTP/1.1 200")

    await asyncio.to_thread(ask)
    assert changed == []


# ---- heads


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


async def test_what_strangers_ask_is_not_logged_without_bound(make_api: MakeApi, logs: list[EventDict]) -> None:
    api = make_api(log_limit=LogLimit(rate=0.0, burst=300))
    api.token = "wrong"
    for _ in range(500):
        await api.get("/clients")
    assert 300 <= len(logs) < 450
    api.token = TOKEN
    await api.get("/clients?tag=known")
    assert logs[-1]["path"] == f"{API}/clients"


async def test_of_a_path_no_part_is_long_and_200_characters_are_logged(api: Api, logs: list[EventDict]) -> None:
    for path in (
        "static/a/" + "b" * 1025,
        "static/" + "a/" * 3_000,
        "admin/" + "a" * 9_000,
        "api/v1/gateways/" + "a" * 1025,
    ):
        assert (await api.get(f"//{path}")).status == 404
    lines = [each for each in logs if each["event"] == "request"]
    assert len(lines) == 4
    assert {len(each["path"]) for each in lines} == {200}


# ---- bodies that nobody wants


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
