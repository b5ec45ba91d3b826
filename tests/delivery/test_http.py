"""A connection with a gateway: what it survives, when it is used again, and when it is given up."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trustme

from notifier.delivery.answers import Answer
from notifier.delivery.gateway import Gateway
from notifier.delivery.http import Wire
from notifier.delivery.reader import Reader
from notifier.models import Outcome, Reason
from tests.conftest import poll_until

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"code":0}'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FIN = b""  # in a script: no more comes


class Server:
    """Gives the first request the first script, a list of writes, and so on; a connection stays open after them."""

    def __init__(self, scripts: list[list[bytes]]) -> None:
        self.scripts = scripts
        self.requests: list[tuple[int, bytes]] = []  # number of the connection, bytes
        self.writers: list[asyncio.StreamWriter] = []
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        number = len(self.writers)
        self.writers.append(writer)
        self.open += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append((number, head + await reader.readexactly(length)))
                for part in self.scripts.pop(0):
                    if part == FIN:
                        writer.write_eof()
                    else:
                        writer.write(part)
                        await writer.drain()
                        await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(*scripts: list[bytes], patience: float = 60) -> AsyncIterator[tuple[Server, Gateway]]:
    """Yield a server with these scripts, and a gateway that is it."""
    server = Server(list(scripts))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with Gateway("default", f"http://127.0.0.1:{port}/base", "secret", timeout=patience) as gateway:
        yield server, gateway
    listening.close()


async def idling(seconds: float) -> float:
    """Wait, and return how long that took: on a busy machine longer than it was to."""
    began = asyncio.get_running_loop().time()
    await asyncio.sleep(seconds)
    return asyncio.get_running_loop().time() - began


async def send(gateway: Gateway) -> Answer:
    """Send one message."""
    return await gateway.send(7, 79160000000, b'"x"')


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


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([FIN], Reason.RESET),
        ([b"HTTP/1.1 20", FIN], Reason.RESET),
        ([b"HTTP/1.1 200 OK\r\nContent-Le", FIN], Reason.RESET),
        ([OK[:-3], FIN], Reason.RESET),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"99\r\n{", FIN], Reason.RESET),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"zz\r\n{"], Reason.BAD_ANSWER),
        ([b"SSH-2.0-OpenSSH_9.2\r\n"], Reason.BAD_ANSWER),
        ([b"HTTP/1.1 twohundred\r\n\r\n"], Reason.BAD_ANSWER),
        ([b"HTTP/1.1 200 OK\r\n" + b"X-Long: %b\r\n" % (b"x" * 40_000)], Reason.BAD_ANSWER),
        ([b"HTTP/1.1 200 OK\r\nX-Long: ", *[b"x" * 1_000] * 40], Reason.BAD_ANSWER),
        ([b"HTTP/1.1 200 OK\r\n" + b"X-Many: 1\r\n" * 4_000], Reason.BAD_ANSWER),
        ([OK.replace(b"Content", b"Content-Length: 11\r\nContent", 1)], Reason.BAD_ANSWER),
        ([OK.replace(b"10", b"ten")], Reason.BAD_ANSWER),
        ([OK.replace(b"C", b"X-A : b\r\nC", 1).replace(b"10", b"70000"), b"x" * 66_000], Reason.BAD_ANSWER),
        ([OK.replace(b"C", b"X-A : b\r\nC", 1)[:-3], FIN], Reason.RESET),
        ([CHUNKED.replace(b"Tr", b"X-A : b\r\nTr", 1) + b"2\r\nabcde"], Reason.BAD_ANSWER),
        ([CHUNKED.replace(b"Tr", b"X-A : b\r\nTr", 1) + b"fffff\r\n", b"x" * 66_000], Reason.BAD_ANSWER),
        ([CHUNKED.replace(b"Tr", b"X-A : b\r\nTr", 1) + b"1;", *[b"x" * 1_000] * 70], Reason.BAD_ANSWER),
        ([b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n"], Reason.BAD_ANSWER),
        ([b"HTTP/1.1 101 Switching Protocols\r\n\r\n"], Reason.BAD_ANSWER),
        ([b"HTTP/1.1 204 No Content\r\n\r\n"], Reason.BAD_ANSWER),
        ([OK.replace(b"10", b"70000") + b"x" * 69_990], Reason.BAD_ANSWER),
        ([OK.replace(b"10", b"70000"), b"x" * 66_000], Reason.BAD_ANSWER),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 66_000], Reason.BAD_ANSWER),
        ([], Reason.TIMEOUT),
        ([OK[:-3]], Reason.TIMEOUT),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" * 3], Reason.TIMEOUT),
    ],
)
async def test_an_answer_that_is_none_is_unknown_and_the_connection_closed(script: list[bytes], reason: Reason) -> None:
    async with serving(script, [OK], patience=0.5 if reason is Reason.TIMEOUT else 60) as (server, gateway):
        answer = await send(gateway)
        assert (answer.outcome, answer.reason) == (Outcome.UNKNOWN, reason)
        if b"204" not in b"".join(script):
            await poll_until(lambda: server.open == 0)
        assert (await send(gateway)).outcome is Outcome.ACCEPTED


BODY = b'{"code":0}'
ODD: dict[str, list[bytes]] = {
    "a length beside chunks": [
        CHUNKED.replace(b"Tr", b"Content-Length: 10\r\nTr", 1) + b"a\r\n" + BODY + b"\r\n0\r\n\r\n"
    ],
    "chunks in pieces, with an extension": [
        CHUNKED.replace(b"Tr", b"Content-Length: 10\r\nTr", 1),
        *[bytes([byte]) for byte in b"3;x=y\r\n" + BODY[:3] + b"\r\n7\r\n" + BODY[3:] + b"\r\n0\r\nX: y\r\n\r\n"],
    ],
    "two equal lengths": [OK.replace(b"Content", b"Content-Length: 10\r\nContent", 1)],
    "a list of equal lengths": [OK.replace(b"10", b"10, 10")],
    "a header of 9 KB": [OK.replace(b"C", b"X-Long: %b\r\nC" % (b"x" * 9_000), 1)],
    "150 headers": [OK.replace(b"C", b"X-Many: 1\r\n" * 150 + b"C", 1)],
    "a head of 31 KB in pieces": [OK[:17], *[b"X-Long: %b\r\n" % (b"x" * 1_000)] * 31, OK[17:]],
    "a blank before a colon": [OK.replace(b"C", b"X-A : b\r\nC", 1)],
    "a blank before the colon that counts": [OK.replace(b"Length:", b"Length :")],
    "a warning of PHP in the head": [OK.replace(b"C", b"PHP Warning:  no such file in /srv/x.php on line 3\r\nC", 1)],
    "a folded line": [OK.replace(b"C", b"X-A : b\r\n and more\r\nC", 1)],
    "no length, an odd line": [b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n" + BODY, FIN],
    "bytes after the answer": [OK + b"and more"],
    "bytes after Connection: close": [OK.replace(b"C", b"Connection: close\r\nC", 1) + b"\r\nand more"],
    "a reason in cp1251": [OK.replace(b"OK", "Хорошо".encode("cp1251"), 1)],
    "bare line feeds": [OK.replace(b"\r\n", b"\n")],
    "an odd answer after an informational one": [b"HTTP/1.1 100 Continue\r\nX-A : b\r\n\r\n", OK],
}


@pytest.mark.parametrize("name", ODD)
async def test_an_answer_is_read_as_others_read_it(name: str) -> None:
    """Not by the book, but curl and browsers read it, and the message is sent; what follows is not harmed."""
    async with serving(ODD[name], [OK]) as (_, gateway):
        assert await send(gateway) == Answer(Outcome.ACCEPTED, None, 200)
        assert await send(gateway) == Answer(Outcome.ACCEPTED, None, 200)


async def test_a_refusal_in_an_odd_head_stands_whatever_its_body_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notifier.delivery.http.REST_TIMEOUT", 0.05)
    head = b"HTTP/1.1 429 Slow Down\r\nX-A : b\r\nretry-after: 9\r\nContent-Length: 100\r\n\r\nit ne"
    for rest in ([], [FIN], [b"x" * 70_000]):
        async with serving([head, *rest], [OK]) as (_, gateway):
            answer = await send(gateway)
            assert (answer.outcome, answer.status_code, answer.retry_after) == (Outcome.THROTTLED, 429, 9)
            assert (await send(gateway)).outcome is Outcome.ACCEPTED


async def test_an_answer_that_cannot_be_read_says_why() -> None:
    async with serving([b"SSH-2.0-OpenSSH_9.2\r\n"], [OK.replace(b"10", b"10, 11")]) as (_, gateway):
        assert (await send(gateway)).detail == r"no HTTP response begins with 'SSH-2.0-OpenSSH_9.2\r\n'"
        assert str((await send(gateway)).detail).startswith("Content-Length: ")


@pytest.mark.parametrize(
    "rest", [[b"it ne"], [b"it ne", FIN], [b"x" * 70_000]], ids=["never ends", "breaks off", "is too large"]
)
async def test_a_status_stands_whatever_its_body_is(rest: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("notifier.delivery.http.REST_TIMEOUT", 0.05)
    head = b"HTTP/1.1 503 Busy\r\nRetry-After: 9\r\nContent-Length: 70000\r\n\r\n"
    async with serving([head, *rest], [OK]) as (server, gateway):
        assert await send(gateway) == Answer(Outcome.UNAVAILABLE, Reason.UNAVAILABLE, 503, None, 9)
        await poll_until(lambda: server.open == 0)
        assert (await send(gateway)).outcome is Outcome.ACCEPTED


@pytest.mark.parametrize("status", [b"200 OK", b"201 Created", b"202 Accepted"])
async def test_the_body_of_a_success_is_waited_for(status: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of them means what is said in it, so a part of it is as good as none."""
    monkeypatch.setattr("notifier.delivery.http.REST_TIMEOUT", 0.01)
    head = b"HTTP/1.1 " + status + b'\r\nContent-Length: 12\r\n\r\n{"code":1'
    async with serving([head], [head, FIN]) as (server, gateway):
        task = asyncio.create_task(send(gateway))
        await poll_until(lambda: len(server.requests) == 1)
        await asyncio.sleep(0.1)
        server.writers[0].write(b"23}")
        answer = await task
        assert (answer.status_code, "123" in str(answer.detail)) == (int(status[:3]), True)
        assert (await send(gateway)).reason is Reason.RESET


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
