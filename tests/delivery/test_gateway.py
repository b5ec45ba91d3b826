"""A request to a gateway: what goes out, what is kept of what comes back, and when nothing was sent."""

from __future__ import annotations

import gzip
import socket
import zlib
from contextlib import suppress
from functools import partial

import orjson
import pytest

from notifier.delivery.answers import Answer
from notifier.delivery.gateway import Gateway
from notifier.models import Outcome, Reason
from notifier.simulator import Simulator
from tests.delivery.scripted import FIN, send, serving

ANSWER = b'{"code":0,"message":"OK"}'
packed = partial(gzip.compress, mtime=0)


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


async def test_a_redirect_to_a_host_made_of_our_token_does_not_show_it() -> None:
    token = "eyJhbGciOiJIUzI1NiJ9.c2VjcmV0.signature123"
    head = f"HTTP/1.1 302 Found\r\nLocation: https://{token}.evil.example/\r\nContent-Length: 0\r\n\r\n".encode()
    async with serving([head]) as (_, gateway):
        async with Gateway("default", gateway.url, token, timeout=60) as ours:
            detail = (await send(ours)).detail
    assert detail
    assert "***" in detail
    assert "signature123" not in detail


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
