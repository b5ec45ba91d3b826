"""The demo as its user sees it: a process of its own, and the check behind its exit code."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from chaos.stage import PATIENCE
from notifier import phones, zones
from notifier.demo import NETWORKS, sample, wrong
from notifier.models import Status
from notifier.simulator import Entry, read_ledger
from notifier.storage.database import Pool
from tests.conftest import poll_until

SERVER = Path(__file__).parent.parent / "server.py"


@pytest.fixture
def stranger() -> Iterator[socket.socket]:
    """Somebody who must not be called; ``accept`` raises at once when nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


def environment(place: Path, **more: str) -> dict[str, str]:
    ours = ("DATABASE_", "GATEWAY_", "BOOTSTRAP_", "SECRET_", "COV_")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "NOTIFIER_ENV_FILE": os.devnull,
        "DATA_DIR": str(place),
        "PORT": "0",
        "COLUMNS": "120",
        **more,
    }


def demo(place: Path, *options: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SERVER), "demo", *options],
        check=False,
        env=environment(place, **more),
        cwd=place,
        capture_output=True,
        text=True,
    )


@contextmanager
def started(place: Path, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], Callable[[], str]]]:
    """A demo that runs: the process, and what it has said so far."""
    said = place / "said.txt"
    with said.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, str(SERVER), "demo", *options],
            env=environment(place),
            cwd=place,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield process, said.read_text
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(PATIENCE)


def row(table: str, name: str) -> int:
    (number,) = re.findall(rf"│ {name} +│ +([\d,]+) │", table)
    return int(number.replace(",", ""))


def test_it_ends_well_twice_and_calls_nobody_else(place: Path, stranger: socket.socket) -> None:
    address = f"127.0.0.1:{stranger.getsockname()[1]}"
    others = {"DATABASE_URL": f"postgresql://{address}/x", "GATEWAY_URL": f"http://{address}", "GATEWAY_RATE": "x"}
    first = demo(place, "--exit", "--clients", "300", **others)
    assert first.returncode == 0, first.stderr
    audience = row(first.stdout, "audience")
    assert 0 < audience < 300
    assert row(first.stdout, "sent") == audience
    assert "exactly once" in first.stdout
    assert "takes 30 to 60 ms for each message" in first.stdout  # why it is slower than the README says
    # The second time with fewer clients: those of the first run are still there, and not in the audience.
    second = demo(place, "--exit", "--clients", "20", **others)
    assert second.returncode == 0, second.stderr
    assert 0 < row(second.stdout, "audience") < 20
    ledger = place / "demo" / "gateway.jsonl"
    assert ledger.stat().st_mode & 0o777 == 0o600  # it has phones in it
    taken = Counter(entry.id for entry in read_ledger(ledger) if entry.accepted)
    assert len(taken) == audience + row(second.stdout, "audience")
    assert set(taken.values()) == {1}
    with pytest.raises(BlockingIOError):
        stranger.accept()


def test_a_port_that_is_taken(place: Path, stranger: socket.socket) -> None:
    port = stranger.getsockname()[1]
    ended = demo(place, "--port", str(port), "--clients", "1", "--exit")
    assert ended.returncode == 2
    assert f"port {port}" in ended.stderr
    assert "give another one with --port" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not (place / "demo" / "postgresql").exists()


def test_a_data_folder_that_cannot_be_one(place: Path) -> None:
    ended = demo(place, "--clients", "1", "--exit", DATA_DIR="/proc/foo")
    assert ended.returncode == 2
    assert "error: DATA_DIR: /proc/foo" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_wrong_setting(place: Path) -> None:
    ended = demo(place, "--clients", "1", PORT="eighty", DEFAULT_TIMEZONE="Mars/Olympus")
    assert ended.returncode == 2
    assert "PORT" in ended.stderr
    assert "DEFAULT_TIMEZONE" in ended.stderr


async def test_it_keeps_serving_until_it_is_told_to_stop(place: Path) -> None:
    with started(place, "--clients", "20") as (process, said):
        await poll_until(lambda: "Serving" in said() or process.poll() is not None)
        admin, docs, token = re.findall(r"^(?:Admin|Docs|Token) +(\S+)$", said(), re.M)
        url = admin.removesuffix("/admin/")
        assert docs == f"{url}/docs/"
        request = Request(f"{url}/api/v1/mailings", headers={"Authorization": f"Bearer {token}"})
        with build_opener(ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
            assert b'"finished"' in answer.read()
        process.terminate()
        assert process.wait(PATIENCE) == 0
        assert "Traceback" not in said()


@pytest.mark.parametrize(("leave", "code"), [([], 0), (["--exit"], 1)])
async def test_stopped_in_the_middle(place: Path, leave: list[str], code: int) -> None:
    with started(place, "--clients", "20000", *leave) as (process, said):
        await poll_until((place / "demo" / "gateway.jsonl").exists)
        await poll_until(lambda: (place / "demo" / "gateway.jsonl").stat().st_size)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE) == code
        assert "Traceback" not in said()
        assert "exactly once" not in said()
        assert said().count("Stopping: ") == 1
        assert "Run the demo again to go on" in said()


def test_the_sample_is_always_the_same() -> None:
    clients = list(sample(30_000))
    assert clients == list(sample(30_000))
    assert len({client["phone"] for client in clients}) == len(clients)
    assert all(phones.parse(client["phone"]) == int(client["phone"]) for client in clients[:1000])
    assert {client["phone"][1:4] for client in clients} == {code for code, _, _ in NETWORKS}
    assert {client["timezone"] for client in clients} <= zones.names()
    assert {"Europe/Kaliningrad", "Asia/Kamchatka"} <= {client["timezone"] for client in clients}


# ---- the check behind the exit code

RIGHT = {"audience": 3, "messages": {**dict.fromkeys(Status, 0), Status.SENT: 2, Status.FAILED: 1}}


def entry(message_id: int, status: int = 200, *, repeat: bool = False) -> Entry:
    return Entry(datetime.now(UTC), message_id, 79160000000, "text", True, repeat, status, 0 if status == 200 else None)


TAKEN = [entry(1, 500), entry(1), entry(2), entry(3, 400)]


async def finished(db: Pool) -> int:
    """A finished mailing whose messages 1 and 2 were sent, the first at the second try, and 3 failed."""
    mailing: int = await db.fetchval(
        "INSERT INTO mailings (starts_at, ends_at, status, audience, planned) "
        "VALUES (now(), now() + interval '1 hour', 'finished', 3, true) RETURNING id"
    )
    await db.execute(
        "INSERT INTO messages (id, mailing_id, client_id) SELECT i, $1, i FROM generate_series(1, 3) i", mailing
    )
    await db.executemany(
        "INSERT INTO attempts (message_id, mailing_id, started_at, outcome, state, seq) "
        f"VALUES ($1, {mailing}, now(), $2, $3, $4)",
        [
            (1, "unknown", "doubtful", 1),
            (1, "accepted", "sent", 2),
            (2, "accepted", "sent", 1),
            (3, "rejected", "failed", 1),
        ],
    )
    return mailing


async def test_books_that_balance(db: Pool) -> None:
    assert await wrong(db, await finished(db), RIGHT, TAKEN) == []


@pytest.mark.parametrize(
    ("ledger", "line"),
    [
        ([], r"message 1 is sent, and stands 0 times"),
        (TAKEN[:2], r"message 2 is sent, and stands 0 times"),
        ([*TAKEN, entry(2, repeat=True)], r"message 2 is sent, and stands 2 times"),
        ([*TAKEN, entry(3)], r"message 3 is failed, and stands 1 times"),
    ],
)
async def test_a_ledger_that_says_otherwise(db: Pool, ledger: list[Entry], line: str) -> None:
    found = await wrong(db, await finished(db), RIGHT, ledger)
    assert any(re.match(line, each) for each in found), found


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({Status.SENT: 1, Status.WAITING: 1}, "1 messages are left waiting"),
        ({Status.SENT: 1, Status.RETRYING: 1}, "1 messages are left waiting"),
        ({Status.SENT: 3, Status.FAILED: 0}, "sent: the statistics say 3, counted are 2"),
    ],
)
async def test_statistics_that_say_otherwise(db: Pool, changed: dict[Status, int], words: str) -> None:
    said: dict[str, Any] = {"audience": 3, "messages": {**RIGHT["messages"], **changed}}  # type: ignore[dict-item]
    assert words in await wrong(db, await finished(db), said, TAKEN)


async def test_an_audience_that_is_not_there(db: Pool) -> None:
    mailing = await finished(db)
    assert await wrong(db, mailing, {**RIGHT, "audience": 4}, TAKEN) == [
        "audience: the statistics say 4, counted are 3"
    ]
