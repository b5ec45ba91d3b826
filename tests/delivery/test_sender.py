"""What the sender decides without a database: how much is in flight, and what is loaded next."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, cast
from zoneinfo import ZoneInfo

import pytest

from notifier.delivery.clock import Clock
from notifier.delivery.limits import Limits
from notifier.delivery.recorder import Recorder
from notifier.delivery.sender import FEWEST, STRIDE, Job, Sender, View, Work
from notifier.models import OnUnknown, Standing
from notifier.storage import queue
from notifier.storage.queue import BATCH_SIZE, Claimed, Loaded, Orders

NOW = datetime.now(UTC)
NOTHING = cast("Any", None)


@pytest.fixture
def sender() -> Sender:
    """One that sends a thousand a second, up to 128 at once."""
    clock = Clock()
    limits = Limits(NOTHING, "default", clock, concurrency=128, rate=0, timeout=1)
    sender = Sender(NOTHING, 1, NOTHING, limits, clock, policy=OnUnknown.RETRY, default_zone=ZoneInfo("UTC"))
    sender.inflight = 128
    sender._rate = 1_000.0
    return sender


def looks(sender: Sender, lag: float, count: int = 200) -> int:
    """How many may be in flight after so many looks that found the loop so late; as many are then."""
    for _ in range(count):
        sender.note_lag(lag)
        sender.inflight += min(0, sender._free())
    return sender.inflight + sender._free()


def test_a_late_loop_has_few_in_flight_and_all_again_when_it_is_not(sender: Sender) -> None:
    sender._duration = 0.1  # all of it by the loop
    assert looks(sender, 0.05) == FEWEST
    assert looks(sender, 0.0) == 128


def test_a_loop_that_is_late_with_a_slow_gateways_answers_goes_on(sender: Sender) -> None:
    sender._duration = 0.1
    assert looks(sender, 0.015) == 128


def test_one_late_look_changes_little_also_when_nothing_is_in_flight(sender: Sender) -> None:
    looks(sender, 0.001)
    assert looks(sender, 0.1, count=1) > 110
    sender.inflight = 0
    assert looks(sender, 0.1, count=1) > 90


def test_a_slow_gateway_is_no_leave_for_a_loop_that_is_very_late(sender: Sender) -> None:
    sender._duration = 3.0
    assert looks(sender, 0.1) == FEWEST


def test_what_is_sent_next_begins_anew(sender: Sender) -> None:
    looks(sender, 0.1)
    sender.inflight = 0
    sender.forget_lag()
    assert looks(sender, 0.001, count=1) == 128


def view(mailing_id: int, priority: int = 0) -> View:
    orders = Orders(
        version=1,
        priority=priority,
        window=None,
        text="Hi",
        text_version=1,
        ends_at=NOW + timedelta(hours=1),
    )
    return View(mailing_id, orders, ZoneInfo("UTC"))


def claimed(sender: Sender, view: View, *, seq: int = 1, size: int = BATCH_SIZE) -> int:
    """Have the sender hold a batch that nobody has looked at yet; its id."""
    batch_id = len(sender.works) + 1
    standing = Standing.WAITING if seq == 1 else Standing.RETRYING
    batch = Claimed(
        id=batch_id,
        owner=batch_id,
        mailing_id=view.id,
        due_at=NOW,
        seq=seq,
        standing=standing,
        ids=range(size),
        mark=0,
        done=0,
        late=0,
    )
    sender.works[batch_id] = Work(batch, view)
    return batch_id


def picked(sender: Sender, room: int) -> list[tuple[int, int]]:
    """(batch, how many of it) that are loaded next; they are, then."""
    strides = sender._pick(room)
    for stride in strides:
        stride.work.loaded = stride.end
    return [(stride.work.batch.id, stride.end - stride.start) for stride in strides]


def test_one_batch_of_a_mailing_is_loaded_after_the_other(sender: Sender) -> None:
    mailing = view(1)
    first, second = claimed(sender, mailing), claimed(sender, mailing)
    assert picked(sender, 400) == [(first, 400)]
    assert picked(sender, 300) == [(first, 100), (second, 200)]


def test_retries_of_a_mailing_come_before_its_first_tries(sender: Sender) -> None:
    mailing = view(1)
    first, retry = claimed(sender, mailing), claimed(sender, mailing, seq=2, size=5)
    assert picked(sender, 50) == [(retry, 5), (first, 45)]


def test_mailings_take_turns_and_share_the_room(sender: Sender) -> None:
    one, other = view(1), view(2)
    first, second = claimed(sender, one), claimed(sender, other)
    assert picked(sender, 30) == [(first, 30)]
    assert picked(sender, 30) == [(second, 30)]
    assert picked(sender, STRIDE + 20) == [(first, STRIDE), (second, 20)]
    assert picked(sender, 4 * STRIDE) == [(first, 2 * STRIDE), (second, 2 * STRIDE)]


def test_a_higher_priority_has_all_the_room(sender: Sender) -> None:
    low, urgent = claimed(sender, view(1)), claimed(sender, view(2, priority=1), size=20)
    assert picked(sender, 100) == [(urgent, 20)]
    assert picked(sender, 100) == [(low, 100)]


def test_a_mark_for_something_more_urgent_is_asked_for_at_once(sender: Sender) -> None:
    low, urgent = claimed(sender, view(1)), claimed(sender, view(2, priority=1))
    message = Loaded(1, 79_000_000_001, None, False, 0, 0, 0)
    job = Job(sender.works[low], message, 0)
    sender.works[low].staged = [job]
    sender.line_up([job])
    assert not sender.is_urged()
    sender.works[urgent].staged = [Job(sender.works[urgent], message, 0)]
    assert sender.is_urged()
    sender.line_up(sender.works[urgent].advance(1))
    assert not sender.is_urged()


async def test_a_record_is_made_for_what_is_more_urgent(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plenty may be started, and nothing else asks for a record."""
    recorder = Recorder(NOTHING, 1, sender, Clock())
    recorder._last = monotonic()
    low, urgent = claimed(sender, view(1)), claimed(sender, view(2, priority=1))
    message = Loaded(1, 79_000_000_001, None, False, 0, 0, 0)
    sender.line_up([Job(sender.works[low], message, position) for position in range(300)])
    recorded: list[int] = []

    async def record() -> None:
        recorded.append(1)

    monkeypatch.setattr(recorder, "_record", record)
    await recorder.poll()
    assert not recorded
    sender.works[urgent].staged = [Job(sender.works[urgent], message, 0)]
    await recorder.poll()
    assert recorded


async def test_news_has_the_queue_looked_into_though_there_is_enough_in_hand(
    sender: Sender, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed(sender, view(1))
    looked: list[int] = []

    async def claim(*_: Any, **__: Any) -> list[Claimed]:
        looked.append(1)
        return []

    monkeypatch.setattr(queue, "claim", claim)
    await sender._claim()
    await sender._claim()
    assert len(looked) == 1
    sender.look()
    await sender._claim()
    assert len(looked) == 2
