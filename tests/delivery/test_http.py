"""A connection with a gateway: what it survives, when it is used again, and when it is given up."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from notifier.delivery.http import Wire
from notifier.delivery.reader import Reader
from notifier.models import Outcome, Reason
from tests.conftest import poll_until
from tests.delivery.scripted import FIN, OK, Server, send, serving


async def idling(seconds: float) -> float:
    """Wait, and return how long that took: on a busy machine longer than it was to."""
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(seconds)
    return asyncio.get_running_loop().time() - began


async def test_the_bytes_of_a_request() -> None:
    async with serving([OK]) as (server, gateway):
        assert (await send(gateway)).outcome is Outcome.ACCEPTED
    head, body = server.requests[0][1].split(b"\r\n\r\n")
    line, *headers = head.decode().split("\r\n")
    fields = dict(header.split(": ") for header in headers)
    assert line == "POST /base/v1/send/7 HTTP/1.1"
    assert fields.pop("Host").startswith("127.0.0.1:")
    assert fields.pop("User-Agent").startswith("notifier/")
    assert fields == {
        "Authorization": "Bearer secret",
        "Accept": "application/json",
        "Accept-Encoding": "identity",
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
    }
    assert body == b'{"id":7,"phone":79160000000,"text":"x"}'


async def test_a_connection_is_used_again() -> None:
    """Also after a refusal, after an informational answer, and after a body in pieces."""
    scripts = [
        [OK],
        [b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n"],
        [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", OK],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b'7\r\n{"code"\r\n', b"3\r\n:0}\r\n0\r\n\r\n"],
        [OK[:20], OK[20:50], OK[50:]],
    ]
    async with serving(*scripts) as (server, gateway):
        codes = [(await send(gateway)).status_code for _ in scripts]
    assert codes == [200, 503, 200, 200, 200]
    assert {number for number, _ in server.requests} == {0}


@pytest.mark.parametrize(
    "first",
    [
        [b'HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 10\r\n\r\n{"code":0}'],
        [b'HTTP/1.0 200 OK\r\nContent-Length: 10\r\n\r\n{"code":0}'],
        [b'HTTP/1.1 200 OK\r\n\r\n{"co', b'de":0}', FIN],
        [OK + OK],
        [OK + OK[:10]],
        [OK + b"HT"],
        [OK, FIN],
    ],
    ids=["told to close", "HTTP/1.0", "until its end", "two answers", "one and a half", "a letter", "closed after it"],
)
async def test_a_connection_that_cannot_be_used_again_is_not(first: list[bytes]) -> None:
    async with serving(first, [OK]) as (server, gateway):
        assert (await send(gateway)).outcome is Outcome.ACCEPTED
        if first == [OK, FIN]:
            await poll_until(lambda: server.open == 0)
        assert (await send(gateway)).outcome is Outcome.ACCEPTED
    assert [number for number, _ in server.requests] == [0, 1]


async def test_trailers_are_not_headers_of_the_next_answer() -> None:
    chunked = b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n{"code":0}\r\n0\r\n'
    scripts = [
        [chunked + b"Retry-After: 999\r\n\r\n"],
        [b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n"],
        [chunked + b"Content-Encoding: gzip\r\n\r\n"],
        [OK],
    ]
    async with serving(*scripts) as (server, gateway):
        answers = [await send(gateway) for _ in scripts]
    assert [answer.outcome.value for answer in answers] == ["accepted", "throttled", "accepted", "accepted"]
    assert answers[1].retry_after is None
    assert {number for number, _ in server.requests} == {0}


async def test_a_connection_is_not_used_from_the_moment_its_end_is_seen() -> None:
    """The loop hears of the end a turn before the connection is closed; what is written then is lost."""
    async with serving([OK], [OK]) as (server, gateway):
        await send(gateway)
        wire, _ = gateway._idle[0]
        wire.eof_received()
        assert (await send(gateway)).outcome is Outcome.ACCEPTED
    assert [number for number, _ in server.requests] == [0, 1]


async def test_after_a_loss_on_a_used_connection_each_request_has_its_own_for_a_while() -> None:
    """Some gateways close after an answer without saying so; what was just written then never arrives."""
    async with serving([OK], [FIN], [OK], [OK], [OK], [OK], [OK], [FIN]) as (server, gateway):
        reasons = [(await send(gateway)).reason for _ in range(4)]
        assert reasons == [None, Reason.RESET, None, None]
        gateway._apart_until = 0.0  # the while is over
        assert gateway._apart == 10.0
        reasons = [(await send(gateway)).reason for _ in range(4)]
        assert reasons == [None, None, None, Reason.RESET]
        assert gateway._apart == 10.0  # the third was answered, so it began anew
    assert [number for number, _ in server.requests] == [0, 0, 1, 2, 3, 3, 3, 3]


async def test_what_was_closed_is_gone_without_the_collector_of_cycles() -> None:
    """It comes rarely, and a connection may hold as much as a body may have."""
    broken = [[FIN], [OK[:-3], FIN], [b"nonsense\r\n\r\n"], [OK.replace(b"10", b"70000") + b"x" * 69_990]]
    async with serving(*broken * 5) as (server, gateway):
        gc.collect()
        gc.disable()
        try:
            for _ in range(len(broken) * 5):
                await send(gateway)
            await poll_until(lambda: server.open == 0)
            await poll_until(lambda: len([thing for thing in gc.get_objects() if type(thing) in (Wire, Reader)]) <= 1)
        finally:
            gc.enable()


async def test_what_nobody_asked_for_closes_the_connection() -> None:
    async with serving([OK], [OK]) as (server, gateway):
        await send(gateway)
        server.writers[0].write(OK)
        await poll_until(lambda: server.open == 0)
        assert (await send(gateway)).outcome is Outcome.ACCEPTED
    assert [number for number, _ in server.requests] == [0, 1]


async def test_a_cancelled_request_closes_its_connection() -> None:
    async with serving([], [OK]) as (server, gateway):
        task = asyncio.create_task(send(gateway))
        await poll_until(lambda: len(server.requests) == 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await poll_until(lambda: server.open == 0)
        assert (await send(gateway)).outcome is Outcome.ACCEPTED


async def test_what_is_idle_for_long_is_closed_and_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """By itself where nothing is sent, and at the next request where the process was stopped meanwhile."""
    monkeypatch.setattr("notifier.delivery.gateway.KEEP_ALIVE", 0.1)
    async with serving([OK], [OK], [OK]) as (server, gateway):
        await asyncio.gather(send(gateway), send(gateway))
        assert server.open == 2
        await poll_until(lambda: server.open == 0)
        monkeypatch.setattr("notifier.delivery.gateway.KEEP_ALIVE", -1.0)
        await send(gateway)
    assert [number for number, _ in server.requests][-1] == 2


async def test_who_says_how_long_idle_connections_are_kept_is_believed() -> None:
    """`Keep-Alive: timeout=15`: one is used again after a second; of who says nothing it is not."""
    says = OK.replace(b"C", b"Keep-Alive: max=100, timeout=15\r\nC", 1)
    async with serving([says], [OK], [OK]) as (server, gateway):
        for _ in range(3):
            await send(gateway)
            await asyncio.sleep(1.0)
    assert [number for number, _ in server.requests] == [0, 0, 1]


async def test_a_request_that_is_lost_tells_how_long_idle_connections_are_kept() -> None:
    """The end crosses with it. Its wait over, no connection is used again after so long."""
    says = OK.replace(b"C", b"Keep-Alive: timeout=15\r\nC", 1)
    async with serving([says], [FIN], [says], [says], [says]) as (server, gateway):
        await send(gateway)
        idle = await idling(0.6)
        assert (await send(gateway)).reason is Reason.RESET
        gateway._apart_until = 0.0
        await send(gateway)
        await send(gateway)
        await idling(idle)
        await send(gateway)
    assert [number for number, _ in server.requests] == [0, 0, 1, 1, 2]


async def test_how_long_a_server_keeps_an_idle_connection_is_learnt_from_its_closing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("notifier.delivery.gateway.KEEP_ALIVE", 30.0)
    async with serving([OK], [OK], [OK]) as (server, gateway):
        await send(gateway)
        idle = await idling(0.6)
        server.writers[0].close()
        await poll_until(lambda: server.open == 0)
        await send(gateway)
        await idling(idle)  # it may close again at this moment
        await send(gateway)
    assert [number for number, _ in server.requests] == [0, 1, 2]


async def test_an_end_that_the_loop_has_not_seen_yet_is_looked_for_before_a_connection_is_used() -> None:
    """The process was busy for a moment, and the gateway closed meanwhile: what is written then would be lost."""
    async with serving([OK], [OK]) as (server, gateway):
        await send(gateway)
        await asyncio.sleep(0.06)
        with socket.socket(fileno=os.dup(server.writers[0].get_extra_info("socket").fileno())) as theirs:
            theirs.shutdown(socket.SHUT_WR)
        assert (await send(gateway)).outcome is Outcome.ACCEPTED
    assert [number for number, _ in server.requests] == [0, 1]


async def test_closing_breaks_off_what_is_under_way() -> None:
    async with serving([], [OK]) as (server, gateway):
        task = asyncio.create_task(send(gateway))
        await poll_until(lambda: len(server.requests) == 1)
        await send(gateway)
        await gateway.close()
        assert (await task).reason is Reason.RESET
        await poll_until(lambda: server.open == 0)


async def test_a_gateway_with_tls(tmp_path: Path) -> None:
    """Under uvloop, in a process of its own that trusts the test's authority by its environment."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = Server([[OK], [OK[:30], OK[30:]], [OK[:-3], FIN]])
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0, ssl=context)
    port = listening.sockets[0].getsockname()[1]
    program = f"""
import uvloop
from notifier.delivery.gateway import Gateway
async def main():
    async with Gateway("default", "https://localhost:{port}", "t", timeout=5) as gateway:
        for message in range(3):
            answer = await gateway.send(message, 79160000000, b'"x"')
            print(answer.outcome.value, answer.reason and answer.reason.value)
uvloop.run(main())
"""
    env = {**os.environ, "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60
    )
    listening.close()
    assert done.stdout.split("\n")[:3] == ["accepted None", "accepted None", "unknown reset"], done.stderr
    assert [number for number, _ in server.requests] == [0, 0, 0]
