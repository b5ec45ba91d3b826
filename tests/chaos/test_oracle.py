"""The oracle of the chaos runs: for every rule facts that break just it, beside the nearest that do not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from chaos.oracle import SHOWN, Attempt, Facts, Mailing, Message, Rule, Run, Stop, Version, check, gather, summary
from notifier.models import MailingStatus, MessageState, Outcome, Reason, Status, Window, status_of
from notifier.simulator import Entry
from notifier.storage import mailings
from tests.delivery import conftest
from tests.delivery.conftest import World

simulator, short_waits, world = conftest.simulator, conftest.short_waits, conftest.world

START = datetime(2026, 3, 2, 9, tzinfo=UTC)
NOON = datetime(2026, 3, 2, 12, tzinfo=UTC)
END = datetime(2026, 3, 2, 18, tzinfo=UTC)
SECOND, HOUR = timedelta(seconds=1), timedelta(hours=1)
MAILING = 7
PHONE = 79_000_000_000
ZONE = ZoneInfo("UTC")

Row = tuple[Outcome, MessageState]
ACCEPTED = (Outcome.ACCEPTED, MessageState.SENT)
REJECTED = (Outcome.REJECTED, MessageState.FAILED)
UNKNOWN = (Outcome.UNKNOWN, MessageState.DOUBTFUL)
HELD = (Outcome.UNKNOWN, MessageState.UNKNOWN)
INTERRUPTED = (Outcome.INTERRUPTED, MessageState.DOUBTFUL)
NOT_STARTED = (Outcome.NOT_STARTED, MessageState.WAITING)
SAID_TO_BE_SENT = (Outcome.RESOLVED, MessageState.SENT)
SENT_AGAIN = (Outcome.RESOLVED, MessageState.DOUBTFUL)


class Scene:
    """One mailing from 9 to 18 o'clock that has ended, and the run it was in; audience and statistics are counted."""

    def __init__(self, run: Run | None = None, **mailing: Any) -> None:
        self.run = run or Run(alive={1})
        self.messages: dict[int, Message] = {}
        self.entries: list[Entry] = []
        self.given = mailing
        values: dict[str, Any] = {
            "status": MailingStatus.FINISHED,
            "starts_at": START,
            "ends_at": END,
            "window": None,
            "over_at": END,
            "planned": True,
            "deleted": False,
            "texts": ((START, "Hi"),),
            "audience": 0,
            "shown": {},
        }
        self.mailing = Mailing(**(values | mailing))

    def message(self, message_id: int, *rows: Row, at: datetime = NOON, zone: ZoneInfo = ZONE, **last: Any) -> Scene:
        """A message to client and phone of its number; ``last`` changes its last row."""
        phone = PHONE + message_id
        attempts = [Attempt(outcome, state, at, phone=phone, text_version=1) for outcome, state in rows]
        if last:
            attempts[-1] = attempts[-1]._replace(**last)
        status = status_of(rows[-1][1] if rows else MessageState.WAITING, self.mailing.status)
        self.messages[message_id] = Message(MAILING, message_id, PHONE + message_id, zone, status, tuple(attempts))
        return self

    def asked(self, message_id: int, at: datetime = NOON, **answer: Any) -> Scene:
        """A request in the gateway's ledger, accepted unless ``answer`` says otherwise."""
        entry = Entry(at, message_id, PHONE + message_id, "Hi", True, False, 200, 0)
        self.entries.append(entry._replace(**answer))
        return self

    def sent(self, message_id: int, at: datetime = NOON) -> Scene:
        return self.message(message_id, ACCEPTED, at=at).asked(message_id, at)

    def facts(self, **changes: Any) -> Facts:
        shown = Counter(message.status for message in self.messages.values())
        counted: dict[str, Any] = {"audience": len(self.messages), "shown": dict(shown)}
        mailing = replace(self.mailing, **(counted | self.given))
        return replace(Facts(self.run, {MAILING: mailing}, self.messages, self.entries, {1: 1}), **changes)

    def broken(self, **changes: Any) -> list[tuple[Rule, int]]:
        """The rules that are broken, each with its count."""
        return [(breach.rule, breach.count) for breach in check(self.facts(**changes))]


def moments(count: int, apart: float, since: datetime = NOON) -> list[datetime]:
    return [since + n * timedelta(seconds=apart) for n in range(count)]


# ---- lost


@pytest.mark.parametrize("row", [(), (UNKNOWN,), (NOT_STARTED,)], ids=["waiting", "in doubt", "given back"])
def test_a_message_without_a_final_status_is_lost(row: tuple[Row, ...]) -> None:
    assert Scene().message(1, *row).broken() == []
    assert Scene(status=MailingStatus.RUNNING).message(1, *row).broken() == [(Rule.LOST, 1)]


def test_a_message_that_counts_as_under_way_is_lost() -> None:
    scene = Scene().message(1)
    scene.messages[1] = scene.messages[1]._replace(status=Status.SENDING)
    assert scene.broken() == [(Rule.LOST, 1)]


def test_what_is_left_over_by_a_mailing_that_finished_before_its_end_is_lost() -> None:
    closed = Scene(over_at=NOON).message(1, UNKNOWN).sent(2)
    assert closed.broken() == [(Rule.LOST, 1)]
    assert Scene(over_at=NOON, status=MailingStatus.CANCELLED).message(1, UNKNOWN).sent(2).broken() == []
    assert Scene(over_at=NOON).message(1, HELD, UNKNOWN, reason=Reason.LATE).sent(2).broken() == []


def test_what_was_never_accepted_is_not_sent() -> None:
    assert Scene().message(1, ACCEPTED).asked(1).broken() == []
    assert Scene().message(1, ACCEPTED).asked(1, status=500, code=None).broken() == [(Rule.LOST, 1)]
    assert Scene().message(1, ACCEPTED).broken() == [(Rule.LOST, 1)]
    assert Scene().message(1, HELD, SAID_TO_BE_SENT).broken() == []
    assert Scene().message(1, ACCEPTED, SAID_TO_BE_SENT).broken() == [(Rule.LOST, 1)]


def test_what_was_accepted_is_sent_or_in_doubt() -> None:
    assert Scene().message(1, HELD).asked(1).broken() == []
    assert Scene().message(1, INTERRUPTED, REJECTED).asked(1).broken() == []
    assert Scene().message(1, REJECTED).asked(1).broken() == [(Rule.LOST, 1)]
    refused = (Outcome.ACCEPTED, MessageState.UNKNOWN)
    assert Scene().message(1, refused, reason=Reason.UNRECORDABLE).asked(1).broken() == []
    assert Scene().message(1, refused).asked(1).broken() == [(Rule.LOST, 1)]


def test_every_one_of_the_audience_has_a_message() -> None:
    assert Scene(audience=2).sent(1).sent(2).broken() == []
    assert Scene(audience=2, shown={Status.SENT: 1}).sent(1).broken() == [(Rule.LOST, 1)]
    running = Scene(status=MailingStatus.RUNNING, planned=False).sent(1)
    assert running.broken() == [(Rule.LOST, 1)]


@pytest.mark.parametrize(
    ("expected", "broken"), [({1, 2}, []), ({1, 2, 3}, [(Rule.LOST, 1)]), ({1}, [(Rule.STRAY, 1)])]
)
def test_the_caller_may_know_who_is_of_the_audience(expected: set[int], broken: list[tuple[Rule, int]]) -> None:
    assert Scene(Run(alive={1}, audiences={MAILING: expected})).sent(1).sent(2).broken() == broken


# ---- doubled


@pytest.mark.parametrize(
    ("rows", "copies", "broken"),
    [
        ((UNKNOWN, ACCEPTED), 2, []),
        ((UNKNOWN, INTERRUPTED, ACCEPTED), 3, []),
        ((REJECTED, ACCEPTED), 2, [(Rule.DOUBLED, 1)]),
        ((UNKNOWN, REJECTED, ACCEPTED), 3, [(Rule.DOUBLED, 1)]),
        ((UNKNOWN, UNKNOWN, INTERRUPTED, ACCEPTED), 4, [(Rule.DOUBLED, 1)]),
        ((UNKNOWN, UNKNOWN, HELD, SENT_AGAIN, ACCEPTED), 4, []),
    ],
    ids=["explained", "explained twice", "not explained", "explained once only", "more than three", "by an operator"],
)
def test_each_copy_needs_an_attempt_in_doubt(rows: Sequence[Row], copies: int, broken: list[Any]) -> None:
    scene = Scene().message(1, *rows)
    for _ in range(copies):
        scene.asked(1)
    assert scene.broken() == broken


def test_no_request_without_a_row_in_the_books() -> None:
    refused: dict[str, Any] = {"status": 400, "code": None}
    assert Scene().message(1, REJECTED).asked(1, **refused).broken() == []
    assert Scene().message(1, REJECTED).asked(1, **refused).asked(1, **refused).broken() == [(Rule.DOUBLED, 1)]
    assert Scene(status=MailingStatus.CANCELLED).message(1, NOT_STARTED).asked(1, **refused).broken() == [
        (Rule.DOUBLED, 1)
    ]


def test_one_id_for_each_client_and_phone() -> None:
    scene = Scene().sent(1).sent(2)
    same_phone = scene.messages[2].attempts[0]._replace(phone=PHONE + 1)
    scene.messages[2] = scene.messages[2]._replace(phone=PHONE + 1, attempts=(same_phone,))
    scene.entries[1] = scene.entries[1]._replace(phone=PHONE + 1)
    assert scene.broken() == [(Rule.DOUBLED, 2)]
    scene = Scene().sent(1).sent(2)
    scene.messages[2] = scene.messages[2]._replace(client_id=1)
    assert scene.broken() == [(Rule.DOUBLED, 2)]


# ---- stray


def test_a_request_is_that_of_a_message() -> None:
    assert Scene().sent(1).asked(2).broken() == [(Rule.STRAY, 1)]
    assert Scene().sent(1).asked(0, id=None, status=400, code=None).broken() == [(Rule.STRAY, 1)]


def test_requests_of_a_mailing_that_was_purged_are_known_by_their_text() -> None:
    purged = Run(alive={1}, purged={"Gone"})
    assert Scene(purged).sent(1).asked(2, text="Gone").broken() == []
    assert Scene(deleted=True).sent(1).asked(2).broken() == []  # its purge is under way
    scene = Scene(purged).sent(1).asked(2, text="Gone").asked(2, text="Gone").asked(2, text="Gone")
    assert scene.broken() == []
    assert scene.asked(2, text="Gone").broken() == [(Rule.DOUBLED, 1)]
    scene.run = Run(alive={1}, purged={"Gone"}, again=[2])
    assert scene.broken() == []


def test_a_message_goes_to_its_clients_phone() -> None:
    assert Scene().message(1, ACCEPTED).asked(1, phone=PHONE + 2).broken() == [(Rule.STRAY, 1)]
    edited = Scene().message(1, ACCEPTED, phone=PHONE + 2).asked(1, phone=PHONE + 2)
    assert edited.broken() == []
    erased = Scene().message(1, ACCEPTED, phone=None).asked(1)
    erased.messages[1] = erased.messages[1]._replace(phone=None, zone=None)
    assert erased.broken() == []


# ---- text


def test_the_text_is_one_of_the_mailing() -> None:
    assert Scene().message(1, ACCEPTED).asked(1, text="Ho").broken() == [(Rule.TEXT, 1), (Rule.TEXT, 1)]


@pytest.mark.parametrize(
    ("text", "version", "after", "broken"),
    [
        ("Hi", 1, -1.0, 0),
        ("Ho", 2, -5.0, 1),
        ("Ho", 2, 0.5, 0),
        ("Hi", 1, 2.5, 0),  # on its way for two seconds at most, and a second in which the edit takes effect
        ("Hi", 1, 3.5, 1),
    ],
)
def test_the_text_was_in_force(text: str, version: int, after: float, broken: int) -> None:
    scene = Scene(texts=((START, "Hi"), (NOON, "Ho")))
    scene.message(1, ACCEPTED, text_version=version).asked(1, NOON + after * SECOND, text=text)
    assert scene.broken() == [(Rule.TEXT, 1)] * broken


def test_the_books_name_the_text_that_was_sent() -> None:
    scene = Scene(texts=((START, "Hi"), (NOON, "Ho")))
    assert scene.message(1, ACCEPTED, text_version=2).asked(1).broken() == [(Rule.TEXT, 1)]
    assert scene.message(1, UNKNOWN, ACCEPTED, text_version=2).broken() == []
    assert scene.message(1, INTERRUPTED, text_version=None).broken() == []


# ---- early, late, outside hours

MOMENT = timedelta.resolution


@pytest.mark.parametrize(
    ("at", "broken"), [(START - MOMENT, 1), (START, 0), (END - MOMENT, 0), (END, 1)], ids=["early", "0", "1", "late"]
)
def test_by_the_books_nothing_starts_before_the_start_or_after_the_end(at: datetime, broken: int) -> None:
    scene = Scene().message(1, REJECTED, at=at)
    assert scene.broken() == [(Rule.UNTIMELY, 1)] * broken


def test_rows_that_are_not_the_start_of_a_request_may_lie_anywhere() -> None:
    assert Scene().message(1, NOT_STARTED, at=END + SECOND).message(2, INTERRUPTED, at=END + SECOND).broken() == []


@pytest.mark.parametrize(
    ("at", "slack", "broken"),
    [
        (START - MOMENT, {}, 1),
        (START - 3 * SECOND, {"skew": 4.0}, 0),
        (END + SECOND, {}, 0),
        (END + 3 * SECOND, {}, 1),
        (END + 3 * SECOND, {"transit": 4.0}, 0),
        (END + 3 * SECOND, {"skew": 4.0}, 0),
    ],
)
def test_nothing_reaches_the_gateway_then(at: datetime, slack: dict[str, Any], broken: int) -> None:
    scene = Scene(Run(alive={1}, **slack)).message(1, ACCEPTED).asked(1, at)
    assert scene.broken() == [(Rule.UNTIMELY, 1)] * broken


@pytest.mark.parametrize(
    ("zone", "broken"), [("UTC", 0), ("Europe/Moscow", 0), ("Asia/Kolkata", 0), ("Asia/Kathmandu", 1), ("Etc/GMT+3", 2)]
)
def test_nothing_starts_outside_the_clients_local_hours(zone: str, broken: int) -> None:
    # In Kathmandu it is a quarter to six just now: the request was on its way, but the books are wrong.
    scene = Scene(window=Window(time(12), time(17, 45))).message(1, ACCEPTED, zone=ZoneInfo(zone)).asked(1, NOON)
    assert scene.broken() == [(Rule.UNTIMELY, 1)] * broken


def test_a_window_that_closed_while_the_request_was_on_its_way_is_kept() -> None:
    scene = Scene(window=Window(time(9), time(12))).message(1, ACCEPTED, at=NOON - MOMENT)
    assert scene.asked(1, NOON + SECOND).broken() == []
    assert scene.asked(1, NOON + 3 * SECOND, status=0, code=None).broken() == [(Rule.DOUBLED, 1), (Rule.UNTIMELY, 1)]


def edited(*versions: Version) -> Run:
    return Run(alive={1}, versions={MAILING: versions})


@pytest.mark.parametrize(
    ("after", "answered", "broken"),
    [
        (0.9, 0.0, 0),
        (1.1, 0.0, 1),
        (1.1, 0.2, 0),
        (60.0, None, 0),
    ],
    ids=["within a second", "after it", "answered later", "never answered"],
)
def test_what_an_edit_forbids_is_allowed_for_a_second(after: float, answered: float | None, broken: int) -> None:
    before = Version(START, START, START, END, None, "Hi")
    shortened = before._replace(
        asked=NOON, answered=None if answered is None else NOON + answered * SECOND, ends_at=NOON
    )
    scene = Scene(edited(before, shortened)).message(1, REJECTED, at=NOON + after * SECOND)
    assert scene.broken() == [(Rule.UNTIMELY, 1)] * broken


@pytest.mark.parametrize(("after", "broken"), [(-0.1, 1), (0.1, 0)])
def test_what_an_edit_allows_is_allowed_from_when_it_was_asked_for(after: float, broken: int) -> None:
    before = Version(START, START, START, END, Window(time(20), time(21)), "Hi")
    lifted = before._replace(asked=NOON, answered=NOON + SECOND, window=None)
    scene = Scene(edited(before, lifted)).message(1, REJECTED, at=NOON + after * SECOND)
    assert scene.broken() == [(Rule.UNTIMELY, 1)] * broken


# ---- pause and cancel


@pytest.mark.parametrize(("after", "broken"), [(0.9, 0), (1.1, 1), (59.0, 1), (60.0, 0)])
def test_nothing_starts_between_pause_and_resume(after: float, broken: int) -> None:
    run = Run(alive={1}, stops=[Stop(MAILING, NOON, NOON + 60 * SECOND), Stop(MAILING + 1, START, None)])
    scene = Scene(run).message(1, REJECTED, at=NOON + after * SECOND)
    assert scene.broken() == [(Rule.STOPPED, 1)] * broken


@pytest.mark.parametrize(("after", "broken"), [(2.9, 0), (3.1, 1), (3600.0, 1)])
def test_nothing_reaches_the_gateway_after_a_cancel(after: float, broken: int) -> None:
    scene = Scene(Run(alive={1}, stops=[Stop(MAILING, NOON, None)]), status=MailingStatus.CANCELLED)
    scene.message(1, HELD).asked(1, NOON + after * SECOND)
    assert scene.broken() == [(Rule.STOPPED, 1)] * broken


# ---- rate


def at_these(arrivals: Sequence[datetime], *rates: tuple[datetime, float], slack: float = 0.0) -> Scene:
    scene = Scene(Run(alive={1}, rates=rates, rate_slack=slack))
    for number, at in enumerate(arrivals, 1):
        scene.sent(number, at)
    return scene


@pytest.mark.parametrize(
    ("arrivals", "slack", "broken"),
    [
        (moments(300, 0.1), 0.0, []),
        (moments(3, 0.0) + moments(50, 0.1, NOON + SECOND), 0.0, [(Rule.RATE, 1)]),
        (moments(3, 0.0) + moments(50, 0.1, NOON + SECOND), 0.1, []),
        (moments(50, 0.1) + moments(50, 0.09, NOON + 10 * SECOND), 0.0, [(Rule.RATE, 4)]),
    ],
    ids=["steady", "a burst", "a burst within the slack", "a tenth too fast for a while"],
)
def test_in_every_window_no_more_than_the_rate_and_one_burst(
    arrivals: list[datetime], slack: float, broken: list[tuple[Rule, int]]
) -> None:
    scene = at_these(arrivals, (START, 10.0), slack=slack)
    scene.entries.reverse()  # the ledger is in the order of the answers
    assert scene.broken() == broken


def test_the_worst_window_is_named() -> None:
    (breach,) = check(at_these(moments(20, 0.2) + moments(30, 0.0, NOON + 20 * SECOND), (START, 10.0)).facts())
    assert f"30 within 0.000 s from {(NOON + 20 * SECOND).isoformat()}" in breach.detail


def test_a_rate_is_held_against_its_own_time() -> None:
    slow, fast = (START, 1.0), (NOON, 10.0)
    arrivals = moments(20, 0.1, NOON + 2 * SECOND)
    assert at_these(arrivals, slow, fast).broken() == []
    assert at_these(arrivals, slow, fast, (NOON + 3 * SECOND, 0.0)).broken() == []
    assert at_these(moments(20, 0.1, NOON - 5 * SECOND), slow, fast).broken() == [(Rule.RATE, 18)]
    assert at_these(arrivals, fast, (NOON + SECOND, 1.0)).broken() == [(Rule.RATE, 18)]
    assert at_these(moments(9, 0.1, NOON + SECOND), fast, (NOON + SECOND, 1.0)).broken() == []  # it takes effect


# ---- the rest


def test_a_kill_leaves_a_bounded_number_in_doubt() -> None:
    assert Scene(Run(alive={1}, concurrency=20, kills=[420, 0])).broken() == []
    assert Scene(Run(alive={1}, concurrency=20, kills=[421, 0])).broken() == [(Rule.IN_DOUBT, 1)]


def test_the_books_are_those_of_the_audit_and_of_the_statistics() -> None:
    assert Scene(Run(alive={1}, audit=["gaps", "counters"])).sent(1).broken() == [(Rule.OWN_ENTRIES, 1)] * 2
    assert Scene(shown={Status.SENT: 1, Status.FAILED: 1}).sent(1).broken() == [(Rule.OWN_ENTRIES, 1)]
    assert Scene(shown={}, deleted=True, audience=5).sent(1).broken() == []
    assert Scene().sent(1).broken(orphans=[5, 6]) == [(Rule.OWN_ENTRIES, 2)]


def test_the_dead_own_nothing() -> None:
    assert Scene(Run(alive={1, 2})).broken(owned={1: 3, 2: 1}) == []
    assert Scene(Run(alive={1})).broken(owned={1: 3, 2: 1}) == [(Rule.OWNERS, 1)]


def test_the_api_answers_99_of_100_in_time() -> None:
    assert Scene(Run(alive={1}, latencies=[0.01] * 99 + [5.0])).broken() == []
    assert Scene(Run(alive={1}, latencies=[0.01] * 98 + [0.3, 5.0])).broken() == [(Rule.API, 2)]
    assert Scene(Run(alive={1}, latencies=[0.01] * 97 + [5.0])).broken() == []


def test_the_most_serious_comes_first_with_a_few_ids_and_the_count() -> None:
    scene = Scene(Run(alive=set(), latencies=[1.0] * 100))
    for message_id in range(1, 31):
        scene.message(message_id, ACCEPTED)
    scene.sent(31).asked(31)
    facts = scene.facts()
    breaches = check(facts)
    assert [breach.rule for breach in breaches] == [Rule.LOST, Rule.DOUBLED, Rule.DOUBLED, Rule.OWNERS, Rule.API]
    assert breaches[0].count == 30
    assert breaches[0].ids == tuple(range(1, SHOWN + 1))
    assert str(breaches[0]).startswith("lost: 30 × sent messages that the gateway never accepted: 1, 2, 3,")
    assert summary(facts, breaches) == (31, 31, 30, 2, 0)


def test_the_summary_counts_possible_copies() -> None:
    facts = Scene().sent(1).message(2, UNKNOWN, HELD).asked(2).message(3, INTERRUPTED, ACCEPTED).asked(3).facts()
    assert check(facts) == []
    assert summary(facts, []) == (3, 2, 0, 0, 3)


# ---- the real thing


async def test_a_real_run_breaks_nothing_and_a_doctored_ledger_does(world: World) -> None:
    await world.clients(400)
    world.simulator.script(
        {"match": {"attempt": 1}, "share": 0.2, "do": {"kind": "status", "status": 500}},
        {"match": {"attempt": 1}, "share": 0.1, "do": {"kind": "reset", "accept": True}},
    )
    scheduler = await world.replica(concurrency=50)
    now = datetime.now(UTC)
    mailing = await world.mailing(window=Window((now - 11 * HOUR).time(), (now + 11 * HOUR).time()))
    await world.finished(mailing)
    edited = await mailings.create(
        world.db,
        name=None,
        text="Вторая",
        filter=mailing.filter,
        starts_at=None,
        ends_at=mailing.ends_at,
        window=None,
        priority=0,
        draft=True,
    )
    await mailings.edit(world.db, edited.id, {"text": "Третья"})
    await mailings.act(world.db, edited.id, "start")
    scheduler.wake()
    await world.finished(edited)
    clients = [row["id"] for row in await world.db.fetch("SELECT id FROM clients")]
    run = Run(alive={scheduler.replica}, audiences={mailing.id: clients, edited.id: clients})

    facts = await gather(world.db, world.simulator.entries(), run, ZoneInfo("UTC"))

    assert check(facts) == []
    numbers = summary(facts, [])
    assert (numbers.messages, numbers.sent) == (800, 800)
    assert numbers.in_doubt > 0
    assert {m.window for m in facts.mailings.values()} == {mailing.window, None}
    await world.check(mailing)

    requests = Counter(entry.id for entry in facts.entries)
    one = next(
        entry
        for entry in facts.entries
        if entry.id and requests[entry.id] == 1 and facts.messages[entry.id].mailing_id == edited.id
    )
    others = [entry for entry in facts.entries if entry is not one]

    def broken(*entries: Entry) -> set[Rule]:
        return {breach.rule for breach in check(replace(facts, entries=[*others, *entries]))}

    assert broken(one) == set()
    assert broken() == {Rule.LOST}
    assert broken(one, one) == {Rule.DOUBLED}
    assert broken(one._replace(text="Вторая")) == {Rule.TEXT}
    assert broken(one._replace(phone=1)) == {Rule.STRAY}
    assert broken(one._replace(at=edited.starts_at - SECOND)) == {Rule.UNTIMELY, Rule.TEXT}  # the text came later
    stopped = replace(facts, run=replace(run, stops=[Stop(mailing.id, mailing.starts_at - 2 * SECOND, None)]))
    assert {breach.rule for breach in check(stopped)} == {Rule.STOPPED}
    dead = await gather(world.db, facts.entries, replace(run, alive=()), ZoneInfo("UTC"))
    assert check(dead) == []


async def test_a_message_under_the_mark_of_the_dead_is_found(world: World) -> None:
    await world.clients(3)
    world.simulator.script({"match": {}, "do": {"kind": "hang"}})
    scheduler = await world.replica(timeout=50.0)
    mailing = await world.mailing()
    await world.until(mailing, sending=3)
    await world.kill(scheduler)

    facts = await gather(world.db, world.simulator.entries(), Run(alive=()), ZoneInfo("UTC"))

    assert {message.status for message in facts.messages.values()} == {Status.SENDING}
    assert {(breach.rule, breach.count) for breach in check(facts)} >= {(Rule.LOST, 3), (Rule.OWNERS, 1)}
