"""How often an address may do something, per minute, each for itself, in bounded memory; and what is logged of all."""

from __future__ import annotations

from structlog.typing import EventDict

from notifier.web.budgets import ADDRESSES_MAX, MINUTE, Budget, LogLimit


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_so_many_a_minute_and_each_address_for_itself() -> None:
    clock = Clock()
    budget = Budget(3, clock)
    assert [budget.spend("one") for _ in range(5)] == [0, 0, 0, 1, 2]
    assert budget.spend("other") == 0
    clock.now += 20.5
    assert budget.wait("one") == 40
    clock.now += MINUTE - 20.5
    assert [budget.spend("one") for _ in range(4)] == [0, 0, 0, 1]


def test_what_is_remembered_is_bounded_and_the_newest_stay() -> None:
    clock = Clock()
    budget = Budget(1, clock)
    for n in range(3 * ADDRESSES_MAX):
        budget.spend(str(n))
    assert budget.spend(str(3 * ADDRESSES_MAX - 1)) == 1
    assert budget.spend("0") == 0  # forgotten, so it has another
    assert budget.wait("nobody") == 1


def test_lines_are_so_many_at_once_and_a_second_and_the_others_are_counted(logs: list[EventDict]) -> None:
    clock = Clock()
    lines = LogLimit(rate=2.0, burst=3, clock=clock)
    assert [lines.allows() for _ in range(5)] == [True, True, True, False, False]
    clock.now += 0.5
    assert [lines.allows() for _ in range(2)] == [True, False]
    clock.now += 60.0
    assert [lines.allows() for _ in range(4)] == [True, True, True, False]
    assert [line["count"] for line in logs] == [2, 1]
