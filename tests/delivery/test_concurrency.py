"""How many requests may be under way while the event loop is late."""

from __future__ import annotations

from typing import Any, cast

import pytest

from notifier.cluster.loops import Signal
from notifier.delivery.clock import Clock
from notifier.delivery.concurrency import FEWEST, Concurrency
from notifier.delivery.limits import Limits

NOTHING = cast("Any", None)


class Gateway:
    """Requests of a gateway with a limit of 128 under way, 1,000 started a second, each taking so many seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, duration: float = 0.0) -> None:
        self.now = 0.0
        monkeypatch.setattr("time.monotonic", lambda: self.now)
        limits = Limits(
            NOTHING,
            "default",
            Clock(),
            concurrency=128,
            rate=0,
            timeout=1,
            identity=lambda: "",
            tell=Signal(),
            changed=Signal(),
        )
        self.concurrency = Concurrency(limits)
        for _ in range(50):  # until the smoothed figures say so
            for _ in range(1_000):
                self.concurrency.begin()
                self.concurrency.end(duration)
            self.now += 1.0
            self.concurrency.measure_rate(self.now)
        for _ in range(128):
            self.concurrency.begin()

    def after(self, lag: float, count: int = 200) -> int:
        """Return how many may be under way after so many measurements that found the loop so late; as many are then."""
        for _ in range(count):
            self.concurrency.adjust(lag)
            while self.concurrency.free() < 0:
                self.concurrency.inflight -= 1
        return self.concurrency.inflight + self.concurrency.free()


def test_a_late_loop_has_few_in_flight_and_all_again_when_it_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(monkeypatch, 0.1)  # all of it by the loop
    assert gateway.after(0.05) == FEWEST
    assert gateway.after(0.0) == 128


def test_a_loop_that_is_late_with_a_slow_gateways_answers_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Gateway(monkeypatch, 0.1).after(0.015) == 128


def test_one_late_measurement_changes_little_also_when_nothing_is_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(monkeypatch)
    gateway.after(0.001)
    assert gateway.after(0.1, count=1) > 110
    gateway.concurrency.inflight = 0
    assert gateway.after(0.1, count=1) > 90


def test_a_slow_gateway_is_no_leave_for_a_loop_that_is_very_late(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Gateway(monkeypatch, 3.0).after(0.1) == FEWEST


def test_what_is_sent_next_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = Gateway(monkeypatch)
    gateway.after(0.1)
    gateway.concurrency.inflight = 0
    gateway.concurrency.reset()
    assert gateway.after(0.001, count=1) == 128
