"""How answers that no server of a test can give are classified; all others: test_delivery.py."""

from __future__ import annotations

import gzip
import os
import socket
import ssl
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial

import aiohttp
import orjson
import pytest

from notifier.delivery.gateway import (
    Answer,
    Gateway,
    classify_body,
    classify_error,
    classify_status,
    has_it_already,
    parse_retry_after,
)
from notifier.models import Outcome, Reason
from notifier.simulator import Simulator
from tests.delivery.test_http import FIN, send, serving

ANSWER = b'{"code":0,"message":"OK"}'
packed = partial(gzip.compress, mtime=0)
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
        ("Friday, 15-Jan-27 08:01:00 GMT", 60),
        ("Fri Jan 15 08:01:00 2027", 60),
        ("Fri, 15 Jan 2027 08:01:00 -0000", 60),
        ("Fri, 15 Jan 2027 11:01:00 +0300", 60),
        ("Fri, 15 Jan 99999 08:01:00 GMT", 3600),
        ("120.5", 121),
        ("0.2", 1),
        ("120, 120", 120),
        ("30, 120", 120),
        ("Fri, 15 Jan 2027 08:01:00 GMT, Fri, 15 Jan 2027 08:01:00 GMT", 60),
        ("-5", 1),
        ("9" * 400, 3600),
        ("soon", None),
        ("1e3", None),
        ("inf", None),
        ("Fri, 41 Jan 2027 08:01:00 GMT", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Moscow", "America/New_York"])
def test_retry_after(value: str | None, seconds: float | None, zone: str, clock_zone: None) -> None:
    """The three forms of a date in HTTP (RFC 9110, 5.6.7), whatever the machine's own zone is."""
    os.environ["TZ"] = zone
    time.tzset()
    assert parse_retry_after(value, NOW) == seconds


@pytest.fixture
def clock_zone() -> Iterator[None]:
    """The machine's zone comes back after the test."""
    before = os.environ.get("TZ")
    yield
    if before is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = before
    time.tzset()


STATUSES = {
    Outcome.UNKNOWN: [100, 199, 408, 500, 502, 504, 599, 600, 999],
    Outcome.MISCONFIGURED: [
        *(300, 301, 302, 307, 308, 399, 401, 402, 403, 404, 405),
        *(411, 413, 414, 415, 421, 423, 425, 426, 428, 431, 451),
    ],
    Outcome.REJECTED: [400, 406, 409, 410, 412, 422, 499],
    Outcome.THROTTLED: [429],
    Outcome.UNAVAILABLE: [407, 503, 511],
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
    assert classify_body(b'\xef\xbb\xbf{"code":0}').outcome is Outcome.ACCEPTED
    assert classify_body(b'{"code":0,"error":"no money"}').outcome is Outcome.ACCEPTED


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"code":1,"code":0}', Outcome.UNKNOWN),
        (b'{"code":0,"code":1}', Outcome.UNKNOWN),
        (b'{"code":1,"\\u0063ode":0}', Outcome.UNKNOWN),
        (b'{"code":0,"code":0}', Outcome.ACCEPTED),
        (b'{"code":0,"message":"code"}', Outcome.ACCEPTED),
        (b'{"detail":{"code":1},"code":0}', Outcome.ACCEPTED),
        (b'{"code":0,"message":"\\u043e\\u043a"}', Outcome.ACCEPTED),
    ],
)
def test_an_object_that_gives_two_codes_gives_none(body: bytes, outcome: Outcome) -> None:
    assert classify_body(body).outcome is outcome


@pytest.mark.parametrize(
    "words",
    [
        *("Bad Credentials", "Unauthorized", "authentication failed", "invalid token", "Your token has expired"),
        *("insufficient funds", "not enough money", "Balance too low", "account is suspended", "sender not allowed"),
        *("Unknown sender", "sender ID is not registered"),
        *("недостаточно средств", "Ошибка авторизации", "Неверный пароль", "имя отправителя не разрешено"),
    ],
)
def test_a_refusal_about_us_is_told_by_its_words(words: str) -> None:
    answer = classify_body(orjson.dumps({"code": 4, "message": words}))
    assert (answer.outcome, answer.reason) == (Outcome.DECLINED, Reason.ACCOUNT_REFUSED)
    assert not has_it_already(answer)


@pytest.mark.parametrize(
    "words",
    [
        "no such number",
        "recipient has opted out",
        "number is blocked",
        "already unsubscribed",
        "blocked by him as sender",
    ],
)
def test_a_refusal_about_the_recipient_is_neither_about_us_nor_a_duplicate(words: str) -> None:
    answer = classify_body(orjson.dumps({"code": 4, "message": words}))
    assert (answer.outcome, answer.reason, answer.detail) == (Outcome.DECLINED, Reason.DECLINED, f"4: {words}")
    assert not has_it_already(answer)


@pytest.mark.parametrize(
    ("answer", "has_it"),
    [
        (Answer(Outcome.REJECTED, Reason.REJECTED, 409), True),
        (Answer(Outcome.REJECTED, Reason.REJECTED, 400, "Message with the same ID already exists"), True),
        (Answer(Outcome.DECLINED, Reason.DECLINED, 200, "9: duplicate"), True),
        (Answer(Outcome.DECLINED, Reason.DECLINED, 200, "9: has already been sent"), True),
        (Answer(Outcome.DECLINED, Reason.DECLINED, 200, "231: повторная отправка"), True),
        (Answer(Outcome.REJECTED, Reason.REJECTED, 400, "invalid number"), False),
        (Answer(Outcome.DECLINED, Reason.ACCOUNT_REFUSED, 409, "invalid sender, or already sent"), True),
        (Answer(Outcome.DECLINED, Reason.ACCOUNT_REFUSED, 400, "invalid token: already used"), False),
        (Answer(Outcome.UNKNOWN, Reason.SERVER_ERROR, 500, "duplicate key"), False),
        (Answer(Outcome.MISCONFIGURED, Reason.UNAUTHORIZED, 403, "duplicate"), False),
    ],
)
def test_what_says_that_the_gateway_has_a_message_already(answer: Answer, has_it: bool) -> None:
    assert has_it_already(answer) is has_it


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("invalid number 79139990323", "-1: invalid number ***"),
        ("invalid number +7 913 999-03-23!", "-1: invalid number ***!"),
        (
            "7913999 and 791399903237913, not 791399 nor 7913999032379139",
            "-1: *** and ***, not 791399 nor 7913999032379139",
        ),
    ],
)
def test_a_phone_number_in_a_gateway_s_words_is_not_kept(words: str, kept: str) -> None:
    assert classify_body(orjson.dumps({"code": -1, "message": words})).detail == kept


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
    ("encoding", "body"),
    [
        ("gzip", packed(ANSWER)),
        ("deflate", zlib.compress(ANSWER)),
        ("deflate", zlib.compress(ANSWER, wbits=-15)),
        ("gzip, gzip", packed(ANSWER)),
        ("gzip, gzip", packed(packed(ANSWER))),
        ("gzip", b"\xef\xbb\xbf" + ANSWER),
        ("gzip", packed(b"\xef\xbb\xbf" + ANSWER)),
        *((coding, ANSWER) for coding in ("gzip", "utf-8", "", "none", "binary", "identity", "br")),
    ],
)
async def test_a_body_is_read_whatever_its_encoding_claims(encoding: str, body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\n\r\n" % encoding.encode()
    async with serving([head + body, FIN]) as (_, gateway):
        assert await send(gateway) == Answer(Outcome.ACCEPTED, None, 200)


@pytest.mark.parametrize(("encoding", "body"), [("br", b"\x0b\x02\x80{}\x03"), ("gzip", packed(ANSWER)[:20])])
async def test_a_body_that_cannot_be_read_is_unknown_and_the_header_is_named(encoding: str, body: bytes) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\n\r\n" % encoding.encode()
    async with serving([head + body, FIN]) as (_, gateway):
        answer = await send(gateway)
    assert (answer.outcome, answer.reason) == (Outcome.UNKNOWN, Reason.BAD_ANSWER)
    assert str(answer.detail).startswith(f"Content-Encoding '{encoding}': ")


@pytest.mark.parametrize(
    ("location", "detail"),
    [
        ("https://gw.example/v1/send/7", "it points to https://gw.example/v1/send/7"),
        ("https://me:secret@gw.example:8443/x?token=secret#part", "it points to https://gw.example:8443/x"),
        ("/login", "it points to /login"),
        ("https://[", "it points to an address that is none"),
        ("", None),
    ],
)
async def test_a_redirect_is_not_followed_and_says_where_to_without_secrets(location: str, detail: str | None) -> None:
    head = f"HTTP/1.1 301 Moved Permanently\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    async with serving([head.encode()]) as (server, gateway):
        assert await send(gateway) == Answer(Outcome.MISCONFIGURED, Reason.REDIRECTED, 301, detail)
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [b"200 OK", b"202 Accepted", b"301 Moved Permanently", b"400 Bad Request"])
async def test_what_a_gateway_repeats_of_our_secrets_is_not_kept(status: bytes) -> None:
    """A token of 2,000 characters, of which no part may stay, and one in the path of the address, which is a number."""
    token, part = "eyJ" + "x1" * 1000, "bot79161234567:AAHdq"
    said = f'{{"code": 4, "message": "Cannot POST /{part}/v1/send/7 with {token}"}}'.encode()
    head = b"HTTP/1.1 %b\r\nLocation: /%b/v2/\r\nContent-Length: %d\r\n\r\n"
    async with serving([head % (status, part.encode(), len(said)) + said]) as (server, gateway):
        url = f"{gateway.url}/{part}"
        async with Gateway("default", url, token, timeout=60) as gateway:
            detail = (await send(gateway)).detail
    assert part.encode() in server.requests[0][1]
    assert detail
    assert "***" in detail
    assert not [word for word in (token[:20], "bot", "AAHdq") if word in detail], detail


async def test_two_lines_of_retry_after_are_one_wait() -> None:
    head = b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 120\r\nRetry-After: 120\r\nContent-Length: 0\r\n\r\n"
    async with serving([head]) as (_, gateway):
        assert (await send(gateway)).retry_after == 120


async def test_another_token_is_used_with_the_next_request() -> None:
    with Simulator(token="second") as simulator:
        async with Gateway("default", simulator.url, "first", timeout=5, key=b"k") as gateway:
            first = gateway.identity
            assert (await send(gateway)).reason is Reason.UNAUTHORIZED
            gateway.use("second")
            assert (await send(gateway)).outcome is Outcome.ACCEPTED
            second = gateway.identity
        for url, token, key in (("http://x", "first", b"k"), (simulator.url, "second", b"other")):
            async with Gateway("default", url, token, timeout=5, key=key) as gateway:
                assert gateway.identity not in (first, second)


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
        (b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc", "abc"),
        (b"Content-Length: 25\r\n\r\ninvalid phone 79160000000", "invalid phone ***"),
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
