"""The rules of the oracle about times: start, end, local hours, edits, pause, cancel and rate."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from chaos.oracle import Rule, Run, Stop, Version, check
from notifier.models import MailingStatus, Window
from tests.chaos.oracle_scenes import (
    ACCEPTED,
    END,
    HELD,
    INTERRUPTED,
    MAILING,
    NOON,
    NOT_STARTED,
    REJECTED,
    SECOND,
    START,
    Scene,
    moments,
)

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
