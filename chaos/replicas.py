"""Rows 1 to 4 and 16: replicas that die, stand still, are sent away, or lose a part of themselves."""

from __future__ import annotations

import http.client
import random
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

import psycopg

from chaos.replica import LOSS, LOST
from chaos.stage import Replica, Stage, on_stage, until
from chaos.verdict import Figures, Row, Watched, judge, timed, together, watching
from notifier.cluster import control
from notifier.delivery.feeder import AHEAD

AT_RANDOM = "at a random moment"
# What a replica loses one after the other: its loops, and one of the tasks that send.
PARTS = ("feed", "recorder", "limits", "lag", "lifecycle", "planner", "heartbeat", "purge", "control", "start", "send")
# With this the heartbeat alone tells who is dead.
WITHOUT_HINT = {"cluster.control.TRUSTED_AFTER": 1e9}


def deaths(sends: int, records: int) -> tuple[str, ...]:
    """A kill -9 at every step of a message's way (see chaos/replica.py), and one at a random moment."""
    return (
        "after 1 storage.queue.claim",
        "after 2 storage.queue.load",
        f"before {sends} delivery.gateway.Gateway.send",
        f"after {sends} delivery.gateway.Gateway.send",
        f"before {records} storage.recording.record",
        f"after {records} storage.recording.record",
        AT_RANDOM,
    )


# ---- row 1


class Mortal:
    """A replica that is to die, and what was seen of it: in doubt at its death, seconds until it was taken over."""

    def __init__(self, order: str, replica: Replica) -> None:
        self.order = order
        self.replica = replica
        self.died: float | None = None
        self.owned = False
        self.in_doubt = 0
        self.taken_over: float | None = None

    def look(self, owned: Mapping[int, int]) -> None:
        """Take in how many messages each owner of a batch has under its watermarks, without a row."""
        if self.died is None and not self.replica.alive:
            self.died = time.monotonic()
            self.owned = self.replica.id in owned
            self.in_doubt = owned.get(self.replica.id, 0)
        elif self.died is not None and self.taken_over is None and self.replica.id not in owned:
            self.taken_over = time.monotonic() - self.died


def deaths_of_one(
    policy: str,
    rounds: Sequence[Sequence[str]],
    *,
    messages: int,
    survivors: int = 2,
    concurrency: int = 50,
    latency: int = 50,
    timeout: int = 15,
    constants: Mapping[str, Any] | None = None,
    within: float,
    watch: bool = True,
    seed: int | None = None,
) -> Figures:
    """For each round a mailing, in which a replica dies for each of its orders; the survivors go on.

    ``within``: the seconds in which everything of the dead must be taken over. ``latency`` in milliseconds.
    """
    chance = random.Random(seed)
    given: dict[str, Any] = {
        "constants": constants,
        "gateway_on_unknown": policy,
        "gateway_concurrency": concurrency,
        "gateway_timeout": timeout,
    }
    mortals: list[Mortal] = []
    trusted_after = float((constants or {}).get("cluster.control.TRUSTED_AFTER", control.TRUSTED_AFTER))
    hinted = trusted_after < WITHOUT_HINT["cluster.control.TRUSTED_AFTER"]
    with on_stage(gateway={"latency": latency}) as stage, _perhaps_watching(stage, watch) as watched:
        stage.clients(messages)
        for _ in range(survivors):
            stage.begin_replica(**given)
        for orders in rounds:
            mortal = [
                Mortal(order, stage.begin_replica(death=None if order == AT_RANDOM else order, **given))
                for order in orders
            ]
            at_work(stage)
            if not mortals and hinted:  # a connection that is young shows nothing (cluster/control.py)
                time.sleep(trusted_after)
            mailing = stage.mailing(stage.replicas[0])
            _see_them_die(stage, mailing, mortal, chance.uniform(0, messages / 2), within)
            stage.done(mailing)
            mortals += mortal
        audiences = {row["id"]: clients(stage) for row in stage.database.query("SELECT id FROM mailings")}
        kills = [each.in_doubt for each in mortals]
        figures = judge(stage, watched, audiences=audiences, concurrency=concurrency, kills=kills)
        bound = (concurrency + AHEAD) * len(mortals)
        interrupted = count(stage, "attempts", "outcome = 'interrupted'")
        assert interrupted <= bound, f"{interrupted} messages were interrupted by {len(mortals)} deaths"
        if policy == "hold":
            assert not asked_twice(stage), f"sent again although the policy is hold: {asked_twice(stage)[:10]}"
    times = sorted(each.taken_over for each in mortals if each.owned and each.taken_over is not None)
    assert times, "none of the dead owned anything"
    how = "lock" if hinted else "heartbeat"
    figures.notes.append(
        f"{policy}, by the {how}: {len(mortals)} deaths, {len(times)} taken over in {times[0]:.1f} to "
        f"{times[-1]:.1f} s, {max(kills)} in doubt at most"
    )
    return figures


def _see_them_die(stage: Stage, mailing: int, mortals: Sequence[Mortal], sent: float, within: float) -> None:
    """Until all are dead and taken over; who has no order to die is killed when so many messages are ``sent``."""

    def over() -> bool:
        rows = connection.execute(
            "SELECT replica, sum(watermark - done)::int FROM batches WHERE owner IS NOT NULL GROUP BY replica"
        ).fetchall()
        for each in mortals:
            each.look(dict(rows))
        for each in mortals:
            if each.order == AT_RANDOM and each.replica.alive and stage.gateway.state()["requests"] >= sent:
                each.replica.kill()
        unborn = [each.order for each in mortals if each.died is None]
        assert not (unborn and stage.finished(mailing)), f"the mailing ended before this death: {unborn}"
        return all(each.taken_over is not None for each in mortals)

    with psycopg.connect(stage.database.dsn, autocommit=True) as connection:
        until(over, every=0.01, progress=lambda: (stage.numbers(mailing), [each.died for each in mortals]))
    slow = {each.order: f"{each.taken_over:.1f} s" for each in mortals if (each.taken_over or 0) > within}
    assert not slow, f"taken over later than {within} s: {slow}"


# ---- row 2


def cold_start(
    *, messages: int, replicas: int = 3, watch: bool = True, concurrency: int = 50, timeout: int = 15, **given: Any
) -> Figures:
    """All are killed in the middle of a mailing; new ones go on without a hand."""
    given |= {"gateway_concurrency": concurrency, "gateway_timeout": timeout}
    with on_stage(gateway={"latency": 50}) as stage, _perhaps_watching(stage, watch) as watched:
        stage.clients(messages)
        for _ in range(replicas):
            stage.begin_replica(**given)
        at_work(stage)
        mailing = stage.mailing(stage.replicas[0])
        until(lambda: stage.gateway.state()["requests"] >= messages / 3)
        for replica in stage.replicas:
            replica.process.kill()
        for replica in stage.replicas:
            replica.kill()
        in_doubt = int(stage.database.value("SELECT coalesce(sum(watermark - done), 0) FROM batches"))
        assert in_doubt <= replicas * (concurrency + AHEAD), f"{in_doubt} in doubt after {replicas} were killed"
        assert not stage.finished(mailing), "the mailing ended before they were killed"
        before = stage.gateway.state()["requests"]
        for _ in range(replicas):
            stage.begin_replica(**given)
        goes_on = timed(lambda: stage.gateway.state()["requests"] > before, progress=stage.replicas[-1].tail)
        stage.done(mailing)
        figures = judge(stage, watched, audiences={mailing: clients(stage)})
    figures.notes.append(f"sends again {goes_on:.1f} s after the start; {in_doubt} were in doubt")
    return figures


# ---- row 3


def sent_away(
    *, messages: int, latency: int, concurrency: int = 100, grace: int = 20, timeout: int = 15, **given: Any
) -> Figures:
    """SIGTERM under load: unready but answering, what is in flight is finished, the rest given back, exit 0.

    ``latency`` of the gateway in milliseconds, ``grace`` and ``timeout`` in seconds.
    """
    with on_stage(gateway={"latency": latency}) as stage:
        stage.clients(messages)
        given |= {"gateway_concurrency": concurrency, "gateway_timeout": timeout, "shutdown_grace": grace}
        leaving = stage.replica(**given)
        mailing = stage.mailing(leaving)
        until(lambda: stage.gateway.state()["in_flight"] >= concurrency)
        leaving.terminate()
        asked = time.monotonic()
        answers, unready = _answers(leaving)
        code, seconds = leaving.ended(), time.monotonic() - asked
        assert code == 0, f"exit {code}:\n{leaving.tail()}"
        assert seconds < grace, f"it took {seconds:.1f} s to go, {grace} were granted"
        assert answers, "readiness was never 503 while the API answered"
        assert set(answers) == {200}, f"the API answered {Counter(answers)} before it stopped"
        accepted = stage.gateway.state()["accepted"]
        sent = count(stage, "attempts", "state = 'sent'")
        assert sent == accepted == stage.gateway.state()["requests"], f"{accepted} were accepted, {sent} recorded"
        doubts = count(stage, "attempts", "outcome IN ('unknown', 'interrupted')")
        assert not doubts, f"{doubts} are in doubt after an orderly stop"
        waiting = stage.database.value("SELECT sum(size) FROM batches WHERE owner IS NULL")
        assert waiting == messages - sent, f"{waiting} of {messages - sent} were given back"
        assert not count(stage, "replicas", "true"), "it left its row behind"
        stage.gateway.script(latency=5)
        stage.replica(**given)
        stage.done(mailing)
        figures = judge(stage, audiences={mailing: clients(stage)})
    figures.notes.append(f"unready after {unready * 1000:.0f} ms, gone after {seconds:.1f} s, {sent} sent until then")
    return figures


def _answers(replica: Replica) -> tuple[list[int], float]:
    """The API's statuses from the moment it is unready until it ends, and after how many seconds it was unready."""
    started, unready, statuses = time.monotonic(), 0.0, []
    while replica.alive:
        with suppress(OSError, http.client.HTTPException):
            ready = replica.call("GET", "/readyz").status
            if unready:
                assert ready == 503, f"ready again ({ready}) after it was not"
                statuses.append(replica.call("GET", "/api/v1/statistics").status)
            elif ready == 503:
                unready = time.monotonic() - started
        time.sleep(0.02)
    return statuses, unready


# ---- row 4


def stands_still(
    policy: str,
    *,
    messages: int,
    seconds: float,
    replicas: int = 3,
    concurrency: int = 50,
    timeout: int = 15,
    latency: int = 500,
    watch: bool = True,
    **given: Any,
) -> Figures:
    """One is stopped with requests under way for ``seconds``, and goes on when everything was done without it."""
    given |= {
        "gateway_on_unknown": policy,
        "gateway_concurrency": concurrency,
        "gateway_timeout": timeout,
        "shutdown_grace": timeout + 5,
    }
    with on_stage(gateway={"latency": latency}) as stage:
        stage.clients(messages)
        for _ in range(replicas):
            stage.begin_replica(**given)
        at_work(stage)
        mailing = stage.mailing(stage.replicas[0])
        stopped = stage.replicas[-1]
        until(lambda: written(stage, stopped) > 0)
        # Slower, so that the mailing is not over before one is caught with requests under way.
        stage.gateway.script(latency=min(5_000, timeout * 500))
        marked = until(partial(_stopped_at_work, stage, stopped, concurrency))
        stage.gateway.script(latency=latency)
        began = time.monotonic()
        taken_over = timed(lambda: not owned(stage, stopped))
        stage.replicas.remove(stopped)  # nobody shall ask it
        with _perhaps_watching(stage, watch) as watched:
            stage.done(mailing)
            time.sleep(max(0.0, seconds - (time.monotonic() - began)))
        stage.replicas.append(stopped)
        known = len(stage.gateway.entries())
        stopped.resume()
        until(lambda: count(stage, "attempts", f"reason = 'late' AND replica = {stopped.id}"))
        assert stopped.stop() == 0, f"it did not stop well:\n{stopped.tail()}"
        started = [entry.id for entry in stage.gateway.entries()[known:]]
        beyond = [message for message in started if message not in marked]
        assert not beyond, f"started beyond the watermark: {beyond[:10]}"
        # A request that had its last look before the stop may be written after it; there is one per connection.
        assert len(started) <= concurrency, f"{len(started)} requests were started by a process that was stopped"
        late = Counter(row["outcome"] for row in stage.database.query(
            "SELECT outcome::text FROM attempts WHERE reason = 'late' AND replica = %s", stopped.id
        ))  # fmt: skip
        if policy == "hold":
            assert not asked_twice(stage), f"sent again although the policy is hold: {asked_twice(stage)[:10]}"
        figures = judge(stage, watched, audiences={mailing: clients(stage)}, concurrency=concurrency,
                        kills=[len(marked)])  # fmt: skip
    figures.notes.append(
        f"{policy}: {len(marked)} in doubt at the stop, taken over after {taken_over:.1f} s, "
        f"{len(started)} requests after SIGCONT, late: {', '.join(f'{n} {outcome}' for outcome, n in late.items())}"
    )
    return figures


# ---- row 16


def loses_parts(*, messages: int, every: float, rounds: int = 1, timeout: int = 1, **given: Any) -> Figures:
    """The only replica loses each of its `PARTS` in turn, one every so many seconds; the mailings end all the same."""
    constants = {"delivery.scheduler.STUCK_AFTER": 3.0} | given.pop("constants", {})
    with on_stage(gateway={"latency": 100}) as stage:
        stage.clients(messages)
        stage.replica(
            constants=constants,
            environment={LOSS: f"{every} {rounds} {' '.join(PARTS)}"},
            gateway_concurrency=20,
            gateway_timeout=timeout,
            **given,
        )
        at_work(stage)
        mailings = []
        while losses(stage) < Counter(dict.fromkeys(PARTS, rounds)):
            mailings.append(stage.mailing(stage.replicas[0]))
            stage.done(mailings[-1])
        again = {event["loop"] for event in stage.replicas[0].events() if event["event"] == RESTARTED}
        assert again == set(PARTS) - {"send"}, f"not started again: {set(PARTS) - {'send'} - again}"
        lost = losses(stage).total()
        figures = judge(stage, audiences={mailing: clients(stage) for mailing in mailings})
    figures.notes.append(f"{lost} parts lost during {len(mailings)} mailings, one every {every} s")
    return figures


RESTARTED = "background task exited unexpectedly, restarting"


def losses(stage: Stage) -> Counter[str]:
    """How often each part was lost so far."""
    return Counter(event["part"] for event in stage.replicas[0].events() if event["event"] == LOST)


def refused_row(*, messages: int, **given: Any) -> Figures:
    """PostgreSQL refuses the result of one message, whatever is tried: it is recorded as unknown, the rest as it is."""
    with on_stage(gateway={"latency": 5}) as stage:
        stage.clients(messages)
        replica = stage.replica(**given)
        assert replica.call("POST", "/api/v1/gateways/default/pause").status == 200
        mailing = stage.mailing(replica)
        until(lambda: count(stage, "messages", "true") == messages)
        culprit = stage.database.value("SELECT id FROM messages ORDER BY id OFFSET %s LIMIT 1", messages // 2)
        stage.database.query(
            """
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'this row is refused'; END $$
            """
        )
        stage.database.query(
            f"""
            CREATE TRIGGER refuse BEFORE INSERT ON attempts FOR EACH ROW
            WHEN (NEW.message_id = {culprit} AND NEW.reason IS DISTINCT FROM 'unrecordable') EXECUTE FUNCTION refuse()
            """
        )
        assert replica.call("POST", "/api/v1/gateways/default/resume").status == 200
        stage.done(mailing)
        assert stage.numbers(mailing) == {"sent": messages - 1, "unknown": 1}, stage.numbers(mailing)
        shown = replica.call("GET", f"/api/v1/messages/{culprit}").body
        assert (shown["status"], shown["reason"]) == ("unknown", "unrecordable"), shown
        figures = judge(stage, audiences={mailing: clients(stage)})
    figures.notes.append("a refused row is unknown, all others are recorded")
    return figures


# ---- what they share


def at_work(stage: Stage) -> None:
    """Wait until all that were begun listen, and hold the locks that tell whether they live."""
    for replica in stage.living():
        until(replica.listening, progress=replica.tail)
        until(partial(_holds_its_lock, stage, replica), progress=replica.tail)


def _holds_its_lock(stage: Stage, replica: Replica) -> bool:
    if not any(event["event"] == "the scheduler runs" for event in replica.events()):
        return False
    return bool(stage.database.query("SELECT id FROM replicas WHERE id = %s AND session", replica.id))


def clients(stage: Stage) -> list[int]:
    """The numbers of all clients."""
    return [row["id"] for row in stage.database.query("SELECT id FROM clients")]


def count(stage: Stage, table: str, where: str) -> int:
    """The number of rows of ``table`` that are so."""
    return int(stage.database.value(f"SELECT count(*) FROM {table} WHERE {where}"))


def owned(stage: Stage, replica: Replica) -> int:
    """The number of batches in its name."""
    return count(stage, "batches", f"replica = {replica.id}")


def written(stage: Stage, replica: Replica) -> int:
    """The number of rows that it has written into the ledger."""
    return count(stage, "attempts", f"replica = {replica.id}")


def under_watermark(stage: Stage, replica: Replica) -> set[int]:
    """The messages that it may have started, and that have no row yet."""
    rows = stage.database.query(
        """
        SELECT e.id
        FROM batches b
        CROSS JOIN LATERAL unnest(coalesce(b.ids, ARRAY(SELECT generate_series(b.first_id, b.last_id))))
            WITH ORDINALITY e (id, position)
        WHERE b.replica = %s AND e.position <= b.watermark
          AND NOT EXISTS (SELECT FROM attempts a WHERE a.message_id = e.id AND a.seq = b.seq)
        """,
        replica.id,
    )
    return {row["id"] for row in rows}


def asked_twice(stage: Stage) -> list[int | None]:
    """The messages that the gateway was asked for more than once."""
    return [message for message, n in Counter(entry.id for entry in stage.gateway.entries()).items() if n > 1]


def _stopped_at_work(stage: Stage, replica: Replica, least: int) -> set[int]:
    """Stop it, and return what it has under its watermark, if that is more than ``least`` messages and it has written
    some; else let it go on. Only what is looked at after the stop is sure to be so.
    """
    replica.pause()
    stopped_at = stage.database.value("SELECT clock_timestamp()")
    # What it had sent already is done. Others' statements come and go. One that waits for a lock, or for its client to
    # go on after it was prepared, may wait for the stopped one.
    older = (
        "application_name LIKE %s AND state = 'active' AND query_start < %s "
        "AND coalesce(wait_event_type, '') NOT IN ('Lock', 'Client')"
    )
    sql = f"SELECT count(*) = 0 FROM pg_stat_activity WHERE {older}"
    until(lambda: stage.database.value(sql, "notifier-engine%", stopped_at))
    marked = under_watermark(stage, replica)
    if len(marked) > least and written(stage, replica) > 0:
        return marked
    replica.resume()
    return set()


@contextmanager
def _perhaps_watching(stage: Stage, watch: bool) -> Iterator[Watched]:
    with ExitStack() as stack:
        yield stack.enter_context(watching(stage)) if watch else Watched()


def _row_1() -> Figures:
    every = [[order] for order in deaths(400, 12)]
    fast: dict[str, Any] = {"messages": 6_000, "within": 2.0}
    alone = deaths_of_one("retry", every[2:4], messages=6_000, within=10.0, constants=WITHOUT_HINT)
    return together([deaths_of_one("retry", every, **fast), deaths_of_one("hold", every, **fast), alone])


def _row_4() -> Figures:
    return together(
        [stands_still("retry", messages=6_000, seconds=60.0), stands_still("hold", messages=3_000, seconds=12.0)]
    )


def _row_16() -> Figures:
    return together([loses_parts(messages=3_000, every=0.7, rounds=5), refused_row(messages=3_000)])


ROWS: tuple[Row, ...] = (
    Row(1, "kill -9 of one of three replicas", _row_1),
    Row(2, "kill -9 of all, cold start", partial(cold_start, messages=9_000)),
    Row(3, "SIGTERM under load", partial(sent_away, messages=1_000, latency=5_000)),
    Row(4, "SIGSTOP, then SIGCONT", _row_4),
    Row(16, "a coroutine lost, a flush refused", _row_16),
)
