"""The storm: three replicas under load, and every second or so something breaks, all of it drawn from a seed.

`plan.py` draws what happens and when, so a seed replays it; `Storm` does it, and notes what the oracle must know. A
trigger in the run's own database keeps every state that a mailing ever had, in the order of the commits: so an edit
whose answer was lost is known too.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import secrets
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg

from chaos import oracle
from chaos.plan import LONGEST_PAUSE, QUIET, REPLICAS, Step, Stretch, plan
from chaos.proxy import Proxy
from chaos.stage import ROOT, Replica, Reply, Stage, on_stage, until
from chaos.verdict import WATCH_EVERY, Figures, Row, Watched, judge
from notifier.cluster.control import TRUSTED_AFTER
from notifier.models import Window
from notifier.storage.replicas import LOCKS

# Ten minutes hold few waits of five: what is only a waiting time is shorter here. What judges others (heartbeats, the
# freshness of a record, when a batch is stuck) stays as it is.
CONSTANTS: Mapping[str, Any] = {
    "policy.BASE": 0.5,  # so that a message has its tries within a minute
    "policy.CAP": 4.0,
    "delivery.sender.AFTER_BUG": 2.0,
    "delivery.chores.PURGE_EVERY": 3.0,  # deleted mailings go while the storm lasts
    "delivery.chores.PURGE_REST": 0.05,
    "storage.mailings.KEEP_DELETED": 2.0,
    "delivery.limits.PROBE_START": 1.0,  # a probe is lost with its replica
    "storage.gateways.OPEN_SECONDS": 1,  # the breaker opens and closes many times
    "storage.gateways.OPEN_CAP": 2,
    "storage.gateways.THROTTLE_CAP": 2,
}
CONCURRENCY, TIMEOUT, GRACE = 40, 2, 5
TAKE_OVER = 2.0
"""Seconds after a kill in which its work must have gone to another."""
CALM = 240.0
"""Seconds in which everything must be over after the last fault."""

GROUPS = {"few": 200, "steady": 1_500, "zones": 1_000, "crowd": 3_000}
"""Clients by tag; those of the crowd come and go."""
ZONES = (None, "Europe/Moscow", "Asia/Kolkata", "America/New_York", "Asia/Vladivostok")

DONE = (200, 201, 202, 204)
REFUSED = (404, 409, 412)  # what somebody who comes second is told


# ---- what the database remembers -------------------------------------------------------------------------------------

REMEMBER = """
CREATE SCHEMA chaos;
CREATE TABLE chaos.history (
    number bigint GENERATED ALWAYS AS IDENTITY, at timestamptz, mailing_id bigint, version int, status text,
    starts_at timestamptz, ends_at timestamptz, window_from time, window_to time, text_version int
);
CREATE TABLE chaos.texts (mailing_id bigint, version int, text text);
CREATE FUNCTION chaos.note_state() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos.history
        (at, mailing_id, version, status, starts_at, ends_at, window_from, window_to, text_version)
    SELECT clock_timestamp(), NEW.id, NEW.version, NEW.status, NEW.starts_at, NEW.ends_at, NEW.window_from,
        NEW.window_to, NEW.text_version;
    RETURN NULL;
END $$;
CREATE FUNCTION chaos.note_text() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    INSERT INTO chaos.texts VALUES (NEW.mailing_id, NEW.version, NEW.text);
    RETURN NULL;
END $$;
CREATE TRIGGER note_new AFTER INSERT ON mailings FOR EACH ROW EXECUTE FUNCTION chaos.note_state();
CREATE TRIGGER note_change AFTER UPDATE ON mailings FOR EACH ROW
    WHEN (OLD.version <> NEW.version OR OLD.status <> NEW.status) EXECUTE FUNCTION chaos.note_state();
CREATE TRIGGER note_text AFTER INSERT ON mailing_texts FOR EACH ROW EXECUTE FUNCTION chaos.note_text();
"""

RUNNING = ("scheduled", "running")


def told(
    rows: Iterable[Mapping[str, Any]], answers: Mapping[tuple[int, int], datetime]
) -> tuple[dict[int, list[oracle.Version]], list[oracle.Stop]]:
    """Versions and stops of all mailings, for the oracle.

    ``rows`` of `chaos.history` with their ``text``, in order; ``answers`` says when (mailing, version) was answered. A
    version that was not answered itself stood at the latest when a later one was answered.
    """
    by_mailing: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_mailing[row["mailing_id"]].append(row)
    versions: dict[int, list[oracle.Version]] = {}
    stops = []
    for mailing_id, states in by_mailing.items():
        stood: datetime | None = None
        since: list[datetime | None] = []
        for row in reversed(states):
            answered = answers.get((mailing_id, row["version"]))
            stood = min(filter(None, (stood, answered)), default=None)
            since.insert(0, stood)
        versions[mailing_id] = [
            oracle.Version(
                row["at"],
                answered,
                row["starts_at"],
                row["ends_at"],
                Window(row["window_from"], row["window_to"]) if row["window_from"] is not None else None,
                row["text"],
            )
            for row, answered in zip(states, since, strict=True)
        ]
        for position, (row, answered) in enumerate(zip(states, since, strict=True)):
            if row["status"] in ("paused", "cancelled") and answered is not None:
                again = (later["at"] for later in states[position + 1 :] if later["status"] in RUNNING)
                stops.append(oracle.Stop(mailing_id, answered, next(again, None)))
    return versions, stops


# ---- the run ---------------------------------------------------------------------------------------------------------


class Slot:
    """A place for a replica, behind a proxy of its own."""

    def __init__(self, number: int, proxy: Proxy) -> None:
        self.number = number
        self.proxy = proxy
        self.lock = threading.Lock()  # held while the replica is exchanged
        self.replica: Replica | None = None

    def up(self) -> Replica | None:
        """The replica if it answers."""
        replica = self.replica
        with suppress(AssertionError):
            if replica is not None and replica.alive and (replica.url or replica.listening()):
                return replica
        return None


@dataclass
class Notes:
    """What was done and seen."""

    answers: dict[tuple[int, int], datetime] = field(default_factory=dict)
    """When a version of a mailing was answered with 2xx."""
    rates: list[tuple[datetime, float]] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    """Messages that an operator wanted sent again."""
    kills: int = 0
    in_doubt: list[int] = field(default_factory=list)
    restarts: int = 0
    take_overs: list[float] = field(default_factory=list)
    untimed: list[str] = field(default_factory=list)
    """Why there was no take-over to time in a quiet stretch."""
    latencies: list[float] = field(default_factory=list)
    phones: dict[int, int] = field(default_factory=dict)
    """Clients who were added, by phone."""
    erasing: set[int] = field(default_factory=set)
    erased: set[int] = field(default_factory=set)
    breaches: list[str] = field(default_factory=list)


class Storm:
    """Does what the plan says to the stage; `run` returns what was broken."""

    def __init__(self, stage: Stage, slots: list[Slot], *, backlog: float, say: Callable[[str], None]) -> None:
        self.stage = stage
        self.slots = slots
        self.enough = backlog  # messages to be sent, under which a large mailing is added
        self.say = say
        self.notes = Notes()
        self.began = time.monotonic()
        self.pool = ThreadPoolExecutor(24, "storm")
        self.under_way: list[Future[None]] = []
        self.gone: list[Replica] = []  # told to stop, to be gone in time
        self.database = threading.Lock()
        self.gateway_lock = threading.Lock()
        self.rate_lock = threading.Lock()
        self.harm = 0  # faults in force under which the API may be slow
        self.harmed = 0.0  # monotonic; when the last of them ended
        self.harm_lock = threading.Lock()
        self.over = threading.Event()
        self.spoken = 0.0

    def run(self, stretches: list[Stretch]) -> None:
        """The whole plan, then the calm."""
        watcher = threading.Thread(target=self._watch, name="watching")
        watcher.start()
        try:
            for slot in self.slots:
                self._begin(slot)
            until(self._all_up)
            for stretch in stretches:
                self._storm(stretch)
                self._still()
                if stretch.quiet:
                    self._quiet()
            self._calm()
        finally:
            self.over.set()
            watcher.join()
            self.pool.shutdown()

    def _storm(self, stretch: Stretch) -> None:
        began = time.monotonic()
        for step in stretch.steps:
            self._wait(began + step.at)
            self.under_way.append(self.pool.submit(self._do, step))
        self._wait(began + stretch.seconds)

    def _wait(self, until_: float) -> None:
        while (left := until_ - time.monotonic()) > 0:
            self._tend()
            time.sleep(min(left, 0.2))

    def _do(self, step: Step) -> None:
        try:
            # What has to ask the database first is left out while that is away.
            with suppress(psycopg.Error):
                getattr(self, step.kind)(**step.given)
        except Exception:
            self._breach(f"the storm itself failed at {step}: {traceback.format_exc()}")

    def _breach(self, text: str) -> None:
        self.notes.breaches.append(text)
        self.say(f"BREACH {text}")

    def _tend(self) -> None:
        """Say how it goes, and start who ended by itself."""
        for slot in self.slots:
            if slot.lock.acquire(blocking=False):  # else it is being exchanged
                try:
                    replica = slot.replica
                    if replica is not None and not replica.alive:
                        code = replica.process.returncode
                        self._breach(f"replica {replica.number} ended by itself with {code}: {replica.tail()}")
                        self._begin(slot)
                finally:
                    slot.lock.release()
        if time.monotonic() - self.spoken >= 10:
            self.spoken = time.monotonic()
            self.say(self._progress())

    def _progress(self) -> str:
        worst = max(self.notes.in_doubt, default=0)
        text = f"{self.spoken - self.began:4.0f} s"
        with suppress(psycopg.Error):
            sent = self._ask("SELECT coalesce(sum(n), 0)::int AS n FROM counters WHERE state = 'sent'")[0]["n"]
            text += f"  {sent} sent, {self._backlog()} to go,"
        return (
            f"{text}  {self.notes.kills} kills, {self.notes.restarts} restarts, at most {worst} in doubt, take-overs "
            f"{', '.join(f'{seconds:.2f}' for seconds in self.notes.take_overs[-3:]) or 'none'}"
        )

    def _all_up(self) -> bool:
        return all(slot.up() for slot in self.slots)

    def _ask(self, sql: str, *values: Any) -> list[dict[str, Any]]:
        return self.stage.database.query(sql, *values)

    def _backlog(self) -> int:
        """Messages that nobody need wait with."""
        sql = (
            "SELECT coalesce(sum(b.size - b.done), 0)::int AS n FROM batches b JOIN mailings m ON m.id = b.mailing_id "
            "WHERE m.status = 'running' AND b.due_at <= now()"
        )
        return int(self._ask(sql)[0]["n"])

    @contextmanager
    def _harming(self) -> Iterator[None]:
        with self.harm_lock:
            self.harm += 1
        try:
            yield
        finally:
            with self.harm_lock:
                self.harm -= 1
                self.harmed = time.monotonic()

    def _watch(self) -> None:
        """Time the API's answers where neither replica nor database is harmed: only the gateway is out of order."""
        turn = 0
        while not self.over.wait(WATCH_EVERY * 2):
            asked = time.monotonic()
            up = [replica for replica in map(Slot.up, self.slots) if replica is not None]
            if self.harm > 0 or asked - self.harmed < 1 or len(up) < REPLICAS:
                continue
            turn += 1
            with suppress(OSError, http.client.HTTPException):
                reply = up[turn % len(up)].call("GET", "/api/v1/statistics")
                if self.harm == 0 and self.harmed < asked and reply.status == 200:
                    self.notes.latencies.append(reply.seconds)

    # ---- replicas and database

    def _begin(self, slot: Slot) -> None:
        slot.replica = self.stage.begin_replica(
            dsn=slot.proxy.dsn,
            constants=CONSTANTS,
            gateway_concurrency=CONCURRENCY,
            gateway_timeout=TIMEOUT,
            shutdown_grace=GRACE,
            log_level="info",
        )

    def _kill(self, slot: Slot) -> int | None:
        """kill -9, and what it left in doubt is noted; its number if it had come so far."""
        replica = slot.replica
        assert replica is not None
        if not replica.alive:
            return None
        number = _number(replica)
        replica.kill()
        self.notes.kills += 1
        if number is not None:
            with suppress(psycopg.Error):
                sql = "SELECT coalesce(sum(watermark - done), 0)::int AS n FROM batches WHERE replica = %s"
                self.notes.in_doubt.append(self._ask(f"{sql} AND owner IS NOT NULL", number)[0]["n"])
        return number

    def kill(self, slots: list[int]) -> None:
        with ExitStack() as stack, self._harming():
            chosen = [self.slots[number] for number in sorted(slots)]
            for slot in chosen:
                stack.enter_context(slot.lock)
            for slot in chosen:
                self._kill(slot)
            for slot in chosen:
                self._begin(slot)

    def pause(self, slot: int, seconds: float) -> None:
        replica = self.slots[slot].replica
        if replica is None or not replica.alive:
            return
        with self._harming():
            replica.pause()
            time.sleep(seconds)
            replica.resume()

    def replace(self, slot: int) -> None:
        """SIGTERM, and a new one at once."""
        place = self.slots[slot]
        with place.lock, self._harming():
            if place.replica is not None and place.replica.alive:
                place.replica.terminate()
                self.gone.append(place.replica)
                self._begin(place)

    def restart(self, mode: str) -> None:
        with self.database, self._harming():
            self.stage.database.restart(mode)
            self.notes.restarts += 1

    def terminate(self, count: int, salt: int) -> None:
        with self._harming():
            self._ask(
                "SELECT pg_terminate_backend(pid) FROM (SELECT pid FROM pg_stat_activity WHERE datname = 'notifier' "
                "AND pid <> pg_backend_pid() ORDER BY md5((pid + %s)::text) LIMIT %s) chosen",
                salt,
                count,
            )

    def cut(self, slot: int, refuse: float) -> None:
        proxy = self.slots[slot].proxy
        with self._harming():
            if refuse:
                proxy.refuse(refuse)
            proxy.cut()
            time.sleep(refuse)

    def stall(self, slot: int, seconds: float) -> None:
        proxy = self.slots[slot].proxy
        with self._harming():
            proxy.stall()
            time.sleep(seconds)
            proxy.flow()

    def slow(self, slot: int, delay: float, seconds: float) -> None:
        proxy = self.slots[slot].proxy
        with self._harming():
            proxy.slow(delay)
            time.sleep(seconds)
            proxy.slow(0)

    def lose(self, slot: int, match: str, times: int, reaches: bool) -> None:
        proxy = self.slots[slot].proxy
        with self._harming():
            (proxy.lose_answer if reaches else proxy.drop_statement)(match, times)

    # ---- the gateway

    def gateway(self, rules: list[dict[str, Any]], latency: float, jitter: float) -> None:
        with self.gateway_lock:
            self.stage.gateway.script(*rules, latency=latency, jitter=jitter)

    def gateway_dead(self, seconds: float) -> None:
        with self.gateway_lock:
            self.stage.gateway.stop()
            time.sleep(seconds)
            self.stage.gateway.start()

    # ---- people

    def _call(self, slot: int, method: str, path: str, body: Any = None, **more: Any) -> Reply | None:
        """A call of the API of that replica, or the next one that is up; None when no answer came."""
        for number in range(slot, slot + REPLICAS):
            replica = self.slots[number % REPLICAS].up()
            if replica is not None:
                break
        else:
            return None
        try:
            reply = replica.call(method, f"/api/v1{path}", body, **more)
        except (OSError, http.client.HTTPException):
            return None
        if reply.status >= 500 and not (reply.status == 503 and "Retry-After" in reply.headers):
            self._breach(f"api: {method} {path} {body} → {reply.status} {reply.body}")
        return reply

    def _told(self, method: str, path: str, reply: Reply | None) -> bool:
        """Note what was promised with an answer; whether it was one of success."""
        now = datetime.now(UTC)
        if reply is None or reply.status not in DONE:
            if reply is not None and reply.status not in (*REFUSED, 503):
                self._breach(f"api: {method} {path} → {reply.status} {reply.body}")
            return False
        if "ETag" in reply.headers and "status" in reply.body:
            self.notes.answers.setdefault((reply.body["id"], int(reply.headers["ETag"].strip('"'))), now)
        return True

    def mailing(self, what: str, salt: int, slot: int, hours: list[int] | None, priority: int, seconds: float) -> None:
        now = datetime.now(UTC)
        body: dict[str, Any] = {"text": f"{what} {salt}", "ends_at": "2099-01-01T00:00:00Z", "priority": priority}
        match what:
            case "urgent":
                body |= {"filter": {"tags": ["few"]}, "priority": 10}
            case "steady":
                body |= {"filter": {"tags": ["steady"]}}
            case "windowed":
                body |= {"filter": {"tags": ["zones"]}, "window": _window(hours or [-120, 240])}
            case "ending":
                body |= {"filter": {"tags": ["steady"]}, "ends_at": _rfc(now + timedelta(seconds=seconds))}
            case "later":
                body |= {"filter": {"tags": ["steady"]}, "starts_at": _rfc(now + timedelta(seconds=seconds))}
        self._make(slot, body)

    def feed(self, salt: int, slot: int) -> None:
        """There is always something to send."""
        if self._backlog() < self.enough:
            self._make(slot, {"text": f"large {salt}", "ends_at": "2099-01-01T00:00:00Z"})

    def _make(self, slot: int, body: dict[str, Any]) -> None:
        """Create a mailing; where no answer comes, ask another with the same key, for there must be one only."""
        key = body["text"].replace(" ", "-")
        deadline = time.monotonic() + 60
        while not self.over.is_set() and time.monotonic() < deadline:
            reply = self._call(slot, "POST", "/mailings", body, headers={"Idempotency-Key": key})
            if reply is not None and reply.status not in (409, 503):
                if reply.status != 422:  # it would have ended meanwhile
                    self._told("POST", "/mailings", reply)
                return
            slot += 1
            time.sleep(0.3)

    def edit(self, pick: float, editors: list[list[Any]]) -> None:
        """Two editors at once."""
        alive = self._ask("SELECT id, status FROM mailings WHERE over_at IS NULL ORDER BY id")
        if not alive:
            return
        target = alive[int(pick * len(alive))]["id"]
        paused = [row["id"] for row in alive if row["status"] == "paused"]
        with ThreadPoolExecutor(2) as both:
            for slot, verb, value in editors:
                chosen = paused[int(pick * len(paused))] if verb == "resume" and paused else target
                both.submit(self._edit, slot, chosen, verb, value)

    def _edit(self, slot: int, mailing: int, verb: str, value: Any) -> None:
        path = f"/mailings/{mailing}"
        match verb:
            case "pause" | "resume" | "cancel":
                reply = self._call(slot, "POST", f"{path}/{verb}")
            case "delete":
                reply = self._call(slot, "DELETE", path)
            case _:
                given = {
                    "text": f"edit {value} of {mailing}",
                    "window": _window(value) if value else None,
                    "ends_at": "2099-02-01T00:00:00Z",
                    "priority": value,
                }
                reply = self._call(slot, "PATCH", path, {verb: given[verb]})
        self._told(verb, path, reply)

    def clients(self, salt: int, erase: int, add: int, slot: int) -> None:
        rows = self._ask(
            "SELECT id FROM clients WHERE tags = '{crowd}' ORDER BY md5((id + %s)::text) LIMIT %s", salt, erase
        )
        for row in rows:
            self.notes.erasing.add(row["id"])
            reply = self._call(slot, "DELETE", f"/clients/{row['id']}")
            if self._told("DELETE", "/clients", reply):
                self.notes.erased.add(row["id"])
        phones = [79_500_000_000 + salt + number for number in range(add)]
        items = [{"phone": str(phone), "tags": ["crowd"]} for phone in phones]
        reply = self._call(slot, "POST", "/clients/batch", {"items": items}) if items else None
        if reply is not None and self._told("POST", "/clients/batch", reply):
            self.notes.phones |= dict(zip(phones, (item["id"] for item in reply.body["items"]), strict=True))

    def resolve(self, slots: list[int], salt: int, decisions: list[str]) -> None:
        """Two operators decide at once about messages that are unknown."""
        rows = self._ask(
            "SELECT message_id FROM attempts WHERE state = 'unknown' ORDER BY md5((message_id + %s)::text) LIMIT 3",
            salt,
        )
        with ThreadPoolExecutor(2) as both:
            for row in rows:
                for slot, decision in zip(slots, decisions, strict=True):
                    both.submit(self._resolve, slot, row["message_id"], decision)

    def _resolve(self, slot: int, message: int, decision: str) -> None:
        path = f"/messages/{message}/resolve"
        if decision == "again":
            self.notes.again.append(message)
        self._told("POST", path, self._call(slot, "POST", path, {"as": decision}))

    def rate(self, rate: float | None, slot: int) -> None:
        """Change the rate; where no answer comes nobody knows which one holds."""
        with self.rate_lock:
            self.notes.rates.append((datetime.now(UTC), 0.0))
            reply = self._call(slot, "PATCH", "/gateways/default", {"rate": rate})
            if reply is not None and reply.status == 200:
                self.notes.rates.append((datetime.now(UTC), rate or 0.0))

    def gateway_state(self, verb: str, slot: int) -> None:
        self._call(slot, "POST", f"/gateways/default/{verb}")

    # ---- quiet and calm

    def _still(self) -> None:
        """Everything that was begun is through, and nothing is out of order any more."""
        for step in self.under_way:
            step.result()
        self.under_way.clear()
        for slot in self.slots:
            slot.proxy.accept()
            slot.proxy.flow()
            slot.proxy.slow(0)
            slot.proxy.armed.clear()
        with self.gateway_lock:
            self.stage.gateway.script(latency=20)
        self._wait_for(self._all_up, 60)
        self.rate(None, 0)
        self._wait_for(lambda: self._steady("POST", "/gateways/default/resume"), 30)

    def _steady(self, method: str, path: str) -> bool:
        reply = self._call(0, method, path)
        return reply is not None and reply.status == 200

    def _wait_for(self, check: Callable[[], Any], seconds: float) -> bool:
        """Whether it was so within the time; the database may be away meanwhile."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(psycopg.Error):
                if check():
                    return True
            self._tend()
            time.sleep(0.02)
        return False

    def _quiet(self) -> None:
        """Kill one when all have held their locks for long enough, and time how long its work stays its own."""
        aged = (
            "SELECT count(*) FILTER (WHERE r.session AND now() - a.backend_start > %s * interval '1 second') AS n "
            "FROM replicas r JOIN pg_locks l ON l.locktype = 'advisory' AND l.classid = %s AND l.objid = r.id::oid "
            "JOIN pg_stat_activity a USING (pid)"
        )
        if not self._wait_for(lambda: self._ask(aged, TRUSTED_AFTER + 1, LOCKS)[0]["n"] >= REPLICAS, QUIET * 2):
            self.notes.untimed.append("control connections were not old enough in time")
            return
        self.feed(time.monotonic_ns(), 0)
        owners = (
            "SELECT replica FROM batches WHERE owner IS NOT NULL AND watermark > done GROUP BY 1 ORDER BY count(*) DESC"
        )
        numbers = {_number(slot.replica): slot for slot in self.slots if slot.replica is not None}
        if not self._wait_for(lambda: any(row["replica"] in numbers for row in self._ask(owners)), 10):
            self.notes.untimed.append("nobody had anything in doubt")
            return
        victim = next(
            (numbers[row["replica"]] for row in self._ask(owners) if row["replica"] in numbers), self.slots[0]
        )
        with victim.lock, self._harming():
            number = self._kill(victim)
            killed = time.monotonic()
            owned = "SELECT count(*) AS n FROM batches WHERE owner IS NOT NULL AND replica = %s"
            if self._wait_for(lambda: self._ask(owned, number)[0]["n"] == 0, 20):
                took = time.monotonic() - killed
                self.notes.take_overs.append(took)
                if took > TAKE_OVER:
                    self._breach(f"the work of replica {number} was taken over after {took:.2f} s only")
            else:
                self._breach(f"the work of replica {number} was not taken over within 20 s")
            self._begin(victim)

    def _calm(self) -> None:
        """Everything gets to an end."""
        self.say("calm")
        self._wait_for(self._all_up, 60)
        if not self._wait_for(self._all_over, CALM):
            left = self._ask("SELECT id, status, planned, ends_at, window_from FROM mailings WHERE over_at IS NULL")
            batches = self._ask("SELECT * FROM batches WHERE owner IS NOT NULL")
            self._breach(f"not at an end {CALM:.0f} s after the storm: {left[:10]} {batches[:10]}")
        for replica in self.gone:
            try:
                code = replica.process.wait(GRACE * 4)
            except subprocess.TimeoutExpired:
                self._breach(f"replica {replica.number} did not stop")
            else:
                if code not in (0, -signal.SIGTERM):  # the latter before it could listen to it
                    self._breach(f"replica {replica.number} stopped with {code}: {replica.tail()}")

    def _all_over(self) -> bool:
        """Help what waits for people, and see whether anything is left."""
        for row in self._ask("SELECT id, status, window_from FROM mailings WHERE over_at IS NULL"):
            if row["status"] == "paused":
                self._edit(0, row["id"], "resume", None)
            if row["window_from"] is not None:
                self._edit(0, row["id"], "window", None)
        self._steady("POST", "/gateways/default/resume")
        time.sleep(0.3)
        open_ = "(SELECT count(*) FROM mailings WHERE over_at IS NULL)"
        owned = "(SELECT count(*) FROM batches WHERE owner IS NOT NULL)"
        return bool(self._ask(f"SELECT {open_} + {owned} = 0 AS done")[0]["done"])

    # ---- the verdict

    def verdict(self) -> Figures:
        """What oracle, audit and the storm's own notes say."""
        notes = self.notes
        history = self._ask(
            "SELECT h.*, t.text FROM chaos.history h JOIN chaos.texts t "
            "ON t.mailing_id = h.mailing_id AND t.version = h.text_version ORDER BY number"
        )
        versions, stops = told(history, notes.answers)
        purged = self._ask("SELECT text FROM chaos.texts WHERE mailing_id NOT IN (SELECT id FROM mailings)")
        figures = judge(
            self.stage,
            versions=versions,
            stops=stops,
            audiences=self._audiences(),
            purged=[row["text"] for row in purged],
            again=notes.again,
            rates=[(datetime.min.replace(tzinfo=UTC), 0.0), *notes.rates],
            concurrency=CONCURRENCY,
            kills=notes.in_doubt,
            # Whoever is stopped while a connection is being made sends when it goes on.
            transit=LONGEST_PAUSE + TIMEOUT,
            rate_slack=1.0,
        )
        figures.breaches += [*self._forgotten(history), *self._audit(), *notes.breaches]
        # Told, not judged: this process, which asks, also carries all words between replicas and database.
        answered = Watched(notes.latencies)
        figures.slowest = answered.slowest
        worst = f"at worst {max(notes.take_overs):.2f} s" if notes.take_overs else "none timed"
        figures.notes += [
            f"{notes.kills} kills, at most {max(notes.in_doubt, default=0)} in doubt after one",
            f"{notes.restarts} restarts of the database",
            f"{len(notes.take_overs)} take-overs timed, {worst}",
            *(f"one not timed: {why}" for why in notes.untimed),
            f"API p99 {answered.p99 * 1000:.0f} ms where only the gateway was out of order",
        ]
        return figures

    def _audiences(self) -> dict[int, list[int]]:
        """Who should get the mailings for those who neither come nor go."""
        members = {
            tag: [row["id"] for row in self._ask("SELECT id FROM clients WHERE tags = ARRAY[%s]", tag)]
            for tag in GROUPS
            if tag != "crowd"
        }
        rows = self._ask("SELECT id, filter->'tags'->>0 AS tag FROM mailings WHERE planned AND filter <> '{}'")
        return {row["id"]: members[row["tag"]] for row in rows}

    def _forgotten(self, history: list[dict[str, Any]]) -> list[str]:
        """What was answered with 2xx and is not so."""
        kept = {(row["mailing_id"], row["version"]) for row in history}
        lost = [f"mailing {id}, version {version}" for id, version in self.notes.answers if (id, version) not in kept]
        first = Counter(str(row["text"]) for row in self._ask("SELECT text FROM chaos.texts WHERE version = 1"))
        twice = [text for text, count in first.items() if count > 1]
        here = {row["phone"]: row["id"] for row in self._ask("SELECT phone, id FROM clients")}
        lost += [f"client {id}" for phone, id in self.notes.phones.items()
                 if phone not in here and id not in self.notes.erasing]  # fmt: skip
        lost += [f"erasure of client {id}" for id in self.notes.erased & set(here.values())]
        return [
            *([f"lost: {len(lost)} × answered, and not so: {', '.join(lost[:10])}"] if lost else []),
            *([f"doubled: {len(twice)} × mailings made twice with one key: {', '.join(twice[:10])}"] if twice else []),
        ]

    def _audit(self) -> list[str]:
        """What `server.py audit` says."""
        environment = {"PATH": os.environ.get("PATH", os.defpath), "DATABASE_URL": self.stage.database.dsn}
        environment |= {
            "SECRET_KEY": secrets.token_urlsafe(32),
            "HOME": str(self.stage.folder),
            "NOTIFIER_ENV_FILE": os.devnull,
        }
        command = [sys.executable, str(ROOT / "server.py"), "audit"]
        done = subprocess.run(
            command, check=False, env=environment, cwd=self.stage.folder, capture_output=True, text=True, timeout=600
        )
        return [f"server.py audit ended with {done.returncode}: {done.stdout}{done.stderr}"] if done.returncode else []


def _number(replica: Replica) -> int | None:
    """Its number in `replicas`, once it has one."""
    try:
        return replica.id
    except StopIteration:
        return None


def _rfc(at: datetime) -> str:
    return at.isoformat().replace("+00:00", "Z")


def _window(hours: list[int]) -> dict[str, str]:
    now = datetime.now(UTC)
    start, end = (f"{now + timedelta(minutes=minutes):%H:%M}" for minutes in hours)
    return {"from": start, "to": end}


def storm(seed: int, seconds: float, *, size: float = 1.0, say: Callable[[str], None] = lambda text: None) -> Figures:
    """Three replicas in a storm; where something broke, the folder with plan, ledger, logs and database is kept.

    ``size`` is the part of the full number of clients.
    """
    stretches = plan(seed, seconds)
    with on_stage(gateway={"latency": 20, "seed": seed}) as stage, ExitStack() as stack:
        path = stage.folder / "plan.json"
        path.write_text(json.dumps({"seed": seed, "seconds": seconds, "plan": stretches}, indent=1))
        stage.database.query(REMEMBER)
        first = 1
        for tag, count in GROUPS.items():
            zones = ZONES if tag == "zones" else ZONES[:1]
            for zone in zones:
                number = round(count * size / len(zones))
                stage.clients(number, first=first, tag=tag, timezone=zone)
                first += number
        slots = [Slot(number, stack.enter_context(Proxy(stage.database.dsn))) for number in range(REPLICAS)]
        run = Storm(stage, slots, backlog=sum(GROUPS.values()) * size / 2, say=say)
        try:
            run.run(stretches)
            figures = run.verdict()
        except BaseException:
            stage.keep = True
            raise
        if figures.breaches:
            stage.keep = True
            (stage.folder / "breaches.txt").write_text("\n".join(figures.breaches))
            figures.notes.append(f"everything is kept in {stage.folder}")
            figures.notes.append(f"again with: make chaos ONLY=storm SEED={seed} MINUTES={seconds / 60:g}")
        return figures


def row(seed: int | None, minutes: float) -> Row:
    """The storm as a row of `make chaos`; a new seed by default."""
    drawn = random.SystemRandom().randrange(1_000_000) if seed is None else seed
    name = f"a storm of {minutes:g} minutes, seed {drawn}"
    return Row(0, name, lambda: storm(drawn, minutes * 60, say=lambda text: print(f"  {text}", file=sys.stderr)))
