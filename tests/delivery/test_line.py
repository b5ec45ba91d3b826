"""Marked messages wait for their start: whose turn it is, who leaves, and when anybody may start."""

from __future__ import annotations

from zoneinfo import ZoneInfo

from notifier.delivery.held import HeldBatch, HeldBatches, PendingSend
from notifier.delivery.line import FRESH, LOWEST_TURN, Line
from notifier.storage.queue import Loaded
from tests.delivery.scenes import claimed


def batch(number: int, priority: int = 0) -> HeldBatch:
    return HeldBatches(ZoneInfo("UTC")).add(claimed(number, number, priority=priority))


def sends(of: HeldBatch, count: int) -> list[PendingSend]:
    return [PendingSend(of, Loaded(i, 79_000_000_001, None, False, 0, 0, 0), i) for i in range(count)]


def test_the_highest_priority_is_first_and_every_tenth_time_the_lowest() -> None:
    line = Line()
    line.append(sends(batch(1), 5), 0.0)
    line.append(sends(batch(2, priority=3), 30), 0.0)
    assert (len(line), line.top_priority) == (35, 3)
    started = []
    while line:
        send = line.first()
        line.leave(send, started=True)
        started.append(send.priority)
    assert started[: LOWEST_TURN * 3] == [0, *[3] * (LOWEST_TURN - 1)] * 3
    assert started.count(0) == 5


def test_the_last_of_a_priority_says_so() -> None:
    """What waits for its watermark may be more urgent than what is left."""
    line = Line()
    line.append(sends(batch(1), 2), 0.0)
    assert [line.leave(line.first(), started=False) for _ in range(2)] == [False, True]


def test_a_batch_leaves_and_so_does_who_waits_for_long() -> None:
    line, lost, other = Line(), batch(1), batch(2)
    line.append(sends(lost, 3), 1.0)
    line.append(sends(other, 2), 2.0)
    line.append(sends(other, 1), 9.0)
    assert len(line.leave_with(lost)) == 3
    assert [send.marked_at for send in line.leave_older(5.0)] == [2.0, 2.0]
    assert (len(line), line.leave_older(5.0)) == (1, [])


def test_it_is_open_for_a_second_after_a_record() -> None:
    line = Line()
    line.renew(100.0)
    assert not line.is_open(100.0)  # nobody waits
    line.append(sends(batch(1), 1), 100.0)
    assert line.is_open(100.0 + FRESH)
    assert not line.is_open(100.1 + FRESH)
