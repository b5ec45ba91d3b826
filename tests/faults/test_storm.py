"""The storm: its plan comes from the seed alone, it tells the oracle what was so, and a short one breaks nothing."""

from __future__ import annotations

import inspect
from collections import Counter
from datetime import UTC, datetime, time, timedelta
from typing import Any

from chaos import oracle, storm
from chaos.plan import QUIET, plan
from notifier.models import Window

T0 = datetime(2030, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def test_a_plan_comes_from_its_seed_alone() -> None:
    assert plan(7, 600) == plan(7, 600)
    assert plan(7, 600) != plan(8, 600)


def test_ten_minutes_hold_what_they_are_to_hold() -> None:
    stretches = plan(1, 600)
    steps = [step for stretch in stretches for step in stretch.steps]
    kinds = Counter(step.kind for step in steps)
    kills = sum(len(step.given["slots"]) for step in steps if step.kind == "kill")
    assert kills + sum(stretch.quiet for stretch in stretches) >= 110
    assert kinds["restart"] >= 24
    assert sum(stretch.seconds + QUIET for stretch in stretches) <= 600
    assert all(0 <= step.at <= stretch.seconds for stretch in stretches for step in stretch.steps)


def test_every_step_is_something_that_can_be_done() -> None:
    for stretch in plan(3, 600):
        for step in stretch.steps:
            inspect.signature(getattr(storm.Storm, step.kind)).bind(None, **step.given)


def state(number: int, version: int, status: str, text: str = "one", window: Any = (None, None)) -> dict[str, Any]:
    return {
        "at": at(number), "mailing_id": 5, "version": version, "status": status, "starts_at": T0, "ends_at": at(9_999),
        "window_from": window[0], "window_to": window[1], "text": text,
    }  # fmt: skip


def test_versions_and_stops_are_told_as_they_were_committed() -> None:
    hours = (time(9), time(21))
    rows = [
        state(0, 1, "scheduled"),
        state(1, 1, "running"),
        state(10, 2, "running", "two"),  # its answer was lost, but a later one came
        state(20, 3, "paused", "two"),
        state(30, 4, "running", "two", hours),
        state(40, 5, "cancelled", "two", hours),  # nobody was answered
    ]
    versions, stops = storm.told(rows, {(5, 1): at(0.5), (5, 3): at(20.5), (5, 4): at(30.5)})
    assert [(v.asked, v.answered, v.text, v.window) for v in versions[5]] == [
        (at(0), at(0.5), "one", None),
        (at(1), at(0.5), "one", None),
        (at(10), at(20.5), "two", None),
        (at(20), at(20.5), "two", None),
        (at(30), at(30.5), "two", Window(*hours)),
        (at(40), None, "two", Window(*hours)),
    ]
    assert stops == [oracle.Stop(5, at(20.5), at(30))]


def test_a_short_storm_breaks_nothing() -> None:
    figures = storm.storm(97, 8, size=0.1)
    assert figures.breaches == []
    assert (figures.lost, figures.doubled) == (0, 0)
    assert figures.sent > 0
