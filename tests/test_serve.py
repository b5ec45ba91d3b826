"""`server.py serve` in processes of its own: how it starts, what it waits for, and how it stops."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from pathlib import Path

import psycopg
import pytest

from chaos.stage import PATIENCE
from notifier.simulator import Simulator, read_ledger
from tests.conftest import poll_until
from tests.processes import KEY, SERVER, TOKEN, get, run, started


@pytest.fixture
def closed() -> str:
    """The address of a database where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"postgresql://notifier@127.0.0.1:{probe.getsockname()[1]}/notifier"


async def test_the_start_says_what_it_has_read_and_that_nobody_can_log_in(place: Path, closed: str) -> None:
    (place / ".env").write_text(f"LOG_LEVEL=info\nSECRET_KEY={KEY.replace(' ', '-')}\n")
    for name, given in (("none", {}), ("some", {"BOOTSTRAP_TOKEN": TOKEN}), ("worker", {"ROLE": "worker"})):
        there = {"DATABASE_URL": closed, "NOTIFIER_ENV_FILE": "", **given}
        with started(place, name, **there) as waiting:
            await poll_until(lambda: "the database is unavailable" in waiting.said())
            events = [json.loads(line) for line in waiting.said().splitlines()]
        (read,) = [each for each in events if each["event"] == "settings read"]
        assert read["env_file"] == str(place / ".env")
        warned = [each for each in events if "nobody can log in" in each["event"]]
        assert len(warned) == (name == "none")
        assert [each["event"] for each in events].count("GATEWAY_URL is not set: mailings wait") == 1


async def test_the_lateness_of_the_loop_is_never_negative(place: Path) -> None:
    with Simulator(ledger=place / "ledger", latency=1_500, jitter=0) as gateway:
        there = {"GATEWAY_URL": gateway.url, "GATEWAY_TOKEN": "any", "GATEWAY_CONCURRENCY": "1"}
        with started(place, BOOTSTRAP_TOKEN=TOKEN, **there) as one:
            url = await one.up()
            get(f"{url}/api/v1/clients/batch", b'{"items": [{"phone": "79161234567"}, {"phone": "79161234568"}]}')
            get(f"{url}/api/v1/mailings", b'{"text": "Hello", "ends_at": "2035-01-01T00:00:00Z"}')
            seen: list[float] = []

            def lateness() -> bool:
                """Looked at, again and again, for as long as the two requests take."""
                (line,) = re.findall(rb"^notifier_loop_lag_seconds (.+)$", get(f"{url}/metrics"), re.M)
                seen.append(float(line))
                return len(read_ledger(gateway.ledger)) == 2

            await poll_until(lateness)
    assert min(seen) >= 0


async def test_two_replicas_share_an_embedded_database_until_sigterm(place: Path) -> None:
    with started(place, "one", BOOTSTRAP_TOKEN=TOKEN) as one, started(place, "two", BOOTSTRAP_TOKEN=TOKEN) as two:
        urls = [await one.up(), await two.up()]
        for url in urls:
            assert get(f"{url}/healthz") == b"ok\n"
            assert get(f"{url}/readyz") == b"ok\n"
        client = json.loads(get(f"{urls[0]}/api/v1/clients", b'{"phone": "79161234567"}'))
        # What one has stored the other shows, also when the first is gone.
        assert json.loads(get(f"{urls[1]}/api/v1/clients"))["items"] == [client]
        audit = run(place, "audit")
        assert audit.returncode == 0, audit.stdout + audit.stderr
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(PATIENCE) == 0
        assert json.loads(get(f"{urls[1]}/api/v1/clients"))["items"] == [client]
        two.process.send_signal(signal.SIGINT)
        assert two.process.wait(PATIENCE) == 0
        for each in (one, two):
            assert '"stopped"' in each.said()
            assert "Traceback" not in each.said()


def test_a_port_that_is_taken_stops_it_before_it_touches_a_database(place: Path, empty_dsn: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = str(listener.getsockname()[1])
        there = run(place, "serve", PORT=port, DATABASE_URL=empty_dsn, SECRET_KEY=KEY)
        embedded = run(place, "serve", PORT=port)
    for ended in (there, embedded):
        assert ended.returncode == 2
        assert f"port {port}" in ended.stderr
        assert "Traceback" not in ended.stderr
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT to_regclass('clients')").fetchone() == (None,)
    assert not (place / "postgresql").exists()


@pytest.mark.parametrize("given", [{}, {"SECRET_KEY": KEY}])
@pytest.mark.parametrize("name", ["file", "/proc/foo"])
def test_a_data_folder_that_cannot_be_one(place: Path, name: str, given: dict[str, str]) -> None:
    (place / "file").touch()
    ended = run(place, "serve", **{"DATA_DIR": name, **given})
    assert ended.returncode in (1, 2)
    assert "DATA_DIR" in ended.stderr
    assert "Traceback" not in ended.stderr


async def test_a_replica_with_another_key_is_warned_of(place: Path) -> None:
    with started(place, "one", SECRET_KEY=KEY, ROLE="api") as one:
        await one.up()
        with started(place, "two", SECRET_KEY=KEY[::-1], ROLE="api") as two:
            await two.up()
        assert "SECRET_KEY is not that of" in two.said()
        assert "SECRET_KEY is not that of" not in one.said()


async def test_the_embedded_database_is_killed_and_service_recovers(place: Path) -> None:
    with started(place, BOOTSTRAP_TOKEN=TOKEN) as one:
        url = await one.up()
        client = json.loads(get(f"{url}/api/v1/clients", b'{"phone": "79161234567"}'))
        pid = place / "postgresql/postgres/data/postmaster.pid"
        os.kill(int(pid.read_text().split()[0]), signal.SIGKILL)
        await poll_until(lambda: "the embedded PostgreSQL is back" in one.said())
        assert get(f"{url}/readyz") == b"ok\n"
        assert json.loads(get(f"{url}/api/v1/clients"))["items"] == [client]
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(PATIENCE) == 0
        assert "Traceback" not in one.said()


def hanging_in(method: str) -> str:
    """A program that serves, with a scheduler that never comes back from this method."""
    return (
        "import asyncio\n"
        "from notifier import cli\n"
        "from notifier.delivery.scheduler import Scheduler\n"
        "async def hang(self, *_): await asyncio.Event().wait()\n"
        f"Scheduler.{method} = hang\n"
        "cli.main(['serve'])"
    )


async def test_a_second_signal_ends_it_and_stops_the_embedded_database(place: Path) -> None:
    with started(place, "serve", "-c", hanging_in("stop"), PYTHONPATH=str(SERVER.parent)) as one:
        await one.up()
        await poll_until(lambda: '"the scheduler runs"' in one.said())
        one.process.send_signal(signal.SIGINT)
        await poll_until(lambda: '"stopping"' in one.said())
        one.process.send_signal(signal.SIGINT)
        await poll_until(lambda: one.process.poll() is not None)
        assert one.process.returncode == 1
        await poll_until(lambda: not (place / "postgresql/postgres/data/postmaster.pid").exists())
        assert "Traceback" not in one.said()


async def test_a_signal_ends_a_start_that_waits(place: Path) -> None:
    with started(place, "serve", "-c", hanging_in("start"), PYTHONPATH=str(SERVER.parent)) as one:
        await one.up()
        one.process.send_signal(signal.SIGTERM)
        await poll_until(lambda: one.process.poll() is not None)
        assert one.process.returncode == 0
        assert "Traceback" not in one.said()


def test_ctrl_c_while_it_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Impatient:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'notifier.cli': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Impatient())"
    )
    ended = run(tmp_path, "serve", PYTHONPATH=str(tmp_path))
    assert (ended.returncode, ended.stderr) == (1, "stopped\n")


async def test_a_database_that_is_away_is_waited_for(place: Path, closed: str) -> None:
    with started(place, DATABASE_URL=closed, SECRET_KEY=KEY) as waiting:
        await poll_until(lambda: "the database is unavailable, waiting up to 60 s more" in waiting.said())
        assert waiting.process.poll() is None


@pytest.mark.parametrize("step", ["migrations.migrate", "readiness.check", "Scheduler.start"])
async def test_a_database_that_goes_away_again_during_the_start_is_waited_for(
    place: Path, empty_dsn: str, step: str
) -> None:
    # a restart between two steps of the start: the first call of the step finds the connection gone
    interrupted = (
        "import functools, asyncpg, psycopg\n"
        "from notifier import app, cli\n"
        "app.readiness.check = functools.partial(app.readiness.check, durable=False)\n"
        f"owner, name = app.{step.split('.')[0]}, '{step.split('.')[1]}'\n"
        "real, calls = getattr(owner, name), []\n"
        "def once(*args):\n"
        "    calls.append(1)\n"
        "    if len(calls) == 1:\n"
        "        raise psycopg.OperationalError('gone') if name == 'migrate' else asyncpg.AdminShutdownError('gone')\n"
        "    return real(*args)\n"
        "setattr(owner, name, once)\n"
        "cli.main(['serve'])"
    )
    path = str(SERVER.parent)
    with started(place, "serve", "-c", interrupted, DATABASE_URL=empty_dsn, SECRET_KEY=KEY, PYTHONPATH=path) as one:
        await poll_until(lambda: "the scheduler runs" in one.said())
        assert "the database is unavailable, waiting up to 60 s more: gone" in one.said()
        one.process.send_signal(signal.SIGTERM)
        assert one.process.wait(PATIENCE) == 0
        assert "Traceback" not in one.said()


@pytest.mark.parametrize(("command", "code"), [("serve", 0), ("migrate", 1), ("audit", 2)])
@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
async def test_stopped_while_the_database_is_waited_for(
    place: Path, closed: str, command: str, code: int, by: signal.Signals
) -> None:
    with started(place, command, str(SERVER), command, DATABASE_URL=closed, SECRET_KEY=KEY) as waiting:
        await poll_until(lambda: "the database is unavailable, waiting up to 60 s more" in waiting.said())
        waiting.process.send_signal(by)
        assert waiting.process.wait(PATIENCE) == code  # a migration that was stopped is none
        assert waiting.said().splitlines()[-1] == "stopped"
        assert "Traceback" not in waiting.said()


async def test_patience_ends(place: Path, closed: str) -> None:
    impatient = (
        "from functools import partial\n"
        "from notifier import app, cli\n"
        "app.readiness.wait_until_up = partial(app.readiness.wait_until_up, seconds=0.3)\n"
        "cli.main(['serve'])"
    )
    path = str(SERVER.parent)
    with started(place, "serve", "-c", impatient, DATABASE_URL=closed, SECRET_KEY=KEY, PYTHONPATH=path) as waiting:
        assert await poll_until(lambda: waiting.process.poll() is not None)
        assert waiting.process.returncode == 1
        assert "did not come up within" in waiting.said()
        assert "Traceback" not in waiting.said()
