"""Databases that restart, cut off, fill up, refuse to write, hide behind a pooler or remember too much.

Rows 5, 6, 13, 14 and 15 of the fault matrix.
"""

from __future__ import annotations

import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psycopg

from chaos.proxy import Proxy
from chaos.stage import Replica, Stage, free_port, has, on_stage, server_user, until
from chaos.verdict import Figures, Lacking, Row, judge, timed, together, watching
from notifier.cluster.control import TRUSTED_AFTER

QUICK_RETRIES = {"policy.BASE": 0.1, "policy.CAP": 0.5}


def interrupted(stage: Stage) -> int:
    """How many messages somebody believed to have been left behind by a replica that died."""
    count: int = stage.database.value("SELECT count(*) FROM attempts WHERE outcome = 'interrupted'")
    return count


def unharmed(stage: Stage, figures: Figures, messages: int) -> None:
    """Everybody was sent to, nobody was declared dead, and every replica runs still."""
    assert figures.sent == messages, f"{figures.sent} of {messages} were sent: {figures}"
    assert interrupted(stage) == 0, f"{interrupted(stage)} messages were taken over though nobody died"
    assert all(replica.alive for replica in stage.replicas), "a replica ended"


def asked(stage: Stage, times: int) -> None:
    """Wait until the gateway has had so many requests."""
    until(lambda: stage.gateway.state()["requests"] >= times, progress=stage.gateway.state)


# ---- row 5: restarts, lost connections -------------------------------------------------------------------------------


def restarts(times: int = 10, between: int = 100) -> Figures:
    """The database is restarted again and again under load, as it should be and as a crash, by turns."""
    messages = between * times * 3
    with on_stage(gateway={"latency": 200}) as stage:
        first, _ = (stage.begin_replica(gateway_concurrency=20) for _ in range(2))
        stage.listening()
        stage.clients(messages)
        with watching(stage) as watched:
            mailing = stage.mailing(first)
            for time_ in range(times):
                asked(stage, between * (1 + time_))
                stage.database.restart(("fast", "immediate")[time_ % 2])
            stage.done(mailing)
        figures = judge(stage, watched)
        unharmed(stage, figures, messages)
        figures.notes.append(f"{times} restarts, {watched.unavailable} of {len(watched.latencies)} answers were 503")
        return figures


def terminated(seconds: float = 20.0, every: float = 0.1) -> Figures:
    """Backends are terminated at random, control connections too."""
    chance = random.Random(5)
    victims = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
    killed = 0
    with on_stage(gateway={"latency": 50}) as stage:
        first, _ = (stage.begin_replica(gateway_concurrency=10) for _ in range(2))
        stage.listening()
        messages = int(seconds * 300)
        stage.clients(messages)
        with watching(stage) as watched, psycopg.connect(stage.database.dsn, autocommit=True) as connection:
            mailing = stage.mailing(first)
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                pids = [pid for (pid,) in connection.execute(victims).fetchall()]
                if pids:
                    connection.execute("SELECT pg_terminate_backend(%s)", [chance.choice(pids)])
                    killed += 1
                time.sleep(every)
            stage.done(mailing)
        figures = judge(stage, watched)
        unharmed(stage, figures, messages)
        figures.notes.append(f"{killed} backends terminated")
        return figures


def without_control(seconds: float = 5.0, per_second: int = 200) -> Figures:
    """One replica cannot keep its control connection for longer than a moment, while another looks on."""
    its_own = (
        "SELECT pg_terminate_backend(l.pid) FROM pg_locks l "
        "WHERE l.locktype = 'advisory' AND l.objsubid = 2 AND l.objid = %s::bigint::oid"
    )
    with on_stage(gateway={"latency": 20_000 / per_second}) as stage:
        first, second = (stage.begin_replica(gateway_concurrency=10) for _ in range(2))
        stage.listening()
        held = "SELECT count(*) FILTER (WHERE session) = 2 FROM replicas"
        until(lambda: stage.database.value(held))
        watching_since = time.monotonic()
        messages = int((seconds + 1) * per_second)
        stage.clients(messages)
        time.sleep(max(0.0, TRUSTED_AFTER + 1 - (time.monotonic() - watching_since)))
        mailing = stage.mailing(first)
        until(lambda: stage.database.value(OWNS, second.id) > 0)
        cut = 0
        with psycopg.connect(stage.database.dsn, autocommit=True) as connection:
            deadline = time.monotonic() + seconds
            while time.monotonic() < deadline:
                cut += len(connection.execute(its_own, [second.id]).fetchall())
                time.sleep(0.02)
        stage.done(mailing)
        figures = judge(stage)
        unharmed(stage, figures, messages)
        figures.notes.append(f"{cut} control connections cut")
        return figures


# The record, the claim, whatever is committed, a planner's slice.
STATEMENTS = ("INSERT INTO attempts", "UPDATE batches SET owner", "COMMIT", "INSERT INTO messages")


def lost_in_commit(clients: int = 600, rounds: int = 2, matches: Sequence[str] = STATEMENTS) -> Figures:
    """The connection is lost inside a statement, before it was carried out or after: the books balance all the same."""
    with on_stage(gateway={"latency": 50}) as stage, Proxy(stage.database.dsn) as proxy:
        replica = stage.replica(dsn=proxy.dsn, gateway_concurrency=20)
        stage.clients(clients)
        faults = [(way, match) for match in matches for way in (proxy.lose_answer, proxy.drop_statement)]
        mailings = 0
        for _ in range(rounds):
            for way, match in faults:
                struck = proxy.lost + proxy.dropped + 1
                way(match)
                mailing = _created_once(stage, replica, f"{match} {mailings}")
                mailings += 1
                until(partial(_struck, proxy, struck))
                stage.done(mailing)
        for way in (proxy.lose_answer, proxy.drop_statement):
            way("COMMIT")
            _created_once(stage, replica, f"POST /mailings {way.__name__}")
            mailings += 1
        for mailing in [row["id"] for row in stage.database.query("SELECT id FROM mailings")]:
            stage.done(mailing)
        figures = judge(stage)
        unharmed(stage, figures, clients * mailings)
        figures.notes.append(f"{proxy.lost} answers lost, {proxy.dropped} statements lost")
        return figures


def _struck(proxy: Proxy, times: int) -> bool:
    return proxy.lost + proxy.dropped >= times


def _created_once(stage: Stage, replica: Replica, text: str) -> int:
    """Create a mailing as a careful caller does: again with the same key until there is an answer; its id."""
    body = {"text": text, "ends_at": "2099-01-01T00:00:00Z"}

    def created() -> int:
        reply = replica.call("POST", "/api/v1/mailings", body, headers={"Idempotency-Key": text.replace(" ", "-")})
        assert reply.status == 201 or (reply.status == 503 and "Retry-After" in reply.headers), reply
        return reply.status == 201 and int(reply.body["id"])

    mailing = until(created)
    assert stage.database.value("SELECT count(*) FROM mailing_texts WHERE text = %s", text) == 1, "created twice"
    return mailing


# ---- row 6: full, read-only ------------------------------------------------------------------------------------------


def read_only(seconds: float = 12.0, clients: int = 3_000) -> Figures:
    """The database refuses to write for a while, under load."""

    def read_only(stage: Stage, on: bool) -> None:
        stage.database.query(f"ALTER SYSTEM SET default_transaction_read_only = {'on' if on else 'off'}")
        stage.database.query("SELECT pg_reload_conf()")

    @contextmanager
    def fault(stage: Stage) -> Iterator[None]:
        read_only(stage, True)
        draft = {"text": "…", "ends_at": "2099-01-01T00:00:00Z", "draft": True}
        until(lambda: all(r.call("POST", "/api/v1/mailings", draft).status == 503 for r in stage.replicas))
        yield
        with psycopg.connect(stage.database.dsn, autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off")
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")

    with on_stage(gateway={"latency": 100}) as stage:
        return _unwritable(stage, fault, seconds, clients)


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A disk of its own, of that size."""
    if os.geteuid():
        raise Lacking("only root can mount a disk to be filled")
    place = Path(tempfile.mkdtemp(prefix="notifier-disk-"))
    try:
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0711", "tmpfs", str(place)],
            check=False,
            capture_output=True,
            text=True,
        )
        if mounted.returncode:
            raise Lacking(f"a disk to be filled cannot be mounted here: {mounted.stderr.strip()}")
        try:
            yield place
        finally:
            subprocess.run(["umount", "-l", str(place)], check=True)
    finally:
        place.rmdir()


def disk_full(seconds: float = 12.0, clients: int = 3_000) -> Figures:
    """The disk of the database is full for a while, under load; whether the server survives it is its own affair."""
    with small_disk(400) as place, on_stage(place=place, gateway={"latency": 100}) as stage:

        @contextmanager
        def fault(stage: Stage) -> Iterator[None]:
            with (place / "ballast").open("wb", buffering=0) as ballast:
                try:
                    while True:
                        ballast.write(bytes(1 << 16))
                except OSError:
                    pass
            yield
            (place / "ballast").unlink()
            if stage.database.process is not None and stage.database.process.poll() is not None:
                stage.database.start()

        return _unwritable(stage, fault, seconds, clients)


def _unwritable(
    stage: Stage, fault: Callable[[Stage], AbstractContextManager[None]], seconds: float, clients: int
) -> Figures:
    """Two replicas under load, and a database that cannot be written to for ``seconds``."""
    first, _ = (stage.begin_replica(gateway_concurrency=15, gateway_timeout=2) for _ in range(2))
    stage.listening()
    stage.clients(clients)
    with watching(stage) as watched:
        mailing = stage.mailing(first)
        asked(stage, clients // 10)
        with fault(stage):
            until(lambda: _nobody_can_write(stage))
            until(lambda: stage.gateway.state()["in_flight"] == 0)
            time.sleep(2)  # what is marked starts within a second, or not at all
            before = len(stage.gateway.entries())
            assert before < clients, "everything was sent before the fault came"
            time.sleep(seconds)
            more = len(stage.gateway.entries()) - before
            assert not more, f"{more} requests were started that could not be recorded"
        stage.gateway.script(latency=5)  # the rest may be quick
        stage.done(mailing)
    figures = judge(stage, watched)
    unharmed(stage, figures, clients)
    assert figures.doubled == 0, figures
    figures.notes.append(f"nothing was sent for {seconds:.0f} s, {watched.unavailable} answers were 503")
    return figures


def _nobody_can_write(stage: Stage) -> bool:
    """Whether everybody who has work in hand has failed to record it."""
    owners = {row["replica"] for row in stage.database.query("SELECT replica FROM batches WHERE owner IS NOT NULL")}
    failed = {
        replica.id
        for replica in stage.replicas
        for event in replica.events()
        if event["event"] == "the database is unavailable" and event["loop"] == "recorder"
    }
    return bool(failed) and owners <= failed


# ---- row 13: migrations ----------------------------------------------------------------------------------------------


def _emptied(stage: Stage) -> None:
    """Make the database as it was before its first migration."""
    stage.database.query("DROP SCHEMA public CASCADE; CREATE SCHEMA public")


def _migrated(stage: Stage) -> list[str]:
    """The migrations that the replicas say they applied."""
    events = (event for replica in stage.replicas for event in replica.events())
    return [event["migration"] for event in events if event["event"] == "migrated"]


def migrated_at_once(replicas: int = 5, clients: int = 500) -> Figures:
    """Replicas start on one empty database at the same moment: one migrates, all of them send."""
    with on_stage() as stage:
        _emptied(stage)
        for _ in range(replicas):
            stage.begin_replica()
        stage.listening()
        applied = _migrated(stage)
        assert len(applied) == len(set(applied)) > 0, f"applied: {applied}"
        return _works(stage, clients)


def killed_inside_a_migration(clients: int = 500) -> Figures:
    """kill -9 of a replica while its migration stands still half done: the next start succeeds."""
    with on_stage() as stage:
        _emptied(stage)
        stage.database.query(
            """
            CREATE FUNCTION hold() RETURNS event_trigger LANGUAGE plpgsql
                AS $$ BEGIN PERFORM pg_advisory_xact_lock_shared(42); END $$;
            CREATE EVENT TRIGGER hold ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION hold()
            """
        )
        waiting = "SELECT count(DISTINCT pid)::int FROM pg_locks WHERE NOT granted"
        with psycopg.connect(stage.database.dsn, autocommit=True) as connection:
            connection.execute("SELECT pg_advisory_lock(42)")
            # It is to wait until it is killed, and its backend until the successor is seen to wait for it.
            victim = stage.begin_replica(constants={"storage.migrations.LOCK_WITHIN": "1h"})
            until(lambda: stage.database.value(waiting) == 1)
            victim.kill()
            successor = stage.begin_replica()
            # The victim's backend does not know that nobody listens any more, and its transaction is open still.
            until(lambda: stage.database.value(waiting) == 2)
        until(successor.listening)
        stage.database.query("DROP EVENT TRIGGER hold")
        return _works(stage, clients)


def _works(stage: Stage, clients: int) -> Figures:
    stage.clients(clients)
    stage.done(stage.mailing(stage.living()[0]))
    figures = judge(stage)
    assert figures.sent == clients, figures
    return figures


# ---- row 14: PgBouncer -----------------------------------------------------------------------------------------------


# As docs/operations.md has it.
SESSION = "SET statement_timeout = 5000; SET idle_in_transaction_session_timeout = 3000; SET jit = off"


@contextmanager
def pgbouncer(folder: Path, server: int, *, database: str = "", settings: Sequence[str] = ()) -> Iterator[str]:
    """Yield the address of a PgBouncer in ``folder`` before the database `notifier` at the port ``server``.

    ``database`` and ``settings`` are added to its line in `[databases]` and to `[pgbouncer]`.
    """
    program = has("pgbouncer")
    if program is None:
        raise Lacking("there is no pgbouncer; apt-get install pgbouncer")
    port, ini = free_port(), folder / "pgbouncer.ini"
    lines = [
        "[databases]",
        f"notifier = host=127.0.0.1 port={server} user=notifier {database}",
        "[pgbouncer]",
        *("listen_addr = 127.0.0.1", f"listen_port = {port}", "unix_socket_dir =", "auth_type = any", *settings),
    ]
    ini.write_text("\n".join(lines) + "\n", "utf-8")
    log = folder / "pgbouncer.log"
    with log.open("wb") as file:
        process = subprocess.Popen([program, ini], stdout=file, stderr=file, **server_user())
    dsn = f"postgresql://notifier@127.0.0.1:{port}/notifier"

    def answers() -> bool:
        assert process.poll() is None, log.read_text()
        try:
            psycopg.connect(dsn).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        until(answers)
        yield dsn
    finally:
        process.kill()
        process.wait()


def pooled(
    mode: str = "transaction", clients: int = 3_000, constants: Mapping[str, Any] = MappingProxyType({})
) -> Figures:
    """Windows, retries, a pause and a kill -9 behind PgBouncer; in transaction mode no lock may speak for a replica."""
    # It renews its connections all the time.
    pooler = [f"pool_mode = {mode}", "default_pool_size = 40", "server_lifetime = 2", "server_idle_timeout = 1"]
    with (
        on_stage(gateway={"latency": 100}) as stage,
        pgbouncer(stage.folder, stage.database.port, database=f"connect_query='{SESSION}'", settings=pooler) as dsn,
    ):
        stage.gateway.script({"share": 0.1, "do": {"kind": "status", "status": 503}}, latency=100)
        # A tenth of the answers is 503, and ten in a row do come.
        constants = {**QUICK_RETRIES, "delivery.limits.TRIP_AFTER": 10**9, **constants}
        first, second = (
            stage.begin_replica(
                dsn=dsn,
                gateway_concurrency=15,
                gateway_timeout=2,
                constants=constants,
            )
            for _ in range(2)
        )
        stage.listening()
        for position, zone in enumerate(("Asia/Kolkata", "America/St_Johns", None)):
            stage.clients(clients // 3, first=1 + position * (clients // 3), timezone=zone)
        with watching(stage) as watched:
            now = stage.database.value("SELECT to_char(now(), 'HH24:MI')")
            before = stage.database.value("SELECT to_char(now() - interval '1 minute', 'HH24:MI')")
            # Open all day but for the last minute of each client's; the three zones differ by half hours.
            mailing = stage.mailing(first, window={"from": now, "to": before})
            asked(stage, clients // 6)
            assert first.call("POST", f"/api/v1/mailings/{mailing}/pause").status == 200
            until(lambda: stage.gateway.state()["in_flight"] == 0)
            assert second.call("POST", f"/api/v1/mailings/{mailing}/resume").status == 200
            asked(stage, 2 * (clients // 6))
            locked = stage.database.value("SELECT bool_or(session) FROM replicas")
            assert locked == (mode == "session"), f"behind {mode} mode a replica says of its lock: {locked}"
            assert interrupted(stage) == 0, "somebody was declared dead who was not"
            until(lambda: stage.database.value(OWNS, second.id) > 0)
            dead = second.id
            second.kill()
            taken = timed(lambda: stage.database.value(OWNS, dead) == 0)
            stage.done(mailing)
        figures = judge(stage, watched, concurrency=15, kills=[interrupted(stage)])
        assert figures.sent == clients, figures
        figures.notes.append(f"{mode} mode: taken over after {taken:.1f} s")
        return figures


OWNS = "SELECT count(*) FROM batches WHERE replica = %s"


# ---- row 15: an old snapshot -----------------------------------------------------------------------------------------


def old_snapshot(
    waiting: int = 5_000_000,
    clients: int = 100_000,
    rounds: int = 3,
    seconds: float = 10.0,
    old: float = 30.0,
    at_least: float = 0.95,
) -> Figures:
    """A transaction holds an old snapshot while millions wait; throughput with and without it by turns.

    Each is measured for ``seconds``; the snapshot is ``old`` seconds old by then.
    """
    with on_stage() as stage:
        stage.clients(clients)
        started = time.monotonic()
        _fill(stage, waiting, clients)
        filling = time.monotonic() - started
        stage.replica(gateway_concurrency=50)

        def per_second() -> float:
            before, started = _sent(stage), time.monotonic()
            time.sleep(seconds)
            return (_sent(stage) - before) / (time.monotonic() - started)

        without, held, pages = [], [], 0
        until(lambda: _sent(stage) > 0)
        for _ in range(rounds):
            stage.database.query("VACUUM batches")
            without.append(per_second())
            with psycopg.connect(stage.database.dsn) as connection:
                connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
                connection.execute("SELECT count(*) FROM batches WHERE owner IS NOT NULL")
                time.sleep(old)
                held.append(per_second())
                pages = max(pages, _pages_of_a_claim(stage))
        plain, with_it = statistics.median(without), statistics.median(held)
        note = (
            f"{waiting:,} waiting (filled in {filling:.0f} s): {plain:.0f}/s, and {with_it:.0f}/s with a snapshot "
            f"{old:.0f} s old: {with_it / plain:.2f}; a claim looks at {pages} pages"
        )
        assert with_it >= at_least * plain, note
        return Figures(runs=1, messages=waiting, sent=_sent(stage), notes=[note])


def _pages_of_a_claim(stage: Stage) -> int:
    """How many pages are looked at to find the batch that is due first."""
    plan = stage.database.value("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + CLAIMABLE)[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


CLAIMABLE = """
    SELECT picked.id FROM (SELECT id FROM mailings WHERE status = 'running' ORDER BY priority DESC, id) turn
    CROSS JOIN LATERAL (
        SELECT b.id FROM batches b WHERE b.mailing_id = turn.id AND b.owner IS NULL AND b.due_at <= now()
        ORDER BY b.due_at, b.id LIMIT 1
    ) picked LIMIT 1
"""


def _sent(stage: Stage) -> int:
    return int(stage.database.value("SELECT coalesce(sum(n), 0) FROM counters WHERE state = 'sent'"))


def _fill(stage: Stage, waiting: int, clients: int) -> None:
    """Mailings that are planned, to all clients each, until so many messages wait."""
    stage.database.query(
        f"""
        WITH made AS (
            INSERT INTO mailings (starts_at, ends_at, status, planned, horizon, audience)
            SELECT now(), '2099-01-01', 'running', true, 0, {clients} FROM generate_series(1, {waiting // clients})
            RETURNING id
        )
        INSERT INTO mailing_texts (mailing_id, version, text) SELECT id, 1, 'Hi' FROM made;
        INSERT INTO slices SELECT id, (id - 1) * {clients} + 1, id * {clients} FROM mailings;
        UPDATE message_ids SET next = {waiting} + 1;
        INSERT INTO messages SELECT (m.id - 1) * {clients} + c.id, m.id, c.id FROM mailings m CROSS JOIN clients c;
        INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state)
        SELECT m.id, now(), f, f + 499, 500, 1, 'waiting'
        FROM mailings m CROSS JOIN generate_series((m.id - 1) * {clients} + 1, m.id * {clients}, 500) f;
        ANALYZE
        """
    )


def _row5() -> Figures:
    return together([restarts(), terminated(), without_control(), lost_in_commit()])


ROWS = (
    Row(5, "database restarted, connections lost", _row5),
    # Longer than the time after which a batch without progress counts as stuck.
    Row(6, "database full, or read-only", lambda: together([read_only(), disk_full(40)])),
    Row(
        13,
        "migrated by five at once, killed inside",
        lambda: together([migrated_at_once(), killed_inside_a_migration()]),
    ),
    Row(14, "behind PgBouncer", lambda: together([pooled(), pooled("session")])),
    Row(15, "an old snapshot, millions waiting", old_snapshot),
)
