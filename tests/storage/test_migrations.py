from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import psycopg
import pytest
import yoyo

from notifier.storage import embedded_place, migrations, readiness

MIGRATE = """
import sys
from pathlib import Path
from notifier.storage import migrations
print(migrations.migrate(sys.argv[1], Path(sys.argv[2])))
"""
CRASH_BEFORE_THE_MARK = """
import os
from yoyo.backends.base import DatabaseBackend
DatabaseBackend.mark_one = lambda *_, **__: os._exit(9)
"""
NAMES = [path.stem for path in sorted(migrations.MIGRATIONS.glob("*.sql")) if ".rollback" not in path.name]


def start(dsn: str, folder: Path = migrations.MIGRATIONS, prelude: str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", prelude + MIGRATE, dsn, str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def schema(dsn: str) -> str:
    """Return the whole schema as SQL, without yoyo's own tables."""
    without_yoyo = ["--exclude-table=_yoyo*", "--exclude-table=yoyo*"]
    command = [
        str(embedded_place.programs() / "pg_dump"),
        "--schema-only",
        "--restrict-key=same",
        *without_yoyo,
        dsn,
    ]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def tables(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as connection:
        return {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


def test_each_migration_goes_up_down_and_up_again_to_the_same_schema(empty_dsn: str) -> None:
    with migrations._backend(empty_dsn) as backend:
        for migration in backend.to_apply(yoyo.read_migrations(str(migrations.MIGRATIONS))):
            before = schema(empty_dsn)
            migrations._apply(backend, migration)
            after = schema(empty_dsn)
            assert after != before
            backend.rollback_one(migration)
            assert schema(empty_dsn) == before
            migrations._apply(backend, migration)
            assert schema(empty_dsn) == after


def test_migrating_again_does_nothing(empty_dsn: str) -> None:
    assert migrations.status(empty_dsn) == [(name, False) for name in NAMES]
    assert tables(empty_dsn) == set()  # asking changes nothing
    assert migrations.migrate(empty_dsn) == NAMES
    assert migrations.status(empty_dsn) == [(name, True) for name in NAMES]
    assert migrations.migrate(empty_dsn) == []


def test_of_five_replicas_starting_at_once_one_migrates(empty_dsn: str, tmp_path: Path) -> None:
    # Slow, so that they surely meet inside it.
    (tmp_path / "0001.slow.sql").write_text("CREATE TABLE one (id int); SELECT pg_sleep(1)")
    replicas = [start(empty_dsn, tmp_path) for _ in range(5)]
    said = [replica.communicate()[0].splitlines()[-1] for replica in replicas]
    assert [replica.returncode for replica in replicas] == [0] * 5
    assert sorted(said) == ["['0001.slow']", *["[]"] * 4]


def test_replica_killed_inside_a_migration_does_not_stop_the_next_start(empty_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "0001.slow.sql").write_text("CREATE TABLE one (id int); SELECT pg_sleep(2); CREATE TABLE two (id int)")
    replica = start(empty_dsn, tmp_path)
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        asleep = "SELECT FROM pg_stat_activity WHERE query LIKE '%pg_sleep(2)%' AND pid <> pg_backend_pid()"
        while connection.execute(asleep).fetchone() is None:
            assert replica.poll() is None
        replica.send_signal(signal.SIGKILL)
        replica.communicate()
        assert connection.execute("SELECT count(*) FROM yoyo_lock").fetchone() == (1,)
    assert migrations.migrate(empty_dsn, tmp_path) == ["0001.slow"]
    assert tables(empty_dsn) >= {"one", "two"}


def test_migration_and_its_mark_are_one_transaction(empty_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "0001.table.sql").write_text("CREATE TABLE one (id int)")
    replica = start(empty_dsn, tmp_path, prelude=CRASH_BEFORE_THE_MARK)
    replica.communicate()
    assert replica.returncode == 9
    assert "one" not in tables(empty_dsn)
    assert migrations.migrate(empty_dsn, tmp_path) == ["0001.table"]


def test_failing_migration_leaves_what_stood_before_it(empty_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "0001.good.sql").write_text("CREATE TABLE one (id int)")
    (tmp_path / "0002.bad.sql").write_text("-- depends: 0001.good\nCREATE TABLE two (id int); SELECT 1 / 0")
    with pytest.raises(psycopg.errors.DivisionByZero):
        migrations.migrate(empty_dsn, tmp_path)
    assert migrations.status(empty_dsn, tmp_path) == [("0001.good", True), ("0002.bad", False)]
    assert tables(empty_dsn) & {"one", "two"} == {"one"}
    (tmp_path / "0002.bad.sql").write_text("-- depends: 0001.good\nCREATE TABLE two (id int)")
    assert migrations.migrate(empty_dsn, tmp_path) == ["0002.bad"]


def test_migration_without_a_transaction(empty_dsn: str, tmp_path: Path) -> None:
    (tmp_path / "0001.table.sql").write_text("CREATE TABLE one (id int)")
    (tmp_path / "0002.index.sql").write_text(
        "-- transactional: false\n-- depends: 0001.table\nCREATE INDEX CONCURRENTLY one_id ON one (id)"
    )
    assert migrations.migrate(empty_dsn, tmp_path) == ["0001.table", "0002.index"]


def test_mailings_of_before_know_when_they_started(empty_dsn: str, tmp_path: Path) -> None:
    """Begun with messages: when these were made. Begun with nobody: its start. Not begun, or paused before: never."""
    older = [name for name in NAMES if name < "0007"]
    for name in older:
        shutil.copy(migrations.MIGRATIONS / f"{name}.sql", tmp_path)
    assert migrations.migrate(empty_dsn, tmp_path) == older
    with psycopg.connect(empty_dsn) as connection:
        connection.execute(
            """
            INSERT INTO mailings (starts_at, ends_at, status, horizon, created_at)
            SELECT '2026-03-01 09:00Z', '2026-03-02 09:00Z', status::mailing_status, horizon, created_at::timestamptz
            FROM (VALUES ('running', 5, '2026-02-01 00:00Z'), ('finished', 5, '2026-03-01 10:00Z'),
                         ('draft', NULL, '2026-02-01 00:00Z')) m (status, horizon, created_at)
            """
        )
        connection.execute(
            "INSERT INTO slices SELECT 1, n, n, '2026-03-01 09:30Z'::timestamptz + n * '1 min'::interval "
            "FROM generate_series(0, 2) n"
        )
    assert migrations.migrate(empty_dsn) == [name for name in NAMES if name >= "0007"]
    with psycopg.connect(empty_dsn) as connection:
        rows = connection.execute("SELECT started_at AT TIME ZONE 'UTC' FROM mailings ORDER BY id").fetchall()
    assert rows == [(datetime(2026, 3, 1, 9, 30),), (datetime(2026, 3, 1, 10),), (None,)]


def test_a_migration_that_waits_for_a_table_keeps_others_waiting_for_seconds_only(dsn: str, tmp_path: Path) -> None:
    # As beside a pg_dump: what is behind the migration in the queue for the table waits with it.
    (tmp_path / "9999.wide.sql").write_text("ALTER TABLE clients ADD wide int;")
    with psycopg.connect(dsn) as reader:
        reader.execute("SELECT FROM clients LIMIT 1")
        with pytest.raises(psycopg.errors.LockNotAvailable) as caught:
            migrations.migrate(dsn, tmp_path)
    assert isinstance(caught.value, readiness.AWAY_AT_START)  # so a start tries it again
    assert migrations.migrate(dsn, tmp_path) == ["9999.wide"]
    assert migrations.status(dsn, tmp_path) == [("9999.wide", True)]


@pytest.mark.parametrize("limit", ["statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"])
def test_a_migration_has_the_time_that_it_needs(dsn: str, tmp_path: Path, limit: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET {limit} = '50ms'")
    (tmp_path / "9999.slow.sql").write_text("SELECT pg_sleep(0.3);")
    assert migrations.migrate(dsn, tmp_path) == ["9999.slow"]
