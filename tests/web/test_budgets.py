"""How often an address may do something: per minute, each for itself, in bounded memory."""

from __future__ import annotations

from notifier.web.budgets import ADDRESSES_MAX, MINUTE, Budget


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
