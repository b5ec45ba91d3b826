"""A role or a database with limits and defaults of its own: the service works quietly, or says what it needs."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import suppress

import psycopg
import pytest

from chaos.databases import pgbouncer
from chaos.stage import Replica, Stage, on_stage, until
from tests.faults.conftest import skipped_where_lacking

LIMITS = {
    "idle_session_timeout": "200ms",
    "idle_in_transaction_session_timeout": "1s",
    "lock_timeout": "50ms",
    "statement_timeout": "100ms",
    "default_transaction_isolation": "serializable",
    "search_path": "notifier",
    "timezone": "Asia/Kolkata",
    "transaction_timeout": "30s",
}


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    with on_stage() as made:
        made.database.query("CREATE ROLE app LOGIN")
        made.database.query("CREATE DATABASE app OWNER app")
        made.database.query("CREATE DATABASE other OWNER app")
        yield made


def address(stage: Stage, name: str = "app") -> str:
    return f"postgresql://app@127.0.0.1:{stage.database.port}/{name}"


def change(stage: Stage, statement: str) -> None:
    with psycopg.connect(address(stage), autocommit=True) as connection:
        connection.execute(statement.encode())


def serve(stage: Stage, dsn: str, role: str = "all") -> Replica:
    return stage.begin_replica(dsn=dsn, database_migration_url=dsn, role=role)


def disturbed(replica: Replica) -> list[dict[str, object]]:
    """What it has warned of, or worse."""
    return [event for event in replica.events() if event["level"] not in ("debug", "info")]


def send(replica: Replica, clients: int = 30) -> None:
    """Have a mailing sent to new clients."""
    first = 79161000000 + replica.number * 10_000
    items = [{"phone": str(first + number), "tags": [f"of-{replica.number}"]} for number in range(clients)]
    assert replica.call("POST", "/api/v1/clients/batch", {"items": items}).status == 200
    body = {"text": "Hi", "ends_at": "2099-01-01T00:00:00Z", "filter": {"tags": [f"of-{replica.number}"]}}
    mailing = replica.call("POST", "/api/v1/mailings", body).body["id"]
    until(lambda: replica.call("GET", f"/api/v1/mailings/{mailing}").body["status"] == "finished")
    assert replica.call("GET", f"/api/v1/mailings/{mailing}/statistics").body["messages"]["sent"] == clients


def test_limits_and_defaults_of_a_role_disturb_nobody(stage: Stage) -> None:
    known = {row["name"] for row in stage.database.query("SELECT name FROM pg_settings")}
    for name, value in LIMITS.items():
        if name in known:
            stage.database.query(f"ALTER ROLE app SET {name} = '{value}'")
    try:
        replica = serve(stage, address(stage))
        until(lambda: not replica.alive)
        assert "no schema of the search_path (notifier) is there" in replica.tail()
        change(stage, "CREATE SCHEMA notifier")
        first, second = serve(stage, address(stage)), serve(stage, address(stage))
        until(lambda: first.listening() and second.listening())
        send(first)
        send(second)
        assert disturbed(first) == disturbed(second) == []
        first.stop()
        second.stop()
    finally:
        stage.database.query("ALTER ROLE app RESET ALL")
        change(stage, "DROP SCHEMA IF EXISTS notifier CASCADE")


def test_a_limit_of_connections_is_told_with_what_is_needed(stage: Stage) -> None:
    stage.database.query("ALTER ROLE app CONNECTION LIMIT 12")
    try:
        replica = serve(stage, address(stage))
        until(replica.listening)
        (warned,) = [event["event"] for event in disturbed(replica)]
        assert "the role app can have 12 connections here, and 1 replica may need 20" in str(warned)
    finally:
        stage.database.query("ALTER ROLE app CONNECTION LIMIT -1")
        replica.stop()


def test_a_role_that_may_only_read_is_told_so(stage: Stage) -> None:
    stage.database.query("ALTER ROLE app SET default_transaction_read_only = on")
    try:
        replica = serve(stage, address(stage, "other"))
        until(lambda: not replica.alive)
        assert replica.process.returncode == 1
        assert "the role app or the database other is read-only (default_transaction_read_only is on)" in replica.tail()
        assert "Traceback" not in replica.tail()
    finally:
        stage.database.query("ALTER ROLE app RESET default_transaction_read_only")


def test_isolation_of_a_role_disturbs_nobody_behind_a_pooler(stage: Stage) -> None:
    # Here the session is the pooler's: what cannot be set for it is warned of, and disturbs nobody for long.
    replica = serve(stage, address(stage))
    until(replica.listening)
    replica.stop()
    stage.database.query("ALTER DATABASE notifier SET default_transaction_isolation = 'serializable'")
    try:
        with (
            skipped_where_lacking(),
            pgbouncer(stage.folder, stage.database.port, settings=["pool_mode = transaction"]) as dsn,
        ):
            first, second = (stage.begin_replica(dsn=dsn) for _ in range(2))
            until(lambda: first.listening() and second.listening())
            send(first, 300)
            send(second, 300)
            for replica in (first, second):
                said = [str(event["event"]) for event in disturbed(replica)]
                assert any("SET default_transaction_isolation = ''read committed''" in each for each in said)
                assert "Traceback" not in replica.log.read_text()
                replica.kill()
    finally:
        stage.database.query("ALTER DATABASE notifier RESET default_transaction_isolation")


@pytest.mark.parametrize("role", ["worker", "all"])
def test_a_replica_whose_loops_fail_is_not_ready(stage: Stage, role: str) -> None:
    replica = serve(stage, address(stage), role=role)
    until(replica.listening)

    def status() -> int:
        with suppress(OSError, http.client.HTTPException):
            return replica.call("GET", "/readyz").status
        return 0

    until(lambda: status() == 200)
    broken = "replicas" if role == "all" else "batches"
    change(stage, f"ALTER TABLE {broken} RENAME TO hidden")
    try:
        until(lambda: status() == 503)
        assert "parts of the scheduler have failed for 10 s" in replica.call("GET", "/readyz").body["detail"]
    finally:
        change(stage, f"ALTER TABLE hidden RENAME TO {broken}")
    until(lambda: status() == 200)
    replica.stop()
