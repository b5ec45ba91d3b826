"""One real PostgreSQL for a whole run, a fresh database for each test, an event loop for each async test."""

from __future__ import annotations

import asyncio
import hashlib
import inspect
import os
import secrets
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import hypothesis
import psycopg
import pytest
from tornado.ioloop import IOLoop

from chaos.stage import PATIENCE, Postgres, scratch, source
from notifier.settings import OWN_PREFIXES, SETTINGS
from notifier.storage import database, migrations
from notifier.storage.embedded import running

TESTS = Path(__file__).parent
PLACE = "NOTIFIER_TEST_PLACE"
TEST_DATABASE_URL = "TEST_DATABASE_URL"
ASYNC_TEST_TIMEOUT = 280.0
"""Seconds; a little less than pytest-timeout's, so that what hangs can still tidy up."""


def forget_settings() -> None:
    """Drop from the environment whatever of the shell's would reach what is tested: only TEST_DATABASE_URL counts.

    Settings of Notifier, libpq's own variables, proxies, and what makes a terminal's colours.
    """
    ours = {name for setting in SETTINGS for name in (setting.name, f"{setting.name}_FILE")}
    others = {"FORCE_COLOR", "NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE"}
    for name in list(os.environ):
        if name in ours | others or name.startswith((*OWN_PREFIXES, "PG")) or name.lower().endswith("_proxy"):
            del os.environ[name]


# How long an example takes says more of the machine than of the code.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")
os.environ["NOTIFIER_ENV_FILE"] = os.devnull  # no .env of whoever runs the tests
forget_settings()  # before any module of tests is imported


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell's job in the background; children inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.option.async_test_timeout = ASYNC_TEST_TIMEOUT
    if not hasattr(config, "workerinput"):  # the workers of pytest-xdist inherit it
        os.environ[PLACE] = str(scratch("notifier-test-"))


def pytest_unconfigure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        # A worker that was killed leaves the server running; that ends itself when its folder is gone.
        shutil.rmtree(os.environ.pop(PLACE), ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.add_marker("gen_test")
        # What starts a database server or whole replicas of its own is not to share the machine with other tests.
        if item.path.parent == TESTS / "faults" or "place" in getattr(item, "fixturenames", ()):
            item.add_marker("alone")
        # Only of the engine and its tables coverage is judged; to trace all the others' tests took 70 % more time.
        if not {"delivery", "storage"}.intersection(item.path.relative_to(TESTS).parts):
            item.add_marker("no_cover")


async def poll_until(check: Callable[[], Any], *, progress: Callable[[], Any] = lambda: None) -> Any:
    """Return the first true value of ``check``, plain or async, asked each 10 ms.

    AssertionError when PATIENCE passes in which ``progress``, plain or async, returns nothing new: the whole may take
    as long as it takes where the machine has more to do.
    """
    seen, deadline = await _value(progress), time.monotonic() + PATIENCE
    while not (value := await _value(check)):
        if time.monotonic() > deadline:
            before, seen, deadline = seen, await _value(progress), time.monotonic() + PATIENCE
            if seen == before:
                raise AssertionError(f"not so, and nothing new for {PATIENCE:.0f} s: {source(check)}; {seen}")
        await asyncio.sleep(0.01)
    return value


async def _value(function: Callable[[], Any]) -> Any:
    value = function()
    return await value if inspect.isawaitable(value) else value


def with_database(dsn: str, name: str) -> str:
    """Return ``dsn`` for another database of the same server."""
    return urlsplit(dsn)._replace(path=f"/{name}").geturl()


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder of this test's own for an embedded server; whoever asks for it is run ``alone``."""
    folder = scratch("notifier-test-")
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The DSN of the server all workers share: ``TEST_DATABASE_URL``, or an embedded one not made to last."""
    if dsn := os.environ.get(TEST_DATABASE_URL):
        yield dsn
    else:
        with running(Path(os.environ[PLACE]), fast=True) as dsn:
            yield dsn


@pytest.fixture(scope="session")
def template(server: str) -> str:
    """The name of a migrated database, made by whoever comes first and named by what the migrations say."""
    texts = b"".join(path.read_bytes() for path in sorted(migrations.MIGRATIONS.glob("*.sql")))
    name = f"notifier_template_{hashlib.sha256(texts).hexdigest()[:16]}"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute("SELECT pg_advisory_lock(1)")
        if admin.execute("SELECT FROM pg_database WHERE datname = %s", (name,)).fetchone() is None:
            admin.execute(f"DROP DATABASE IF EXISTS {name}_new")
            admin.execute(f"CREATE DATABASE {name}_new")
            migrations.migrate(with_database(server, f"{name}_new"))
            admin.execute(f"ALTER DATABASE {name}_new RENAME TO {name}")
    return name


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL at a TCP port, with a migrated database that the tests of poolers and log-ins share."""
    folder = scratch("notifier-test-")
    try:
        with Postgres(folder) as server:
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def empty_dsn(server: str) -> Iterator[str]:
    """The DSN of a database with nothing in it."""
    yield from _fresh(server, "template0")


@pytest.fixture
def dsn(server: str, template: str) -> Iterator[str]:
    """The DSN of a migrated database of this test's own."""
    yield from _fresh(server, template)


def _fresh(server: str, template: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(server, autocommit=True) as admin:
        # Measured in memory: 11 ms to make and 4 ms to drop; with WAL_LOG 55 and 4. On a disk 97 and 7.
        admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY FILE_COPY")
    yield with_database(server, name)
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def io_loop() -> Iterator[IOLoop]:
    """A loop of this test's own; what still runs on it at the end is cancelled."""
    io_loop = IOLoop(make_current=False)
    loop = io_loop.asyncio_loop
    asyncio.set_event_loop(loop)
    yield io_loop
    tasks = asyncio.all_tasks(loop)
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.run_until_complete(loop.shutdown_default_executor())
    asyncio.set_event_loop(None)
    io_loop.close(all_fds=True)


@pytest.fixture
def db(io_loop: IOLoop, dsn: str) -> Iterator[database.Pool]:
    """A pool on this test's own database."""
    pool: database.Pool = io_loop.run_sync(lambda: database.create_pool(dsn, size=10, application_name="test"))
    yield pool
    try:
        io_loop.run_sync(pool.close, timeout=PATIENCE)
    finally:
        pool.terminate()
