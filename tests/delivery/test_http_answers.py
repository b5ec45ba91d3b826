"""The bytes of an answer: what is read as an answer, what is none, and what becomes of the connection."""

from __future__ import annotations

import asyncio

import pytest

from notifier.delivery.answers import Answer
from notifier.models import Outcome, Reason
from tests.conftest import poll_until
from tests.delivery.scripted import CHUNKED, FIN, OK, send, serving


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
