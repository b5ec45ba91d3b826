"""The embedded PostgreSQL: it starts, is shared by processes, survives kills, and stops with its last user."""

from __future__ import annotations

import os
import signal
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psycopg
import pytest
from structlog.testing import capture_logs

from notifier.errors import NotifierError
from notifier.storage import embedded
from notifier.storage.embedded import running
from tests.conftest import poll_until
from tests.storage.embedded_scenes import add, another_user, dsn_of, is_up, kept, postmaster

DURABILITY = "SELECT current_setting('synchronous_commit'), current_setting('fsync')"


def test_cold_start_then_warm_start_keeps_the_data_and_stops_in_between(place: Path) -> None:
    assert not embedded.was_made(place)
    with running(place) as dsn:
        add(dsn, 1)
    assert not is_up(dsn)
    assert embedded.was_made(place)
    with running(place) as dsn:
        assert kept(dsn) == [1]


def test_it_folds_cyrillic_case_and_cuts_it_in_trigrams(data_dir: Path) -> None:
    with running(data_dir, fast=True) as dsn, psycopg.connect(dsn) as connection:
        assert connection.execute("SELECT lower('ПРИВЕТ'), 'Привет' ILIKE 'привет'").fetchone() == (
            "привет",
            True,
        )
        connection.execute("CREATE EXTENSION pg_trgm")
        assert connection.execute("SELECT similarity('Привет', 'привет')").fetchone() == (1.0,)


def test_commits_are_durable_unless_fast(data_dir: Path) -> None:
    for fast, expected in ((False, ("on", "on")), (True, ("off", "off"))):
        with running(data_dir, fast=fast) as dsn, psycopg.connect(dsn) as connection:
            assert connection.execute(DURABILITY).fetchone() == expected


def test_killed_postmaster_loses_nothing_and_starts_again(data_dir: Path) -> None:
    with running(data_dir) as dsn:
        add(dsn, 1)
        os.kill(postmaster(data_dir), signal.SIGKILL)
        with running(data_dir) as again:
            assert again == dsn
            add(again, 2)
            assert kept(again) == [1, 2]


async def test_killed_postmaster_is_started_again_for_who_uses_it(data_dir: Path) -> None:
    with running(data_dir) as dsn, capture_logs() as said:
        for value in (1, 2):  # again after the first time
            add(dsn, value)
            os.kill(postmaster(data_dir), signal.SIGKILL)
            await poll_until(lambda: [each for each in said if each["event"].endswith("is back")])
            assert [each["log_level"] for each in said] == ["warning", "warning"]
            said.clear()
            assert kept(dsn) == list(range(1, value + 1))
    assert not is_up(dsn)


async def test_killed_postmaster_is_started_again_once_for_all_who_use_it(data_dir: Path) -> None:
    with another_user(data_dir) as one, another_user(data_dir) as two, running(data_dir, fast=True) as dsn:
        assert dsn_of(one) == dsn_of(two) == dsn
        killed = postmaster(data_dir)
        os.kill(killed, signal.SIGKILL)
        await poll_until(lambda: not is_up(dsn))
        await poll_until(lambda: is_up(dsn))
        assert postmaster(data_dir) != killed
        for other in (one, two):
            other.communicate()
            assert other.returncode == 0
        assert is_up(dsn)
    assert not is_up(dsn)


async def test_server_that_cannot_be_started_again_is_tried_ever_more_rarely(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "LOOK", 0.02)
    with running(data_dir, fast=True) as dsn, capture_logs() as said:
        config = data_dir / "postgres/data/postgresql.conf"
        right = config.read_text()
        config.write_text(f"{right}\nno_such_setting = 1\n")
        os.kill(postmaster(data_dir), signal.SIGKILL)
        failed = await poll_until(lambda: [each for each in said if "not back" in each["event"]][2:])
        pauses = [each["again_in"] for each in said if "again_in" in each]
        assert pauses[:3] == [0.04, 0.08, 0.16]
        assert "no_such_setting" in failed[0]["error"]
        config.write_text(right)
        await poll_until(lambda: is_up(dsn))
    assert not is_up(dsn)


def test_killed_postmaster_lets_its_last_user_leave(data_dir: Path) -> None:
    with running(data_dir) as dsn:
        add(dsn, 1)
        os.kill(postmaster(data_dir), signal.SIGKILL)
    with running(data_dir) as dsn:
        assert kept(dsn) == [1]


def test_pid_file_that_names_a_living_stranger_does_not_stop_the_start(data_dir: Path) -> None:
    with running(data_dir, fast=True) as dsn:
        add(dsn, 1)
    # The next boot has given the number to somebody else: here a process of the server's own user.
    owner = (data_dir / "postgres").stat().st_uid
    with subprocess.Popen(["sleep", "60"], user=owner if os.geteuid() == 0 else None) as stranger:
        try:
            for name in ("data/postmaster.pid", ".s.PGSQL.5432.lock"):
                (data_dir / "postgres" / name).write_text(f"{stranger.pid}\n{data_dir}/postgres/data\n1\n5432\n\n\n")
            with running(data_dir, fast=True) as dsn:
                assert kept(dsn) == [1]
            assert stranger.poll() is None
        finally:
            stranger.kill()


def test_half_made_cluster_is_made_anew(place: Path) -> None:
    with running(place, fast=True) as dsn:
        add(dsn, 1)
    # As a crash inside initdb leaves it.
    (place / "postgres/data").rename(place / "postgres/new")
    (place / "postgres/new/PG_VERSION").unlink()
    with running(place, fast=True) as dsn:
        assert is_up(dsn)


def test_two_processes_share_it_and_the_last_one_out_stops_it(data_dir: Path) -> None:
    with another_user(data_dir) as other:
        dsn = dsn_of(other)
        with running(data_dir, fast=True) as ours:
            assert ours == dsn
            pid = postmaster(data_dir)
        assert is_up(dsn)
        assert postmaster(data_dir) == pid
        other.communicate()
        assert other.returncode == 0
    assert not is_up(dsn)


def test_five_processes_starting_at_once_get_one_server(place: Path) -> None:
    with ExitStack() as stack:
        others = [stack.enter_context(another_user(place)) for _ in range(5)]
        dsns = {dsn_of(other) for other in others}
        assert len(dsns) == 1
        (dsn,) = dsns
        for other in others:
            assert is_up(dsn)
            other.communicate()
            assert other.returncode == 0
    assert not is_up(dsn)


def test_killed_user_does_not_keep_it_from_stopping(data_dir: Path) -> None:
    with another_user(data_dir) as other:
        dsn = dsn_of(other)
        add(dsn, 1)
        other.kill()
        other.wait()
    assert is_up(dsn)
    with running(data_dir, fast=True) as ours:
        assert ours == dsn
        assert kept(dsn) == [1]
    assert not is_up(dsn)


def test_ctrl_c_at_the_terminal_is_not_the_servers(data_dir: Path) -> None:
    with running(data_dir, fast=True):
        assert os.getsid(postmaster(data_dir)) != os.getsid(0)
        assert os.getpgid(postmaster(data_dir)) != os.getpgid(0)


def test_server_that_hangs_is_given_up(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "WAIT", 0.1)
    with another_user(data_dir) as other:
        dsn_of(other)
        pid = postmaster(data_dir)
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(NotifierError, match="does not answer"), running(data_dir):
                pass
            other.kill()
            other.wait()
            with pytest.raises(NotifierError, match="does not stop"), running(data_dir):
                pass
        finally:
            os.kill(pid, signal.SIGCONT)
    monkeypatch.undo()
    with running(data_dir, fast=True) as dsn:
        assert is_up(dsn)


def test_an_impatient_ctrl_c_does_not_keep_it_from_being_stopped(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*arguments: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        really(*arguments)

    really = embedded._stop
    monkeypatch.setattr(embedded, "_stop", stop)
    before = signal.getsignal(signal.SIGINT)
    with running(place, fast=True):
        assert postmaster(place)
    assert not (place / "postgres/data/postmaster.pid").exists()
    assert signal.getsignal(signal.SIGINT) is before
