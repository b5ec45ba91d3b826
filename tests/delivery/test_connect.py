"""Connections with a gateway: names, several addresses, TLS, and what became of one that could not be opened."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop
from yarl import URL

from notifier.delivery.connect import Endpoint
from notifier.delivery.gateway import Gateway
from notifier.models import Outcome, Reason
from tests.conftest import poll_until
from tests.delivery.scripted import OK, Server, send, serving

LOOPBACK = ["127.0.0.1", "127.0.0.2"]


class Names:
    """A name service in the place of the machine's: one name with these addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.asked = 0
        self.answers = threading.Event()
        self.answers.set()

    def getaddrinfo(self, host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        """As that of the standard library."""
        self.asked += 1
        self.answers.wait(60)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)) for address in self.addresses
        ]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A name with one address, until the test says otherwise."""
    names = Names("127.0.0.1")
    monkeypatch.setattr("socket.getaddrinfo", names.getaddrinfo)
    return names


@contextmanager
def two_addresses() -> Iterator[list[socket.socket]]:
    """Yield two listening sockets with one port, each at an address of its own."""
    with ExitStack() as stack:
        first = stack.enter_context(socket.create_server((LOOPBACK[0], 0)))
        try:
            second = stack.enter_context(socket.create_server((LOOPBACK[1], first.getsockname()[1])))
        except OSError:
            pytest.skip("the loopback has one address only")
        yield [first, second]


async def test_each_connection_begins_with_the_next_address(names: Names) -> None:
    names.addresses = (*LOOPBACK,)
    servers = [Server([[OK]] * 2), Server([[OK]] * 2)]
    with two_addresses() as sockets:
        listening = [
            await asyncio.start_server(server.serve, sock=sock) for server, sock in zip(servers, sockets, strict=True)
        ]
        async with Gateway("default", f"http://gw.test:{sockets[0].getsockname()[1]}", "t", timeout=60) as gateway:
            answers = await asyncio.gather(*(send(gateway) for _ in range(4)))
        for each in listening:
            each.close()
    assert {answer.outcome for answer in answers} == {Outcome.ACCEPTED}
    assert [len(server.requests) for server in servers] == [2, 2]
    assert names.asked == 1


async def test_an_address_that_does_not_answer_does_not_keep_the_others(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next is tried beside it after a quarter of a second, long before the time for a connection is over."""
    monkeypatch.setattr("notifier.delivery.gateway.CONNECT_TIMEOUT", 60.0)
    with two_addresses() as (good, full), ExitStack() as queue:
        names.addresses = (*LOOPBACK, *LOOPBACK[1:])  # whichever comes first: most connections begin with the bad one
        full.listen(0)
        for _ in range(3):  # its queue
            waiting = queue.enter_context(socket.socket())
            waiting.setblocking(False)
            with suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        server = Server([[OK]] * 3)
        listening = await asyncio.start_server(server.serve, sock=good)
        async with Gateway("default", f"http://gw.test:{full.getsockname()[1]}", "t", timeout=60) as gateway:
            answers = await asyncio.gather(*(send(gateway) for _ in range(3)))
        listening.close()
    assert [answer.outcome for answer in answers] == [Outcome.ACCEPTED] * 3


async def test_a_name_is_looked_up_once_for_all_and_again_after_a_while(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(*[[OK]] * 10) as (_, gateway):
        await asyncio.gather(*(send(gateway) for _ in range(8)))
        assert names.asked == 1
    monkeypatch.setattr("notifier.delivery.connect.LOOKUP_LIFE", 0.0)
    async with serving(*[[OK]] * 10) as (_, gateway):
        await asyncio.gather(*(send(gateway) for _ in range(4)))
        await asyncio.gather(*(send(gateway) for _ in range(5)))  # one connection more than there are
        assert names.asked == 3


async def test_a_name_that_was_not_found_is_looked_up_again_by_the_next(names: Names) -> None:
    names.addresses = ()
    async with serving([OK]) as (_, gateway):
        answers = await asyncio.gather(*(send(gateway) for _ in range(3)))
        assert {(answer.outcome, answer.reason) for answer in answers} == {(Outcome.UNAVAILABLE, Reason.DNS)}
        assert "Name or service not known" in str(answers[0].detail)
        names.addresses = ("127.0.0.1",)
        assert (await send(gateway)).outcome is Outcome.ACCEPTED
    assert names.asked == 2


async def test_a_name_service_that_hangs_is_asked_once_and_not_waited_for(
    names: Names, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("notifier.delivery.gateway.CONNECT_TIMEOUT", 0.1)
    names.answers.clear()
    async with serving() as (_, gateway):
        assert [(await send(gateway)).reason for _ in range(2)] == [Reason.CONNECT_TIMEOUT] * 2
        names.answers.set()
    assert names.asked == 1


async def test_what_is_being_opened_while_the_gateway_is_closed_sends_nothing(names: Names) -> None:
    names.answers.clear()
    async with serving([OK]) as (server, gateway):
        task = asyncio.create_task(send(gateway))
        await poll_until(lambda: names.asked == 1)
        await gateway.close()
        names.answers.set()
        answer = await task
        assert (answer.outcome, answer.reason) == (Outcome.UNAVAILABLE, Reason.REFUSED)
        await poll_until(lambda: server.open == 0)
    assert not server.requests


async def test_a_gateway_that_closes_at_once_is_not_waited_for() -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    listening = await asyncio.start_server(close, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with Gateway("default", f"http://127.0.0.1:{port}", "t", timeout=60) as gateway:
        answers = [await send(gateway) for _ in range(20)]
    listening.close()
    assert {answer.reason for answer in answers} == {Reason.RESET}


async def test_a_connection_that_is_gone_before_its_request_takes_none() -> None:
    """Its end came first, so nobody would tell of it."""
    async with serving() as (server, gateway):
        endpoint = Endpoint(URL(gateway.url), 3.0)
        wire = await endpoint.connect()
        await poll_until(lambda: server.open == 1)
        server.writers[0].close()
        await poll_until(lambda: server.open == 0)
        with pytest.raises(ConnectionResetError):
            await wire.request(b"POST", asyncio.get_running_loop().time() + 60)
        endpoint.close()


async def test_no_proxy_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with serving([OK]) as (_, gateway):
        assert (await send(gateway)).outcome is Outcome.ACCEPTED


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run])
def test_where_tls_fails_nothing_was_sent(run: Any) -> None:
    """A certificate of nobody we trust, one that is of another name, and no TLS at all: under either loop."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)

    async def answer_plainly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        writer.close()

    async def reasons() -> list[tuple[Outcome, Reason | None]]:
        found = []
        for tls in (context, None):
            listening = await asyncio.start_server(answer_plainly, "127.0.0.1", 0, ssl=tls)
            port = listening.sockets[0].getsockname()[1]
            async with Gateway("default", f"https://localhost:{port}", "t", timeout=60) as gateway:
                answer = await send(gateway)
                found.append((answer.outcome, answer.reason))
            listening.close()
        return found

    assert run(reasons()) == [(Outcome.UNAVAILABLE, Reason.TLS)] * 2


async def test_where_one_of_several_addresses_has_a_bad_certificate_another_is_taken(tmp_path: Path) -> None:
    """In a process of its own that trusts the test's authority by its environment."""
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = Server([[OK]] * 2)
    with two_addresses() as sockets:
        listening = []
        for sock, issuer in zip(sockets, (authority, trustme.CA()), strict=True):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            issuer.issue_cert("gw.test").configure_cert(context)
            listening.append(await asyncio.start_server(server.serve, sock=sock, ssl=context))
        program = f"""
import asyncio, socket
from tests.delivery.test_connect import LOOPBACK, Names
from notifier.delivery.gateway import Gateway
socket.getaddrinfo = Names(*LOOPBACK).getaddrinfo
async def main():
    async with Gateway("default", "https://gw.test:{sockets[0].getsockname()[1]}", "t", timeout=60) as gateway:
        for answer in await asyncio.gather(*(gateway.send(each, 79160000000, b'"x"') for each in range(2))):
            print(answer.outcome.value)
asyncio.run(main())
"""
        env = {**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        done = await asyncio.to_thread(
            subprocess.run, [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=120
        )
        for each in listening:
            each.close()
    assert done.stdout.split() == ["accepted", "accepted"], done.stderr
