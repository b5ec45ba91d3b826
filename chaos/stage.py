"""Real parts to do harm to: a PostgreSQL, replicas and a simulated gateway, each in processes of their own.

Everything listens on 127.0.0.1 or a unix socket, lies in a folder of its own, and ends with its `with` block.
"""

from __future__ import annotations

import atexit
import http.client
import inspect
import json
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import psycopg
import psycopg.rows

from chaos.replica import CONSTANTS, DEATH
from notifier.simulator import Simulator
from notifier.storage import embedded, embedded_place, migrations

T = TypeVar("T")

TOKEN = "chaos-" + secrets.token_urlsafe(24)
ROOT = Path(__file__).resolve().parent.parent
ROOMY = 4 * 2**30  # bytes
PATIENCE = 60.0
"""Seconds after which what is waited for is taken not to come, if nothing has come nearer meanwhile."""


def scratch(prefix: str) -> Path:
    """Make a folder that every user may enter: in memory where there is much of it, since a cluster is a thousand files
    and making them took 0.8 s on a disk and 13 ms in memory. What is killed here are processes, never the machine.
    """
    memory = Path("/dev/shm")
    roomy = os.access(memory, os.W_OK) and shutil.disk_usage(memory).free >= ROOMY
    folder = Path(tempfile.mkdtemp(prefix=prefix, dir=memory if roomy else None))
    folder.chmod(0o711)
    return folder


def until(check: Callable[[], T], *, every: float = 0.02, progress: Callable[[], Any] = lambda: None) -> T:
    """The first true value of ``check``, asked again and again.

    AssertionError when PATIENCE passes in which ``progress`` returns nothing new: the whole may take as long as it
    takes where the machine has more to do.
    """
    seen, deadline = progress(), time.monotonic() + PATIENCE
    while not (value := check()):
        if time.monotonic() > deadline:
            before, seen, deadline = seen, progress(), time.monotonic() + PATIENCE
            if seen == before:
                raise AssertionError(f"not so, and nothing new for {PATIENCE:.0f} s: {source(check)}; {seen}")
        time.sleep(every)
    return value


def source(function: Callable[..., Any]) -> str:
    """What it asks, for whoever reads that it did not come."""
    return inspect.getsource(function).strip() if inspect.isfunction(function) else str(function)


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def server_user() -> dict[str, Any]:
    """What `Popen` needs so that PostgreSQL, which refuses root, does not run as root."""
    if os.geteuid():
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


class Postgres:
    """A durable PostgreSQL of its own on a TCP port and in ``folder``, made to be killed, restarted and cut off.

    ``environment`` goes to its processes (LD_PRELOAD), ``settings`` are its own.
    """

    def __init__(
        self, folder: Path, *, environment: Mapping[str, str] | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.log = folder / "server.log"
        self.port = free_port()
        self.environment = {"PATH": os.defpath, "LC_ALL": "C", **(environment or {})}
        self.settings = {"listen_addresses": "127.0.0.1", "unix_socket_directories": "", "max_connections": "200"}
        self.settings |= settings or {}
        self.process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        if user := server_user().get("user"):
            os.chown(folder, user, server_user()["group"])

    @property
    def dsn(self) -> str:
        """Where it answers."""
        return self._dsn("notifier")

    def _dsn(self, name: str) -> str:
        return f"postgresql://notifier@127.0.0.1:{self.port}/{name}"

    def _run(self, *command: str | Path, check: bool = True) -> None:
        with self.log.open("ab") as log:
            subprocess.run(command, check=check, stdout=log, stderr=log, cwd="/", env=self.environment,
                           **server_user())  # fmt: skip

    def make(self) -> None:
        """Make the cluster with a migrated database: a copy of one that each process makes once (a second of work)."""
        self._run("cp", "-a", _cluster(), self.data)
        self.start()

    def follow(self, primary: Postgres) -> None:
        """Start as the hot standby of ``primary``, which runs: with its own data if there is any, else with a copy."""
        if not self.data.exists():
            self._run(embedded_place.programs() / "pg_basebackup", "-D", self.data, "-d", primary.dsn, "-c", "fast")
        (self.data / "standby.signal").touch()
        self.settings["primary_conninfo"] = f"host=127.0.0.1 port={primary.port} user=notifier"
        self.start()

    def promote(self) -> None:
        """Make the primary of a standby."""
        self.query("SELECT pg_promote(true, 60)")

    def launch(self) -> None:
        """Start it without waiting."""
        options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        command = [str(embedded_place.programs() / "postgres"), "-D", str(self.data), "-p", str(self.port), *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd="/", env=self.environment,
                                            start_new_session=True, **server_user())  # fmt: skip

    def start(self) -> None:
        """Start it and wait until it answers."""
        self.launch()
        until(self.answers)

    def answers(self) -> bool:
        """Whether somebody can log in."""
        if self.process is not None and self.process.poll() is not None:
            raise AssertionError(f"PostgreSQL ended:\n{self.log.read_text(errors='replace')[-2000:]}")
        try:
            psycopg.connect(self._dsn("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def stop(self, mode: str = "fast") -> None:
        """End it: `smart`, `fast` or `immediate` (a crash)."""
        if self.process is None:
            return
        self.process.send_signal({"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}[mode])
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def restart(self, mode: str) -> None:
        """What `pg_ctl restart -m mode` does."""
        self.stop(mode)
        self.start()

    def query(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        """The rows of one statement of ours, committed; ``%s`` are the values."""
        with (
            psycopg.connect(self.dsn, autocommit=True, row_factory=psycopg.rows.dict_row) as connection,
            connection.cursor() as cursor,
        ):
            cursor.execute(sql.encode(), values or None)
            return cursor.fetchall() if cursor.description else []

    def value(self, sql: str, *values: Any) -> Any:
        """The first column of the first row."""
        return next(iter(self.query(sql, *values)[0].values()))

    def __enter__(self) -> Self:
        try:
            self.make()
        except BaseException:
            self.stop("immediate")
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop("immediate")


@cache
def _cluster() -> Path:
    """The folder of a cluster with a migrated database in it; it goes with this process."""
    folder = scratch("notifier-cluster-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    made = Postgres(folder / "postgres")
    made._run(
        embedded_place.programs() / "initdb", "-D", made.data, "-U", "notifier", "--auth=trust", "-N", *embedded.LOCALE
    )
    try:
        made.start()
        with psycopg.connect(made._dsn("postgres"), autocommit=True) as connection:
            connection.execute("CREATE DATABASE notifier")
        migrations.migrate(made.dsn)
    finally:
        made.stop()
    return made.data


@dataclass(frozen=True, slots=True)
class Reply:
    """An HTTP answer; ``body`` is parsed JSON, or text."""

    status: int
    body: Any
    headers: Mapping[str, str]
    seconds: float


class Replica:
    """One `server.py serve` in a process of its own; ``url`` is where it answers."""

    def __init__(self, number: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.number = number
        self.process = process
        self.log = log
        self.url = ""

    @property
    def alive(self) -> bool:
        """Whether the process runs (or is stopped by SIGSTOP)."""
        return self.process.poll() is None

    def events(self) -> Iterator[dict[str, Any]]:
        """What it has logged so far."""
        for line in self.log.read_text(errors="replace").splitlines():
            with suppress(ValueError):
                yield json.loads(line)

    @property
    def id(self) -> int:
        """Its number in the table `replicas`, for this start."""
        return int(next(event["replica"] for event in self.events() if event["event"] == "the scheduler runs"))

    def listening(self) -> bool:
        """Whether it has said where it listens; AssertionError when it has ended instead."""
        if not self.alive:
            raise AssertionError(f"replica {self.number} ended with {self.process.returncode}:\n{self.tail()}")
        for event in self.events():
            if event["event"] == "listening":
                self.url = event["url"]
        return bool(self.url)

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        timeout: float = 30.0,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """One call of the API; raises OSError or HTTPException when there is no answer."""
        return call(self.url, method, path, body, timeout=timeout, headers=headers)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()
        self.process.wait()

    def pause(self) -> None:
        """SIGSTOP: it stands still with everything in its hands."""
        self.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self.process.send_signal(signal.SIGCONT)

    def terminate(self) -> None:
        """SIGTERM, without waiting."""
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> int:
        """SIGTERM and wait; the exit code."""
        if self.alive:
            self.resume()
            self.terminate()
        return self.ended()

    def ended(self) -> int:
        """Wait until it has ended by itself; the exit code."""
        until(lambda: not self.alive, progress=self.tail)
        return int(self.process.returncode)


def call(
    url: str,
    method: str,
    path: str,
    body: Any = None,
    *,
    timeout: float = 30.0,
    headers: Mapping[str, str] | None = None,
) -> Reply:
    """One call of a replica's API, or of its `/readyz` and the like, with the token that may do everything."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=timeout)
    started = time.monotonic()
    try:
        given = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"} | dict(headers or {})
        connection.request(method, path, None if body is None else json.dumps(body), given)
        answer = connection.getresponse()
        text = answer.read().decode()
        seconds = time.monotonic() - started
        parsed = json.loads(text) if "json" in (answer.headers.get_content_type() or "") and text else text
        return Reply(answer.status, parsed, dict(answer.headers), seconds)
    finally:
        connection.close()


class Stage:
    """A database, a gateway and the replicas on them; `on_stage` makes one."""

    def __init__(self, folder: Path, database: Postgres, gateway: Simulator) -> None:
        self.folder = folder
        self.database = database
        self.gateway = gateway
        self.replicas: list[Replica] = []
        self.keep = False  # the folder stays, for whoever wants to know what happened
        self._started = 0

    def begin_replica(
        self,
        *,
        dsn: str | None = None,
        constants: Mapping[str, Any] | None = None,
        death: str | None = None,
        environment: Mapping[str, str] | None = None,
        before: Sequence[str] = (),
        **settings: str | int | float,
    ) -> Replica:
        """Start one more without waiting; ``settings`` by their names in lower case (``gateway_concurrency=50``).

        ``before`` are words before the command: a program that changes something of the process and then runs it.
        """
        self._started += 1
        values: dict[str, Any] = {
            "database_url": dsn or self.database.dsn,
            "database_migration_url": self.database.dsn,
            "data_dir": self.folder / "data",
            "port": 0,
            "gateway_url": self.gateway.url,
            "gateway_token": "any",
            "bootstrap_token": TOKEN,
            "secret_key": TOKEN,
            "log_format": "json",
            "drain_delay": 0,
        }
        variables = {name.upper(): str(value) for name, value in (values | settings).items()}
        variables |= {"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        variables |= {"NOTIFIER_ENV_FILE": os.devnull}
        variables |= {CONSTANTS: json.dumps(dict(constants or {}))} | dict(environment or {})
        if death:
            variables[DEATH] = death
        log = self.folder / f"replica-{self._started}.log"
        with log.open("wb") as file:
            process = subprocess.Popen([*before, sys.executable, "-m", "chaos.replica", "serve"], env=variables,
                                       cwd=self.folder, stdout=file, stderr=file, start_new_session=True)  # fmt: skip
        replica = Replica(self._started, process, log)
        self.replicas.append(replica)
        return replica

    def replica(self, **given: Any) -> Replica:
        """Start one more (see `begin_replica`) and wait until it listens."""
        replica = self.begin_replica(**given)
        until(replica.listening, progress=replica.tail)
        return replica

    def listening(self) -> None:
        """Wait until all that run listen."""
        for replica in self.living():
            until(replica.listening, progress=replica.tail)

    def living(self) -> list[Replica]:
        """Those that run."""
        return [replica for replica in self.replicas if replica.alive]

    def clients(self, count: int, *, first: int = 1, timezone: str | None = None, tag: str = "all") -> None:
        """Add so many clients, with phones from 7900000000 + ``first`` on."""
        self.database.query(
            "INSERT INTO clients (phone, operator_code, tags, timezone) "
            "SELECT 79000000000 + i, '900', ARRAY[%s], %s FROM generate_series(%s::bigint, %s::bigint) i",
            tag,
            timezone,
            first,
            first + count - 1,
        )

    def mailing(self, replica: Replica, **fields: Any) -> int:
        """Create a mailing over the API, to everybody for a day unless ``fields`` say otherwise; its id."""
        body = {"text": "Здравствуйте!", "ends_at": "2099-01-01T00:00:00Z"} | fields
        reply = replica.call("POST", "/api/v1/mailings", body)
        assert reply.status == 201, reply
        return int(reply.body["id"])

    def numbers(self, mailing: int) -> dict[str, int]:
        """The statistics of a mailing without the zeros, from any replica that answers."""
        for replica in self.living():
            with suppress(OSError, http.client.HTTPException):
                reply = replica.call("GET", f"/api/v1/mailings/{mailing}/statistics")
                if reply.status == 200:
                    counts: dict[str, int] = reply.body["messages"]
                    assert sum(counts.values()) == reply.body["audience"], reply.body
                    assert min(counts.values()) >= 0, reply.body
                    return {status: n for status, n in counts.items() if n}
        return {}

    def finished(self, mailing: int) -> bool:
        """Whether the mailing is finished, as the database has it; False while that is away."""
        try:
            return bool(self.database.value("SELECT status = 'finished' FROM mailings WHERE id = %s", mailing))
        except psycopg.OperationalError:
            return False

    def done(self, mailing: int) -> None:
        """Wait until the mailing is finished."""
        try:
            until(lambda: self.finished(mailing), every=0.1, progress=lambda: self.numbers(mailing))
        except AssertionError as error:
            logs = "\n".join(replica.tail() for replica in self.replicas)
            raise AssertionError(f"{error}\n{logs}") from None


@contextmanager
def on_stage(
    *, place: Path | None = None, gateway: Mapping[str, Any] | None = None, **postgres: Any
) -> Iterator[Stage]:
    """Yield a stage with a database that is migrated and a gateway that runs, and no replica yet.

    ``place`` holds the database where it shall not lie in the temporary folder; ``gateway`` are the options of the
    simulated gateway, ``postgres`` those of `Postgres`.
    """
    folder = scratch("notifier-chaos-")
    stage: Stage | None = None
    try:
        with ExitStack() as stack:
            database = stack.enter_context(Postgres((place or folder) / "postgres", **postgres))
            simulator = stack.enter_context(Simulator(ledger=folder / "ledger.jsonl", **(gateway or {})))
            stage = Stage(folder, database, simulator)
            try:
                yield stage
            finally:
                for replica in stage.living():
                    replica.kill()
    finally:
        if stage is None or not stage.keep:
            shutil.rmtree(folder, ignore_errors=True)


def has(program: str) -> str | None:
    """Where a program of another package is, also where only root's PATH leads."""
    return shutil.which(program, path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin")))
