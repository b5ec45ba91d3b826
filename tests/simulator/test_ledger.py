"""The ledger: its form, when it is written, and how it is continued."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from chaos.stage import PATIENCE
from notifier.simulator import Simulator, read_ledger
from notifier.simulator.answers import SUCCESS
from tests.simulator.client import exchange, ids, request, send


def test_ledger_lines_have_the_agreed_form(gateway: Simulator) -> None:
    send(gateway, next(ids))
    line = gateway.ledger.read_bytes().splitlines()[-1]
    assert list(json.loads(line)) == ["at", "id", "phone", "text", "authorized", "repeat", "status", "code"]
    assert len(json.loads(line)["at"]) == len("2026-01-31T09:00:00.000000Z")


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
