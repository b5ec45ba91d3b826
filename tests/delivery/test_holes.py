"""Each rule of the engine is left out once, and the test that guards it must fail; docs/invariants.md lists them.

The rules that live in SQL have theirs beside their statement: tests/storage, the tests named `test_without_…`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from datetime import UTC, datetime
from time import monotonic
from typing import Any, NamedTuple

import pytest

from notifier import policy
from notifier.cluster import control, detector
from notifier.delivery import engine, feeder, held, limits, line, recorder, sender
from notifier.models import MailingStatus, OnUnknown
from notifier.storage import ledger, queue
from notifier.storage.recording import Recorded
from tests import conftest
from tests.cluster import test_control, test_detector
from tests.delivery import test_limits, test_outcomes, test_reclaim, test_starting
from tests.delivery.conftest import World


async def _marked_when_loaded(self: feeder.Feeder, batch: held.HeldBatch, loaded: Any) -> None:
    await _stage(self, batch, loaded)
    at = datetime.now(UTC)
    granted = Recorded(batch.id, True, batch.loaded, 0, False, 0, MailingStatus.RUNNING, batch.mailing.version, at, at)
    self._line.append(batch.heard(granted), monotonic())
    self._line.renew(math.inf)


def _whatever_was_checked(*_: Any) -> sender.StartDecision:
    return sender.StartDecision.START


def _no_pause_between_observations(self: detector.FailureDetector, *given: Any) -> None:
    self._last = given[-1]
    _observe(self, *given)


async def _forget_the_late(self: recorder.Recorder) -> None:
    self._late.clear()


def _whoever_answers(self: limits.Limits, *given: Any, **more: Any) -> Any:
    return _note(self, *given, **(more | {"probe": True}))


def _again_and_again(outcome: Any, reason: Any, history: Any, _: OnUnknown, *, wait: float | None = None) -> Any:
    return _after(outcome, reason, history, OnUnknown.RETRY, wait=wait)


async def _let_go(*given: Any) -> Any:
    return [message._replace(let_go=True) for message in await _load(*given)]


def _always_trusted(self: control.ControlConnection) -> bool:
    return self._locked


async def _two_ahead(conn: Any, head: Any, *rest: Any) -> None:
    head.seq += 1
    await _write(conn, head, *rest)


_stage, _observe, _note = feeder.Feeder._stage, detector.FailureDetector.observe, limits.Limits.note
_after, _load, _write = policy.after, queue.load, ledger._write


class Hole(NamedTuple):
    """What is left out: ``place.name`` becomes ``instead``; and the test that fails then."""

    place: Any
    name: str
    instead: Any
    test: Callable[..., Any]
    arguments: dict[str, Any] = {}


HOLES: dict[str, Hole] = {
    "the watermark is committed before the request": Hole(
        feeder.Feeder,
        "_stage",
        _marked_when_loaded,
        test_starting.test_nothing_starts_before_its_watermark_is_committed,
    ),
    "the window is checked again before the request": Hole(
        sender.Sender,
        "_check",
        _whatever_was_checked,
        test_starting.test_a_last_look_before_each_start,
        {"closed": "window"},
    ),
    "the end is checked again before the request": Hole(
        sender.Sender,
        "_check",
        _whatever_was_checked,
        test_starting.test_a_last_look_before_each_start,
        {"closed": "end"},
    ),
    "a process that was stopped starts nothing": Hole(
        line, "FRESH", math.inf, test_starting.test_a_stale_record_starts_nothing
    ),
    "what was started is finished before the rest is given back": Hole(
        engine.Engine,
        "is_idle",
        lambda _: True,
        test_reclaim.test_stop_finishes_what_is_in_flight_and_gives_the_rest_back,
    ),
    "a late result is appended": Hole(
        recorder.Recorder, "_append_late", _forget_the_late, test_reclaim.test_a_late_acceptance_cancels_the_retry
    ),
    "the ledger is dense": Hole(ledger, "_write", _two_ahead, test_reclaim.test_a_late_acceptance_cancels_the_retry),
    "with hold a message in doubt is not sent again by itself": Hole(
        policy,
        "after",
        _again_and_again,
        test_outcomes.test_hold_never_sends_again_by_itself_and_an_operator_decides,
    ),
    "a message in doubt when hold begins is not sent again by itself": Hole(
        queue, "load", _let_go, test_outcomes.test_a_change_to_hold_holds_what_is_queued_in_doubt
    ),
    "only the probe closes the breaker": Hole(
        limits.Limits, "note", _whoever_answers, test_limits.test_only_the_probes_answer_closes_an_open_breaker
    ),
    "late use of a token is charged": Hole(limits, "SLOW", 0.0, test_limits.test_at_a_low_rate_lateness_is_charged),
    "a replica that was cut off judges no other": Hole(
        detector.FailureDetector,
        "observe",
        _no_pause_between_observations,
        test_detector.test_who_was_cut_off_knows_nothing_and_watches_anew,
    ),
    "a free lock counts only at the second check": Hole(
        detector, "FREE_FOR", 0.0, test_detector.test_whose_lock_is_free_at_two_looks_is_dead
    ),
    "a lock counts only after the own notification came back": Hole(
        control.ControlConnection,
        "held",
        property(_always_trusted),
        test_control.test_who_does_not_hear_itself_does_not_say_that_it_holds_a_lock,
    ),
    "locks seen over a connection younger than 5 s do not count": Hole(
        control,
        "TRUSTED_AFTER",
        0.0,
        test_control.test_a_connection_that_is_cut_is_made_again_and_a_young_one_shows_nothing,
    ),
}


@pytest.mark.parametrize("rule", HOLES)
async def test_without_its_rule_a_test_fails(world: World, monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    place, name, instead, test, arguments = HOLES[rule]
    monkeypatch.setattr(place, name, instead)
    monkeypatch.setattr(conftest, "PATIENCE", 2.0)
    known = {"world": world, "db": world.db, "monkeypatch": monkeypatch}
    names = test.__code__.co_varnames[: test.__code__.co_argcount]
    given = {name: known[name] for name in names if name in known} | arguments

    async def run() -> None:
        outcome = test(**given)
        if outcome is not None:
            await outcome

    with pytest.raises(AssertionError):
        await run()
