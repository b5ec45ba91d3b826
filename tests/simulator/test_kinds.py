"""Each kind of answer that a script can ask for, as it arrives over a real socket."""

from __future__ import annotations

import subprocess
import zlib
from typing import Any

import pytest

from chaos.stage import until
from notifier.simulator import Simulator
from notifier.simulator.answers import SUCCESS
from notifier.simulator.kinds import KINDS
from tests.simulator.client import connect, entries_of, exchange, ids, request, send

WHOLE: list[tuple[dict[str, Any], bytes, bytes, int, int | None]] = [
    # do, in the head, the body, status and code in the ledger
    ({"kind": "ok"}, b" 200 OK", SUCCESS, 200, 0),
    ({"kind": "delay", "ms": 30}, b" 200 OK", SUCCESS, 200, 0),
    ({"kind": "status", "status": 401}, b" 401 Unauthorized", b'{"error":"simulated"}', 401, None),
    ({"kind": "status", "status": 500, "text": "oops"}, b" 500 ", b"oops", 500, None),
    ({"kind": "status", "status": 500, "accept": True}, b" 500 ", b'{"error":"simulated"}', 200, 0),
    ({"kind": "status", "status": 503, "text": '{"code":0}'}, b" 503 ", b'{"code":0}', 503, 0),
    ({"kind": "status", "status": 599, "text": ""}, b" 599 Simulated", b"", 599, None),
    ({"kind": "status", "status": 204}, b" 204 No Content", b"", 204, None),
    ({"kind": "code", "code": 7, "message": "no"}, b" 200 OK", b'{"code":7,"message":"no"}', 200, 7),
    ({"kind": "body", "text": "<html>", "content_type": "text/html"}, b"text/html", b"<html>", 200, None),
    ({"kind": "body", "text": '{"code":0,"mess'}, b" 200 OK", b'{"code":0,"mess', 200, None),
    ({"kind": "body", "text": '{"code":NaN}'}, b" 200 OK", b'{"code":NaN}', 200, None),
    ({"kind": "body", "text": '{"code":"0"}'}, b" 200 OK", b'{"code":"0"}', 200, None),
    ({"kind": "body", "text": '{"code":false}'}, b" 200 OK", b'{"code":false}', 200, None),
    ({"kind": "body", "text": '{"code":0}\0'}, b" 200 OK", b'{"code":0}\0', 200, None),
    ({"kind": "body", "text": '{"code":0}'}, b" 200 OK", b'{"code":0}', 200, 0),
    ({"kind": "body", "base64": "/wA="}, b" 200 OK", b"\xff\x00", 200, None),
    ({"kind": "drip", "every": 1}, b" 200 OK", SUCCESS, 200, 0),
    ({"kind": "drip", "every": 1, "head": True, "text": "no"}, b" 200 OK", b"no", 200, None),
    ({"kind": "huge", "bytes": 3_000_001}, b"Content-Length: 3000001", b"x" * 3_000_001, 200, None),
    ({"kind": "wrong_length"}, b"Content-Length: 125", SUCCESS, 200, None),
    (
        {"kind": "chunked_broken"},
        b"Transfer-Encoding: chunked",
        b'8\r\n{"code":\r\nnonsense\r\n0}\r\n',
        200,
        None,
    ),
]


@pytest.mark.parametrize(
    "headers",
    [
        {"Retry-After": "3"},
        {"Retry-After": "Sat, 31 Jan 2026 09:00:00 GMT"},
        {},
        {"Retry-After": "soon"},
        {"Location": "http://127.0.0.1:1/elsewhere"},
    ],
)
def test_headers_are_what_the_script_says(gateway: Simulator, headers: dict[str, str]) -> None:
    gateway.script({"do": {"kind": "status", "status": 429, "headers": headers}})
    head = exchange(gateway, request(next(ids))).partition(b"\r\n\r\n")[0].decode()
    assert head.startswith("HTTP/1.1 429 Too Many Requests\r\n")
    for name in ("Retry-After", "Location"):
        assert (f"\r\n{name}: {headers[name]}" in head) if name in headers else (name not in head)


@pytest.mark.parametrize(("do", "head", "body", "status", "code"), WHOLE)
def test_answers_that_end(
    gateway: Simulator, do: dict[str, Any], head: bytes, body: bytes, status: int, code: int | None
) -> None:
    id = next(ids)
    gateway.script({"match": {"id": id}, "do": do})
    answer = exchange(gateway, request(id)).partition(b"\r\n\r\n")
    assert head in answer[0]
    assert answer[2] == body
    [entry] = entries_of(gateway, id)
    assert (entry.status, entry.code) == (status, code)
    assert gateway.state()["in_flight"] == 0


def test_every_kind_is_tested() -> None:
    apart = {"hang", "reset", "close", "gzip_bomb", "endless_headers"}
    assert {do["kind"] for do, *_ in WHOLE} | apart == set(KINDS)


@pytest.mark.parametrize("accept", [False, True])
def test_hang_never_answers(gateway: Simulator, accept: bool) -> None:
    id = next(ids)
    gateway.script({"do": {"kind": "hang", "accept": accept}})
    with connect(gateway) as link:
        link.sendall(request(id))
        until(lambda: gateway.state()["in_flight"] == 1)
        link.settimeout(0.3)
        with pytest.raises(TimeoutError):
            link.recv(1)
        assert gateway.state()["in_flight"] == 1
        assert entries_of(gateway, id)[0].accepted is accept
    until(lambda: gateway.state()["in_flight"] == 0)


@pytest.mark.parametrize("accept", [False, True])
def test_reset_after_the_request_was_read(gateway: Simulator, accept: bool) -> None:
    id = next(ids)
    gateway.script({"times": 1, "do": {"kind": "reset", "accept": accept}})
    with pytest.raises(ConnectionResetError):
        exchange(gateway, request(id))
    [entry] = entries_of(gateway, id)
    assert (entry.status, entry.code) == ((200, 0) if accept else (0, None))
    assert entry.text == "hello"
    assert send(gateway, id)[0] == 200
    assert entries_of(gateway, id)[1].repeat is accept
    assert gateway.state()["in_flight"] == 0


def test_close_does_not_wait_for_the_body(gateway: Simulator) -> None:
    id = next(ids)
    gateway.script({"do": {"kind": "ok"}}, {"match": {"id": id}, "do": {"kind": "close"}})
    head = request(id).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert exchange(gateway, head) == b""
    assert entries_of(gateway, id)[0][2:] == (None, None, True, False, 0, None)


def test_gzip_bomb_unpacks_to_what_it_promises(gateway: Simulator) -> None:
    size = 5 * 2**20 + 17
    gateway.script({"do": {"kind": "gzip_bomb", "bytes": size}})
    head, _, packed = exchange(gateway, request(next(ids))).partition(b"\r\n\r\n")
    assert b"Content-Encoding: gzip" in head
    assert f"Content-Length: {len(packed)}\r\n".encode() in head + b"\r\n"
    assert len(packed) < size / 500
    assert zlib.decompress(packed, wbits=31) == b"x" * size


def test_endless_headers_do_not_end(gateway: Simulator) -> None:
    gateway.script({"do": {"kind": "endless_headers"}})
    with connect(gateway) as link:
        link.sendall(request(next(ids)))
        got = b""
        while len(got) < 2_000_000:
            got += link.recv(65536)
    assert b"\r\n\r\n" not in got
    until(lambda: gateway.state()["in_flight"] == 0)


def memory(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    return int(subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, check=True).stdout)


def test_a_gigabyte_takes_no_memory_here_and_holds_nobody_up() -> None:
    with Simulator() as gateway:
        assert gateway.process is not None
        before = memory(gateway.process.pid)
        gateway.script({"match": {"id": 1}, "do": {"kind": "huge"}}, {"match": {"id": 2}, "do": {"kind": "gzip_bomb"}})
        with connect(gateway) as huge, connect(gateway) as bomb:
            huge.sendall(request(1))
            bomb.sendall(request(2))
            got = 0
            while got < 50_000_000:
                got += len(huge.recv(2**20))
            assert send(gateway, 3)[0] == 200
        assert memory(gateway.process.pid) - before < 20_000
