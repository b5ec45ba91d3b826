"""Scripts: which request gets which answer, latency, rate and failures, and scripts that are wrong."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from chaos.stage import until
from notifier.simulator import Simulator
from tests.simulator.client import exchange, ids, request, send


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
