"""Who may enter the embedded PostgreSQL, and as which account it runs under root."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from structlog.testing import capture_logs

from notifier.storage import embedded_place
from notifier.storage.embedded import running
from tests.storage.embedded_scenes import add, another_user, dsn_of, is_up, kept, postmaster, root_only


def test_only_its_owner_can_enter_and_no_port_is_open(data_dir: Path) -> None:
    with running(data_dir, fast=True) as dsn, psycopg.connect(dsn) as connection:
        assert (data_dir / "postgres").stat().st_mode & 0o777 == 0o700
        assert connection.execute("SHOW listen_addresses").fetchone() == ("",)


def test_no_new_folder_is_open_to_others(place: Path) -> None:
    with running(place / "data" / "postgresql", fast=True):
        for folder in (place / "data", place / "data" / "postgresql"):
            # Root's is passed through by the account of the server.
            assert folder.stat().st_mode & 0o777 == (0o711 if os.geteuid() == 0 else 0o700)
        assert (place / "data" / "postgresql" / "postgres").stat().st_mode & 0o777 == 0o700


RULES = "SELECT type, user_name, auth_method, error FROM pg_hba_file_rules"


def test_the_server_asks_who_it_is(data_dir: Path) -> None:
    with running(data_dir, fast=True) as dsn, psycopg.connect(dsn) as connection:
        assert connection.execute(RULES).fetchall() == [("local", ["all"], "peer", None)]
        names = {name for (name,) in connection.execute("SELECT sys_name FROM pg_ident_file_mappings")}
        assert names == {"root", pwd.getpwuid((data_dir / "postgres").stat().st_uid).pw_name}


LOG_IN = """
import os, sys, psycopg
os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[2]))
psycopg.connect(sys.argv[1], connect_timeout=5).close()
"""


def log_in_as(uid: int, dsn: str) -> str:
    """What a process of this user is told when it connects; nothing when it is let in."""
    ended = subprocess.run([sys.executable, "-c", LOG_IN, dsn, str(uid)], check=False, capture_output=True, text=True)
    return ended.stderr


@root_only
def test_root_runs_it_under_an_account_of_its_own_and_lets_nobody_else_in(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_place, "ACCOUNTS", ("no-such-account", "daemon"))
    daemon, nobody = pwd.getpwnam("daemon").pw_uid, pwd.getpwnam("nobody").pw_uid
    with running(place, fast=True) as dsn, capture_logs() as said:
        assert (place / "postgres").stat().st_uid == daemon
        assert Path(f"/proc/{postmaster(place)}").stat().st_uid == daemon
        assert log_in_as(0, dsn) == log_in_as(daemon, dsn) == ""
        for uid in (nobody, 12345):
            assert "Permission denied" in log_in_as(uid, dsn)
        # Not only because of the folder that they cannot enter.
        (place / "postgres").chmod(0o755)
        (place / "postgres" / embedded_place.SOCKET).chmod(0o777)
        assert 'Peer authentication failed for user "notifier"' in log_in_as(nobody, dsn)
        assert log_in_as(12345, dsn) != ""
    assert said == []


@root_only
def test_root_is_warned_where_there_is_no_account_for_it(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_place, "ACCOUNTS", ())
    with capture_logs() as said, running(place, fast=True) as dsn:
        assert is_up(dsn)
    (warning,) = said
    assert "useradd --system notifier" in warning["event"]


@root_only
def test_what_belongs_to_nobody_is_handed_over_with_its_data(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # As 0.1.0 made it: the files belong to nobody, and nobody is asked who it is.
    monkeypatch.setattr(embedded_place, "ACCOUNTS", ())
    with running(place, fast=True) as dsn:
        add(dsn, 1)
    (place / "postgres/data/pg_hba.conf").write_text("local all all trust\nhost all all 127.0.0.1/32 trust\n")
    (place / "postgres/data/pg_ident.conf").write_text("")
    monkeypatch.setattr(embedded_place, "ACCOUNTS", ("daemon",))
    with running(place, fast=True) as dsn, psycopg.connect(dsn) as connection:
        assert kept(dsn) == [1]
        assert connection.execute(RULES).fetchall() == [("local", ["all"], "peer", None)]
        owners = {path.lstat().st_uid for path in (place / "postgres", *(place / "postgres").rglob("*"))}
        assert owners == {pwd.getpwnam("daemon").pw_uid}
    # And it stays usable where the account is not the first choice any more.
    monkeypatch.setattr(embedded_place, "ACCOUNTS", ())
    with running(place, fast=True) as dsn:
        assert kept(dsn) == [1]


@root_only
def test_nothing_is_handed_over_under_a_server_that_runs(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["chown", "-R", str(pwd.getpwnam("nobody").pw_uid), data_dir / "postgres"], check=True)
    with another_user(data_dir) as other:
        monkeypatch.setattr(embedded_place, "ACCOUNTS", ("daemon",))
        dsn = dsn_of(other)
        owner = (data_dir / "postgres").stat().st_uid
        with running(data_dir, fast=True):
            assert is_up(dsn)
            assert (data_dir / "postgres").stat().st_uid == owner
        other.communicate()
        assert other.returncode == 0


def test_its_environment_and_log_hold_no_secret(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_TOKEN", "top-secret")
    with running(data_dir, fast=True) as dsn:
        environment = Path(f"/proc/{postmaster(data_dir)}/environ")
        if environment.exists():
            assert b"top-secret" not in environment.read_bytes()
        with psycopg.connect(dsn) as connection:
            connection.execute("CREATE TABLE phones (phone text PRIMARY KEY)")
            connection.execute("INSERT INTO phones VALUES ('79161234567')")
            with pytest.raises(psycopg.errors.UniqueViolation):
                connection.execute("INSERT INTO phones VALUES ('79161234567')")
    assert "79161234567" not in (data_dir / "postgres/server.log").read_text()
