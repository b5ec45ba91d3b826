"""The contract of the sending API over real sockets: what is accepted, repeated and refused."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import aiohttp
import click
import pytest

from notifier.simulator import Simulator, command
from notifier.simulator.answers import SUCCESS
from notifier.simulator.kinds import KINDS
from tests.simulator.client import PHONE, connect, entries_of, exchange, ids, request, send


def test_accepts_a_message_and_writes_it_down(gateway: Simulator) -> None:
    id = next(ids)
    assert send(gateway, id) == (200, {"code": 0, "message": "OK"})
    [entry] = entries_of(gateway, id)
    assert entry[1:] == (id, PHONE, "hello", True, False, 200, 0)
    assert entry.accepted
    assert abs(entry.at.timestamp() - time.time()) < 60


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
