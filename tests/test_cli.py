"""The command line in processes of its own: what it says, and with which code it ends."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest

from chaos.stage import Postgres
from notifier.settings import Settings, secret_key
from notifier.storage.audit_checks import CHECKS
from notifier.storage.migrations import MIGRATIONS
from tests.processes import KEY, SERVER, TOKEN, environment, run
from tests.test_address import UNESCAPED

NAMES = sorted(path.stem for path in MIGRATIONS.glob("*.sql") if not path.name.endswith(".rollback.sql"))


def test_help_lists_the_commands(tmp_path: Path) -> None:
    ended = run(tmp_path, "--help")
    assert ended.returncode == 0
    for command in ("serve", "demo", "gateway", "migrate", "audit", "dump", "load", "release", "config"):
        assert f"\n  {command} " in ended.stdout


def test_an_unknown_command(tmp_path: Path) -> None:
    assert run(tmp_path, "fly").returncode == 2


def test_config_check_shows_every_setting_without_secrets(tmp_path: Path) -> None:
    ended = run(tmp_path, "config", "check", BOOTSTRAP_TOKEN=TOKEN, GATEWAY_RATE="50")
    assert ended.returncode == 0, ended.stderr
    assert TOKEN not in ended.stdout
    assert "environment" in next(line for line in ended.stdout.splitlines() if "GATEWAY_RATE" in line)
    assert "default" in next(line for line in ended.stdout.splitlines() if "SHUTDOWN_GRACE" in line)


def test_config_check_shows_long_values_whole(tmp_path: Path) -> None:
    """In 80 columns, which a pipe has, and whoever reads a log of it."""
    address = "https://gateway-of-the-tests.example.com:8443/" + "/".join(["sms"] * 12)
    ended = run(tmp_path, "config", "check", GATEWAY_URL=address, GATEWAY_TOKEN=TOKEN, COLUMNS="80")
    assert ended.returncode == 0, ended.stderr
    values = [line.split("│")[2].strip() for line in ended.stdout.splitlines() if line.startswith("│")]
    assert address in "".join(values)


def test_config_check_shows_the_settings_beside_the_errors(tmp_path: Path) -> None:
    ended = run(tmp_path, "config", "check", BOOTSTRAP_TOKEN="short", PORT="eighty", GATEWAY_RATE="50")
    assert ended.returncode == 2
    lines = {line.split()[1]: line for line in ended.stdout.splitlines() if len(line.split()) > 4}
    assert "50" in lines["GATEWAY_RATE"]
    assert "15" in lines["GATEWAY_TIMEOUT"]
    assert "wrong, see below" in lines["PORT"]
    assert "eighty" not in ended.stdout
    assert [line.split()[:2] for line in ended.stderr.splitlines()] == [
        ["warning:", "GATEWAY_URL"],
        ["error:", "PORT:"],
        ["error:", "BOOTSTRAP_TOKEN:"],
    ]


def test_config_check_says_which_file_was_read(tmp_path: Path) -> None:
    """The one that was asked for, else that of the current folder."""
    (tmp_path / "mine").write_text("GATEWAY_RATE=70\n")
    (tmp_path / ".env").write_text("GATEWAY_RATE=50\n")
    for arguments, environ, name, rate in (
        (("--env-file", "mine"), {}, "mine", "70"),
        ((), {"NOTIFIER_ENV_FILE": "mine"}, "mine", "70"),
        ((), {"NOTIFIER_ENV_FILE": ""}, ".env", "50"),
    ):
        ended = run(tmp_path, *arguments, "config", "check", **environ)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.splitlines()[0] == f"settings file: {tmp_path / name}"
        assert rate in next(line for line in ended.stdout.splitlines() if "GATEWAY_RATE" in line)


@pytest.mark.parametrize(
    "command",
    [
        ("config", "check"),
        ("serve",),
        ("demo", "--exit"),
        ("migrate",),
        ("migrate", "--status"),
        ("audit",),
        ("release",),
        ("dump", "all.zip"),
        ("load", str(SERVER)),
    ],
)
def test_a_settings_file_that_was_asked_for_and_is_not_there(tmp_path: Path, command: tuple[str, ...]) -> None:
    ended = run(tmp_path, "--env-file", "nowhere", *command)
    assert ended.returncode == 2
    assert "error: --env-file: nowhere does not exist" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize("command", [("config", "check"), ("demo", "--help"), ("gateway", "--help"), ("--help",)])
def test_a_terminal_that_is_not_utf_8(tmp_path: Path, encoding: str, command: tuple[str, ...]) -> None:
    quiet = {"BOOTSTRAP_TOKEN": TOKEN, "GATEWAY_URL": "https://g.example.com", "GATEWAY_TOKEN": "jwt"}
    ended = run(tmp_path, *command, PYTHONIOENCODING=encoding, PYTHONUTF8="0", **quiet)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_config_check_shows_the_key_that_was_made(tmp_path: Path) -> None:
    def shown() -> list[str]:
        ended = run(tmp_path, "config", "check")
        return next(line for line in ended.stdout.splitlines() if "SECRET_KEY" in line).split()

    assert "made and kept in DATA_DIR" in " ".join(shown())
    key = secret_key(Settings.load({"DATA_DIR": str(tmp_path)}))
    assert "***" in shown()
    assert str(tmp_path / "secret_key") in shown()
    assert key not in " ".join(shown())


@pytest.mark.parametrize(("url", "secret"), [UNESCAPED[at] for at in (0, 1, 2, 3, 8)])
def test_an_address_that_must_be_encoded_is_told_so_without_a_letter_of_it(
    tmp_path: Path, url: str, secret: str
) -> None:
    pieces = {secret[at : at + 3] for at in range(len(secret) - 2)}
    for command in (("config", "check"), ("serve",)):
        ended = run(tmp_path, *command, DATABASE_URL=f"postgresql://{url}", SECRET_KEY=KEY)
        assert ended.returncode == 2
        (error,) = [line for line in ended.stderr.splitlines() if line.startswith("error:")]
        assert error.startswith("error: DATABASE_URL: ")
        assert "Traceback" not in ended.stderr
        assert not [piece for piece in pieces if piece in ended.stdout + ended.stderr]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_home_that_only_somebody_else_can_enter_is_none(tmp_path: Path, postgres: Postgres) -> None:
    # As under `su` without a new environment. Both drivers look there for certificates.
    (tmp_path / "home").mkdir(mode=0o700)
    program = (
        "import os, sys; from notifier.cli import main; os.setgid(65534); os.setuid(65534);"
        "sys.argv[1:] = ['migrate', '--status']; main()"
    )
    there = {"DATABASE_URL": postgres.dsn, "SECRET_KEY": KEY, "HOME": str(tmp_path / "home")}
    ended = subprocess.run(
        [sys.executable, "-c", program],
        check=False,
        env=environment(Path("/tmp"), PYTHONPATH=str(SERVER.parent), **there),
        cwd="/",
        capture_output=True,
        text=True,
    )
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize(
    "command", [("config", "check"), ("serve",), (), ("migrate",), ("migrate", "--status"), ("audit",)]
)
def test_wrong_settings_are_all_named(tmp_path: Path, command: tuple[str, ...]) -> None:
    wrong = {"PORT": "eighty", "GATEWAY_URL": "ftp://x", "DEFAULT_TIMEZONE": "Mars/Olympus", "GATEWAY_RAET": "1"}
    ended = run(tmp_path, *command, **wrong)
    assert ended.returncode == 2
    for name in wrong:
        assert f"error: {name}:" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_migrate(tmp_path: Path, empty_dsn: str) -> None:
    there = {"DATABASE_URL": empty_dsn, "SECRET_KEY": KEY}
    before = run(tmp_path, "migrate", "--status", **there)
    assert before.returncode == 1, before.stderr  # so that a script can tell
    assert before.stdout.splitlines() == [f"pending  {name}" for name in NAMES]
    with psycopg.connect(empty_dsn) as connection:  # nothing was changed
        assert connection.execute("SELECT to_regclass('clients')").fetchone() == (None,)
    applied = run(tmp_path, "migrate", **there)
    assert applied.returncode == 0, applied.stderr
    assert "all applied" in applied.stdout
    after = run(tmp_path, "migrate", "--status", **there)
    assert after.returncode == 0
    assert after.stdout.splitlines() == [f"applied  {name}" for name in NAMES]


@pytest.mark.parametrize(
    ("command", "code"),
    [(("audit",), 2), (("release", "--yes"), 1), (("dump", "all.zip"), 1), (("migrate", "--status"), 1)],
)
def test_a_command_that_only_looks_makes_no_database(tmp_path: Path, command: tuple[str, ...], code: int) -> None:
    """For one, because DATA_DIR was misspelt."""
    ended = run(tmp_path, *command, DATA_DIR="mispelt")
    assert ended.returncode == code
    assert f"error: there is no database in {tmp_path}/mispelt/postgresql" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(tmp_path.iterdir()) == []


def test_audit(tmp_path: Path, dsn: str) -> None:
    there = {"DATABASE_URL": dsn, "SECRET_KEY": KEY}
    balanced = run(tmp_path, "audit", **there)
    assert balanced.returncode == 0, balanced.stderr
    assert balanced.stdout.splitlines() == [f"ok {check.name} 0" for check in CHECKS]
    with psycopg.connect(dsn) as connection:
        connection.execute(
            "INSERT INTO mailings (starts_at, ends_at, status, horizon, audience) "
            "SELECT now(), now() + interval '1 hour', 'running', 0, 5 FROM generate_series(1, 11)"
        )
    broken = run(tmp_path, "audit", **there)
    assert broken.returncode == 1, broken.stderr
    lines = broken.stdout.splitlines()
    assert len(lines) == len(CHECKS)
    assert lines[0] == "ok mailings_over 11"
    assert "BREACH audience 11 1 2 3 4 5 6 7 8 9 10 …" in lines
    assert [line.split()[1] for line in lines if not line.startswith("ok ")] == ["texts_kept", "audience"]


def test_a_copy_of_the_database_is_released(tmp_path: Path, dsn: str) -> None:
    # a database that was last used in another cluster, and has no mailing
    with psycopg.connect(dsn, autocommit=True) as database:
        database.execute("INSERT INTO installation (system_identifier, database_oid) VALUES (1, 1)")
    (tmp_path / ".env").write_text(f"DATABASE_URL={dsn}\nSECRET_KEY='{KEY}'\n")
    given = {"NOTIFIER_ENV_FILE": ""}
    asked = run(tmp_path, "release", **given)
    assert (asked.returncode, "nothing was released: say --yes" in asked.stderr) == (1, True), asked.stderr
    released = run(tmp_path, "release", "--yes", **given)
    assert released.returncode == 0, released.stderr
    assert "another PostgreSQL cluster" in released.stdout
    assert "open mailings: 0; messages that would be sent: 0" in released.stdout
    assert released.stdout.endswith("released: its replicas send\n")
    assert run(tmp_path, "release", **given).stdout == "nothing to release: this database is not held\n"
    other = run(tmp_path, "release", "--yes", **given, INSTANCE="a name\nin two lines")
    assert (other.returncode, "INSTANCE: is not a name" in other.stderr) == (2, True)


def test_a_database_is_dumped_and_loaded(tmp_path: Path, dsn: str, empty_dsn: str) -> None:
    given = {"DATABASE_URL": dsn, "SECRET_KEY": KEY}
    dumped = run(tmp_path, "dump", "all.zip", **given)
    assert (dumped.returncode, "tables are in all.zip" in dumped.stdout) == (0, True), dumped.stderr
    again = run(tmp_path, "dump", "all.zip", **given)
    assert (again.returncode, "all.zip is there already" in again.stderr) == (1, True)
    loaded = run(tmp_path, "load", "all.zip", **(given | {"DATABASE_URL": empty_dsn}))
    assert (loaded.returncode, "until you release it" in loaded.stdout) == (0, True), loaded.stderr


def test_an_audit_that_cannot_run(tmp_path: Path, empty_dsn: str, dsn: str) -> None:
    """The schema is missing, and: something is wrong with it, which is found half way."""
    unmigrated = run(tmp_path, "audit", DATABASE_URL=empty_dsn, SECRET_KEY=KEY)
    assert unmigrated.returncode == 2
    assert "server.py migrate" in unmigrated.stderr
    with psycopg.connect(dsn) as connection:
        connection.execute("ALTER TABLE batches RENAME TO elsewhere")
    failing = run(tmp_path, "audit", DATABASE_URL=dsn, SECRET_KEY=KEY)
    assert failing.returncode == 2
    assert failing.stdout.startswith("ok mailings_over 0\n")
    assert "the audit could not run" in failing.stderr
    for ended in (unmigrated, failing):
        assert "Traceback" not in ended.stderr


@pytest.fixture
def guest(empty_dsn: str) -> Iterator[str]:
    """The address of the empty database for a role that does not own it."""
    name = f"guest_{secrets.token_hex(4)}"
    parts = urlsplit(empty_dsn)
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
        yield parts._replace(netloc=f"{name}:x@{parts.netloc.rpartition('@')[2]}").geturl()
        connection.execute(f"DROP ROLE {name}")


@pytest.mark.parametrize("command", ["serve", "migrate"])
def test_a_role_that_may_not_make_tables_is_told_so(tmp_path: Path, guest: str, command: str) -> None:
    ended = run(tmp_path, command, DATABASE_URL=guest, SECRET_KEY=KEY)
    assert ended.returncode == 1
    (line,) = [each for each in ended.stderr.splitlines() if each.startswith("error:")]
    assert f"may not create tables in the database {urlsplit(guest).path[1:]}" in line
    assert "Traceback" not in ended.stderr


def test_what_the_database_says_of_a_migration_is_told(tmp_path: Path, empty_dsn: str) -> None:
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("CREATE TABLE clients ()")
    ended = run(tmp_path, "migrate", DATABASE_URL=empty_dsn, SECRET_KEY=KEY)
    assert ended.returncode == 1
    assert 'error: the database says: relation "clients" already exists' in ended.stderr
    assert "Traceback" not in ended.stderr
