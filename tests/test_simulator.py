"""The simulated gateway over real sockets: its contract, its ledger, and each way in which it misbehaves."""

from __future__ import annotations

import asyncio
import itertools
import json
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import click
import pytest

from chaos.stage import PATIENCE, until
from notifier.simulator import KINDS, SUCCESS, Entry, Simulator, command, read_ledger

PHONE = 79161234567
ids = itertools.count(1)


@pytest.fixture(scope="module")
def shared() -> Iterator[Simulator]:
    with Simulator(seed=1) as simulator:
        yield simulator


@pytest.fixture
def gateway(shared: Simulator) -> Simulator:
    shared.reset()
    return shared


def request(
    id: Any, body: Any = None, *, token: str | None = "any", close: bool = True, path: str | None = None
) -> bytes:
    if body is None:
        body = {"id": id, "phone": PHONE, "text": "hello"}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path or f'/v1/send/{id}'} HTTP/1.1", "Host: gateway", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(data)}"]
    lines += [f"Authorization: Bearer {token}"] if token is not None else []
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode() + data


def connect(gateway: Simulator) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), PATIENCE)


def exchange(gateway: Simulator, data: bytes) -> bytes:
    """Return everything that comes back until the gateway closes the connection."""
    with connect(gateway) as link:
        link.sendall(data)
        return b"".join(iter(lambda: link.recv(65536), b""))


def send(gateway: Simulator, id: Any, body: Any = None, **options: Any) -> tuple[int, Any]:
    """Return status and JSON of one request to send."""
    head, _, content = exchange(gateway, request(id, body, **options)).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


def entries_of(gateway: Simulator, id: int) -> list[Entry]:
    return [entry for entry in gateway.entries() if entry.id == id]


# --- The contract


def test_accepts_a_message_and_writes_it_down(gateway: Simulator) -> None:
    id = next(ids)
    assert send(gateway, id) == (200, {"code": 0, "message": "OK"})
    [entry] = entries_of(gateway, id)
    assert entry[1:] == (id, PHONE, "hello", True, False, 200, 0)
    assert entry.accepted
    assert abs(entry.at.timestamp() - time.time()) < 60


def test_ledger_lines_have_the_agreed_form(gateway: Simulator) -> None:
    send(gateway, next(ids))
    line = gateway.ledger.read_bytes().splitlines()[-1]
    assert list(json.loads(line)) == ["at", "id", "phone", "text", "authorized", "repeat", "status", "code"]
    assert len(json.loads(line)["at"]) == len("2026-01-31T09:00:00.000000Z")


def test_a_repeated_id_gets_the_same_success_and_counts_once(gateway: Simulator) -> None:
    id, before = next(ids), gateway.state()
    answers = [send(gateway, id) for _ in range(3)]
    assert answers == [(200, {"code": 0, "message": "OK"})] * 3
    assert [entry.repeat for entry in entries_of(gateway, id)] == [False, True, True]
    after = gateway.state()
    assert after["accepted"] - before["accepted"] == 1
    assert after["repeated"] - before["repeated"] == 2
    assert after["requests"] - before["requests"] == 3


def test_a_repeated_id_does_not_fail(gateway: Simulator) -> None:
    id = next(ids)
    send(gateway, id)
    gateway.script(fail=1)
    assert send(gateway, id)[0] == 200
    assert send(gateway, next(ids))[0] == 500


@pytest.mark.parametrize(
    "change",
    [
        {"id": 0},
        {"id": "1"},
        {"id": None},
        {"id": 1.0},
        {"phone": str(PHONE)},
        {"phone": True},
        {"phone": 2**63},
        {"phone": None},
        {"text": ""},
        {"text": 1},
        {"text": None},
    ],
)
def test_a_body_that_breaks_the_contract_is_refused(gateway: Simulator, change: dict[str, Any]) -> None:
    id = next(ids)
    status, answer = send(gateway, id, {"id": id, "phone": PHONE, "text": "hello", **change})
    assert status == 400
    assert answer["error"]
    [entry] = entries_of(gateway, id)
    assert (entry.status, entry.code, entry.accepted) == (400, None, False)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b'{"id":NaN}', b"\xff"])
def test_a_body_that_is_no_object_is_refused(gateway: Simulator, body: bytes) -> None:
    id = next(ids)
    assert send(gateway, id, body)[0] == 400
    assert entries_of(gateway, id)[0][2:] == (None, None, True, False, 400, None)


@pytest.mark.parametrize("id", ["abc", "", 2**63, "1/2", "٣"])
def test_an_id_in_the_path_that_is_none_is_refused(gateway: Simulator, id: Any) -> None:
    path = "/v1/send/%D9%A3" if id == "٣" else None
    assert send(gateway, id, path=path)[0] == 400
    assert gateway.entries()[-1].id is None


def test_another_content_type_is_refused(gateway: Simulator) -> None:
    id = next(ids)
    raw = request(id).replace(b"application/json", b"text/plain")
    assert exchange(gateway, raw).startswith(b"HTTP/1.1 400")


def test_the_token_must_be_there_and_may_be_any(gateway: Simulator) -> None:
    id = next(ids)
    assert send(gateway, id, token=None)[0] == 401
    assert exchange(gateway, request(id).replace(b"Bearer", b"Basic")).startswith(b"HTTP/1.1 401")
    assert send(gateway, id, token="whatever")[0] == 200
    assert [entry.authorized for entry in entries_of(gateway, id)] == [False, False, True]


def test_the_one_right_token() -> None:
    with Simulator(token="secret") as gateway:
        status, answer = send(gateway, 1, token="wrong")
        assert (status, list(answer)) == (401, ["error"])
        assert send(gateway, 1, token="secret")[0] == 200
        assert [(e.authorized, e.repeat, e.status) for e in gateway.entries()] == [
            (False, False, 401),
            (True, False, 200),
        ]


def test_one_connection_serves_many_requests_in_order(gateway: Simulator) -> None:
    first, *_ = wanted = [next(ids) for _ in range(50)]
    gateway.script({"match": {"id": first}, "do": {"kind": "delay", "ms": 50}})
    everything = b"".join(request(id, close=id == wanted[-1]) for id in wanted)
    with connect(gateway) as link:
        for start in range(0, len(everything), 97):
            link.sendall(everything[start : start + 97])
        answer = b"".join(iter(lambda: link.recv(65536), b""))
    assert answer.count(SUCCESS) == 50
    assert [entry.id for entry in gateway.entries()][-50:] == wanted


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nnocolon\r\n\r\n", 400),
        (b"POST /v1/send/1 HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /v1/send/1 HTTP/1.1\r\nContent-Length: 9999999\r\n\r\n", 400),
        (b"POST /v1/send/1 HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 70_000, 400),
        (b"GET /v1/send/1 HTTP/1.0\r\n\r\n", 405),
        (b"PUT /control HTTP/1.0\r\n\r\n", 405),
        (b"GET /elsewhere HTTP/1.0\r\n\r\n", 404),
    ],
)
def test_what_is_no_request_to_send(gateway: Simulator, raw: bytes, status: int) -> None:
    before = gateway.state()["requests"]
    assert int(exchange(gateway, raw).split()[1]) == status
    assert gateway.state()["requests"] == before


def test_it_says_that_it_is_a_simulation(gateway: Simulator) -> None:
    answer = exchange(gateway, b"GET / HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["simulation"] is True
    assert b"texts nobody" in answer
    usage = command.get_help(click.Context(command, **command.context_settings))
    assert "texts nobody" in usage
    assert "8090" in usage
    assert [kind for kind in KINDS if f"  {kind} " not in usage] == []


# --- Misbehaviour

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


def test_latency_and_jitter(gateway: Simulator) -> None:
    gateway.script(latency=100, jitter=50)
    start = time.monotonic()
    assert send(gateway, next(ids))[0] == 200
    assert time.monotonic() - start >= 0.1


def test_rate_answers_429_beyond_it(gateway: Simulator) -> None:
    gateway.script(rate=5)
    assert [send(gateway, next(ids))[0] for _ in range(5)] == [200] * 5

    def refused() -> bytes | None:
        answer = exchange(gateway, request(next(ids)))
        return answer if answer.split()[1] == b"429" else None

    # as soon as six come within a second
    assert b"\r\nRetry-After: 1\r\n" in (until(refused) or b"")
    gateway.script(rate=1)
    assert send(gateway, next(ids))[0] == 200
    until(lambda: send(gateway, next(ids))[0] == 200)


def test_fail_is_a_share_and_repeatable() -> None:
    runs = []
    for _ in range(2):
        with Simulator(fail=0.5, seed=7) as gateway:
            runs.append([send(gateway, id)[0] for id in range(1, 31)])
    assert runs[0] == runs[1]
    assert 5 < runs[0].count(500) < 25


# --- Scripts


def test_the_first_rule_that_matches_wins(gateway: Simulator) -> None:
    def code(number: int) -> dict[str, Any]:
        return {"kind": "code", "code": number}

    id, other = next(ids), next(ids)
    gateway.script(
        {"match": {"id": id, "attempt": 2}, "do": code(1)},
        {"match": {"phone": 5}, "do": code(2)},
        {"match": {"text_contains": "love"}, "do": code(3)},
        {"match": {}, "share": 0, "do": code(4)},
        {"match": {"id": id}, "times": 1, "do": code(5)},
    )
    assert [send(gateway, id)[1]["code"] for _ in range(3)] == [5, 1, 0]
    assert send(gateway, other, {"id": other, "phone": 5, "text": "love"})[1]["code"] == 2
    assert send(gateway, other, {"id": other, "phone": 6, "text": "my love"})[1]["code"] == 3
    assert [rule["used"] for rule in gateway.state()["rules"]] == [1, 1, 1, 0, 1]


def test_share_of_a_rule(gateway: Simulator) -> None:
    gateway.script({"share": 0.5, "do": {"kind": "status", "status": 500}})
    statuses = [send(gateway, next(ids))[0] for _ in range(40)]
    assert 5 < statuses.count(500) < 35


def test_a_script_replaces_the_last_and_reset_returns_to_the_first(tmp_path: Path) -> None:
    file = tmp_path / "script.json"
    file.write_text('{"rules": [{"times": 1, "do": {"kind": "status", "status": 418}}], "jitter": 2}')
    with Simulator(script=file, latency=1, jitter=1) as gateway:
        assert [send(gateway, id)[0] for id in (1, 2)] == [418, 200]
        state = gateway.script(fail=1)
        assert (state["rules"], state["fail"], state["latency"], state["jitter"]) == ([], 1, 1, 2)
        assert send(gateway, 3)[0] == 500
        state = gateway.reset()
        assert (len(state["rules"]), state["fail"], state["requests"]) == (1, 0, 3)
        assert [send(gateway, id)[0] for id in (4, 5)] == [418, 200]


@pytest.mark.parametrize(
    "script",
    [
        "[]",
        "{",
        '{"latency": -1}',
        '{"latency": "1"}',
        '{"fail": 2}',
        '{"typo": 1}',
        '{"rules": [1]}',
        '{"rules": {}}',
        '{"rules": [{}]}',
        '{"rules": [{"do": {"kind": "nonsense"}}]}',
        '{"rules": [{"do": {"kind": "ok", "typo": 1}}]}',
        '{"rules": [{"do": {"kind": "ok"}, "typo": 1}]}',
        '{"rules": [{"do": {"kind": "ok"}, "match": {"typo": 1}}]}',
        '{"rules": [{"do": {"kind": "ok"}, "match": {"id": "1"}}]}',
        '{"rules": [{"do": {"kind": "ok"}, "times": true}]}',
        '{"rules": [{"do": {"kind": "close"}, "match": {"phone": 1}}]}',
        '{"rules": [{"do": {"kind": "status"}}]}',
        '{"rules": [{"do": {"kind": "status", "status": 1000}}]}',
        '{"rules": [{"do": {"kind": "status", "status": 200, "headers": {"A": 1}}}]}',
        '{"rules": [{"do": {"kind": "body", "text": "a", "base64": "YQ=="}}]}',
        '{"rules": [{"do": {"kind": "body", "base64": "?"}}]}',
        '{"rules": [{"do": {"kind": "code"}}]}',
    ],
)
def test_a_wrong_script_changes_nothing(gateway: Simulator, script: str) -> None:
    gateway.script(latency=1)
    raw = request(1, script.encode(), path="/control")
    head, _, body = exchange(gateway, raw).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 400")
    assert json.loads(body)["error"]
    assert gateway.state()["latency"] == 1


def test_requests_in_flight_are_counted(gateway: Simulator) -> None:
    gateway.script(latency=500)
    wanted = [next(ids) for _ in range(20)]

    async def run() -> list[int]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=10)) as session:

            async def one(id: int) -> int:
                body = {"id": id, "phone": PHONE, "text": "hello"}
                headers = {"Authorization": "Bearer any"}
                async with session.post(f"{gateway.url}/v1/send/{id}", json=body, headers=headers) as answer:
                    assert (await answer.json())["code"] == 0
                    return answer.status

            return await asyncio.gather(*map(one, wanted))

    assert asyncio.run(run()) == [200] * 20
    assert gateway.state()["in_flight"] == 0
    assert gateway.state()["max_in_flight"] == 10


# --- The ledger


def test_the_ledger_is_written_before_the_answer(gateway: Simulator) -> None:
    for _ in range(200):
        id = next(ids)
        assert SUCCESS in exchange(gateway, request(id))
        assert f'"id":{id},'.encode() in gateway.ledger.read_bytes().splitlines()[-1]


def test_a_killed_gateway_goes_on_where_it_was(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"
    with Simulator(ledger=ledger) as gateway:
        send(gateway, 1)
        port, process = gateway.port, gateway.process
        assert process is not None
        process.kill()
        assert gateway.stop() == -signal.SIGKILL
        with ledger.open("ab") as file:
            file.write(b'{"at":"2026-01')
        assert [entry.id for entry in gateway.entries()] == [1]
        gateway.start()
        assert gateway.port == port
        gateway.script({"match": {"attempt": 2}, "times": 1, "do": {"kind": "status", "status": 500}})
        assert [send(gateway, 1)[0], send(gateway, 1)[0]] == [500, 200]
        send(gateway, 2)
    assert [(entry.id, entry.repeat) for entry in read_ledger(ledger)] == [
        (1, False),
        (1, True),
        (1, True),
        (2, False),
    ]


@pytest.mark.parametrize("line", [b"nonsense\n", b"[]\n", b"{}\n", b'{"at":"2026-01-31T09:00:00Z","typo":1}\n'])
def test_a_broken_line_in_a_ledger_is_an_error(tmp_path: Path, line: bytes) -> None:
    ledger = tmp_path / "ledger.jsonl"
    ledger.write_bytes(line)
    with pytest.raises(ValueError, match="line 1"):
        read_ledger(ledger)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is full")
def test_without_its_ledger_it_answers_nothing_and_stops() -> None:
    with Simulator(ledger=Path("/dev/full")) as gateway:
        process = gateway.process
        assert process is not None
        assert exchange(gateway, request(1)) == b""
        assert process.wait(PATIENCE) == 1


# --- The process


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_requests_in_flight(number: signal.Signals) -> None:
    with Simulator() as gateway, connect(gateway) as link:
        gateway.script({"do": {"kind": "hang"}})
        link.sendall(request(1))
        until(lambda: gateway.state()["in_flight"] == 1)
        assert gateway.process is not None
        gateway.process.send_signal(number)
        assert gateway.process.wait(PATIENCE) == 0
        assert gateway.stop() == 0


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from notifier.simulator import Simulator;"
        f"print(Simulator(ledger=Path({str(tmp_path)!r}) / 'ledger').start().port, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        parent.kill()

    def gone() -> bool:
        with socket.socket() as link:
            return link.connect_ex(("127.0.0.1", port)) != 0

    until(gone)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "notifier.simulator", *arguments],
        check=False,
        capture_output=True,
        text=True,
    )


def test_a_taken_port_is_said_and_exit_2(gateway: Simulator) -> None:
    done = run("--port", str(gateway.port))
    assert done.returncode == 2
    assert f"127.0.0.1:{gateway.port}: the port is taken" in done.stderr


@pytest.mark.parametrize("option", ["--fail=2", "--latency=-1", "--latency=nan", "--rate=-1", "--port=70000"])
def test_a_wrong_option_is_exit_2(option: str) -> None:
    done = run("--port=0", option)
    assert done.returncode == 2
    assert "Error" in done.stderr


def test_a_wrong_script_or_ledger_is_exit_2(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("nonsense\n")
    assert run("--port=0", f"--script={broken}").returncode == 2
    assert run("--port=0", f"--ledger={broken}").returncode == 2
    assert run("--port=0", f"--ledger={tmp_path}/none/ledger").returncode == 2
    assert broken.read_text() == "nonsense\n"


def test_a_start_that_fails_raises() -> None:
    with pytest.raises(RuntimeError, match="did not start"), Simulator(fail=5):
        pass
