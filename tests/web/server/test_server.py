"""How many connections the server holds and for how long: clients that are silent, slow or many."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
import tracemalloc
from contextlib import AsyncExitStack, ExitStack, suppress

import pytest
from structlog.typing import EventDict
from tornado.ioloop import IOLoop

from chaos.stage import PATIENCE
from notifier.web import files, server
from notifier.web.base import SMALL_BODY
from notifier.web.handlers import Handler
from notifier.web.routes import API, Route, make_application
from tests.conftest import poll_until
from tests.web.conftest import TOKEN, Api, MakeApi
from tests.web.server.wire import GET, SLOW, Slow, asking, figure, received, wire


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
