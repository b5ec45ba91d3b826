"""How answers that no server of a test can give are classified; all others: test_delivery.py."""

from __future__ import annotations

import socket
import ssl
import zlib
from contextlib import suppress

import aiohttp
import orjson
import pytest

from notifier.delivery.gateway import Answer, Gateway, classify_body, classify_error, classify_status, parse_retry_after
from notifier.models import Outcome, Reason
from notifier.simulator import Simulator
from tests.delivery.test_http import FIN, send, serving

NOW = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7),
        ("0", 1),
        ("999999", 3600),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 1),
        ("soon", None),
        ("-5", None),
        ("9" * 400, None),
        ("", None),
    ],
)
def test_retry_after(value: str | None, seconds: float | None) -> None:
    assert parse_retry_after(value, NOW) == seconds


STATUSES = {
    Outcome.UNKNOWN: [100, 199, 408, 500, 502, 504, 599, 600, 999],
    Outcome.MISCONFIGURED: [300, 301, 302, 307, 308, 399, 401, 402, 403, 404, 405, 407],
    Outcome.REJECTED: [400, 406, 409, 410, 413, 422, 451, 499],
    Outcome.THROTTLED: [429],
    Outcome.UNAVAILABLE: [503],
}


@pytest.mark.parametrize(("outcome", "status"), [(o, s) for o, statuses in STATUSES.items() for s in statuses])
def test_every_status_has_an_outcome(outcome: Outcome, status: int) -> None:
    answer = classify_status(status, "5", NOW)
    assert (answer.outcome, answer.status_code) == (outcome, status)
    assert answer.retry_after == (5 if status in (429, 503) else None)
    assert answer.reason is not None


def test_success_is_a_rule_on_the_body() -> None:
    assert classify_body(b'{"code":0}').outcome is Outcome.ACCEPTED
    assert classify_body(b'{"code":0.0}').outcome is Outcome.UNKNOWN
    assert classify_body(b'{"code":-1,"message":"no \\u0000 money"}').detail == "-1: no \ufffd money"
    assert classify_body(b'{"code":99999999999999999999}').outcome is Outcome.UNKNOWN
    assert classify_body(None).reason is Reason.BAD_ANSWER


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ssl.SSLError("in the middle"), Reason.RESET),
        (TimeoutError(), Reason.TIMEOUT),
        (aiohttp.ServerDisconnectedError(), Reason.RESET),
        (ConnectionResetError(), Reason.RESET),
        (zlib.error(), Reason.BAD_ANSWER),
        (RuntimeError(), Reason.INTERNAL_ERROR),
    ],
)
def test_what_is_raised_has_a_reason(error: Exception, reason: Reason) -> None:
    answer = classify_error(error)
    assert (answer.outcome, answer.reason) == (Outcome.UNKNOWN, reason)


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://nowhere.invalid", Reason.DNS),
        ("http://127.1", Reason.DNS),
        (f"http://{'x' * 64}.example", Reason.DNS),
        ("http://127.0.0.1:1", Reason.REFUSED),
    ],
)
async def test_where_no_connection_comes_about_nothing_was_sent(url: str, reason: Reason) -> None:
    async with Gateway("default", url, "t", timeout=60) as gateway:
        answer = await gateway.send(1, 79160000000, b'"x"')
    assert (answer.outcome, answer.reason, answer.status_code) == (Outcome.UNAVAILABLE, reason, None)


async def test_a_connection_that_takes_too_long_was_not_used() -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with socket.create_connection(address), socket.socket() as second:  # its queue of one is taken
            second.setblocking(False)
            with suppress(BlockingIOError):
                second.connect(address)
            async with Gateway("default", f"http://127.0.0.1:{address[1]}", "t", timeout=0.5) as gateway:
                answer = await gateway.send(1, 79160000000, b'"x"')
    assert (answer.outcome, answer.reason) == (Outcome.UNAVAILABLE, Reason.CONNECT_TIMEOUT)


@pytest.mark.parametrize(
    ("encoding", "outcome"),
    [
        ("gzip", Outcome.ACCEPTED),
        ("deflate", Outcome.ACCEPTED),
        ("br", Outcome.UNKNOWN),
        ("identity", Outcome.ACCEPTED),
    ],
)
async def test_an_encoded_body_is_decoded_though_none_was_asked_for(encoding: str, outcome: Outcome) -> None:
    body = b'{"code":0,"message":"OK"}'
    if encoding != "identity":
        packer = zlib.compressobj(wbits=31 if encoding == "gzip" else 15)
        body = packer.compress(body) + packer.flush()

    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\n\r\n" % encoding.encode()
    async with serving([head + body, FIN]) as (_, gateway):
        assert (await send(gateway)).outcome is outcome


async def test_the_request_is_as_agreed() -> None:
    with Simulator(token="secret") as simulator:
        async with Gateway("default", simulator.url + "/", "secret", timeout=60) as gateway:
            answer = await gateway.send(2**53 + 1, 79161234567, orjson.dumps("Привет «мир»\n\U0001f600"))
        assert answer.outcome is Outcome.ACCEPTED
        (entry,) = simulator.entries()
        assert (entry.id, entry.phone, entry.text) == (2**53 + 1, 79161234567, "Привет «мир»\n\U0001f600")
        assert entry.authorized


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'Content-Length: 21\r\n\r\n{"error":"bad phone"}', '{"error":"bad phone"}'),
        (b"Content-Length: 0\r\n\r\n", None),
        (b"Content-Length: 400\r\n\r\n" + b"x" * 400, "x" * 300),
        (b"Content-Length: 4\r\n\r\n\xff\x00ab", "\ufffd\ufffdab"),
        (b"Content-Length: 70000\r\n\r\n" + b"x" * 70_000, None),
        (b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", None),
        (b"Content-Length: 99\r\n\r\nit never ends", None),
    ],
)
async def test_a_refusal_s_words_are_kept_and_change_nothing(
    body: bytes, detail: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if b"never" in body:
        monkeypatch.setattr("notifier.delivery.http.REST_TIMEOUT", 0.05)
    async with serving([b"HTTP/1.1 400 Bad Request\r\n" + body]) as (_, gateway):
        answer = await send(gateway)
    assert answer == Answer(Outcome.REJECTED, Reason.REJECTED, 400, detail)
