"""A database that version 0.1.0 left in the middle of two mailings is upgraded, and its mailings finish."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psycopg
import pytest

from notifier.errors import NotifierError
from notifier.models import Status
from notifier.simulator import Simulator
from notifier.storage import audit, mailings, migrations, replicas, statistics
from notifier.storage.database import create_pool
from tests.conftest import poll_until
from tests.delivery.conftest import World

OLD = Path(__file__).with_name("data") / "version-0.1.0.sql"


@pytest.fixture
def old_dsn(empty_dsn: str) -> str:
    """The address of a database with the schema and the data of version 0.1.0."""
    with psycopg.connect(empty_dsn) as connection:
        connection.execute(OLD.read_text())
    return empty_dsn


@contextmanager
def beating(dsn: str) -> Iterator[None]:
    """Raise the counter of the old replica as if it ran."""
    ended = threading.Event()

    def beat() -> None:
        with psycopg.connect(dsn, autocommit=True) as connection:
            while not ended.wait(0.1):
                connection.execute("UPDATE replicas SET beat = beat + 1")

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextmanager
def locked(dsn: str) -> Iterator[None]:
    """Hold the lock of the old replica as one does that was stopped: its heart does not beat."""
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SELECT pg_advisory_lock(%s, id) FROM replicas", [replicas.LOCKS])
        yield


@pytest.mark.parametrize(
    ("alive", "isolation"), [(beating, "read committed"), (beating, "repeatable read"), (locked, "read committed")]
)
def test_while_a_replica_of_the_older_version_runs_its_columns_keep_their_names(
    old_dsn: str, alive: Callable[[str], AbstractContextManager[None]], isolation: str
) -> None:
    """Whatever isolation the role has: under `repeatable read` two looks at a counter would see the same."""
    with psycopg.connect(old_dsn, autocommit=True) as connection:
        name = connection.info.dbname
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")
    with alive(old_dsn), pytest.raises(NotifierError, match=r"replica-of-0\.1\.0:1.*stop"):
        migrations.migrate(old_dsn)
    with psycopg.connect(old_dsn) as connection:
        connection.execute("SELECT standing, mark, late FROM batches")
        connection.execute("SELECT nextval('claims')")


async def test_mailings_that_version_0_1_0_was_killed_in_are_finished(old_dsn: str, simulator: Simulator) -> None:
    assert "0009.words" in migrations.migrate(old_dsn)
    with pytest.raises(psycopg.errors.UndefinedTable), psycopg.connect(old_dsn) as connection:
        connection.execute("SELECT nextval('claims')")  # so that an old replica that is started now claims nothing
    db = await create_pool(old_dsn, size=10, application_name="test")
    world = World(db, old_dsn, simulator)
    await world.replica()

    async def finished() -> bool:
        return [(await mailings.get(db, n)).status for n in (1, 2, 3)] == ["finished", "finished", "scheduled"]

    async def numbers(mailing_id: int) -> dict[Status, int]:
        return {s: n for s, n in (await statistics.of_mailing(db, mailing_id)).messages.items() if n}

    await poll_until(finished, progress=lambda: numbers(2))
    assert await numbers(1) == {Status.SENT: 130, Status.FAILED: 4}
    assert await numbers(2) == {Status.SENT: 400}
    assert [str(finding) async for finding in audit.run(db) if finding.breach] == []
    interrupted = await db.fetchval("SELECT count(*) FROM attempts WHERE outcome = 'interrupted'")
    assert interrupted == 202 - 141 + 3  # of the first mailing 3 were under way
    await world.stop(world.schedulers[0])
    for gateway in world.gateways:
        await gateway.close()
    await db.close()
