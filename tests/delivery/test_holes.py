"""Each rule of the engine is left out once, and the test that guards it must fail; docs/invariants.md lists them.

The rules that live in SQL have theirs beside their statement: tests/storage, the tests named `test_without_…`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from notifier.delivery import backoff, limits, recorder, scheduler, sender, session
from notifier.models import OnUnknown
from notifier.storage import ledger, queue
from tests import conftest
from tests.delivery import test_delivery, test_session, test_watch
from tests.delivery.conftest import World


async def _started_when_loaded(self: sender.Sender, work: sender.Work, stride: Any) -> None:
    await _stage(self, work, stride)
    jobs, work.staged = work.staged, []
    self.line_up(jobs)
    self.confirmed = math.inf
    self.pump()


def _whatever_the_books_say(*_: Any) -> sender.Verdict:
    return sender.START


def _no_pause_between_looks(self: scheduler.Watch, *given: Any) -> None:
    self._last = given[-1]
    _look(self, *given)


async def _forget_the_late(self: recorder.Recorder) -> None:
    self._late.clear()


def _whoever_answers(self: limits.Limits, *given: Any, **more: Any) -> Any:
    return _note(self, *given, **(more | {"probe": True}))


def _again_and_again(outcome: Any, reason: Any, history: Any, _: OnUnknown, *, wait: float | None = None) -> Any:
    return _after(outcome, reason, history, OnUnknown.RETRY, wait=wait)


async def _let_go(*given: Any) -> Any:
    return [message._replace(let_go=True) for message in await _load(*given)]


def _always_trusted(self: session.Session) -> bool:
    return self._locked


async def _two_ahead(conn: Any, head: Any, *rest: Any) -> None:
    head.seq += 1
    await _write(conn, head, *rest)


_stage, _look, _note, _write = sender.Sender._stage, scheduler.Watch.look, limits.Limits.note, ledger._write
_after, _load = backoff.after, queue.load


class Hole(NamedTuple):
    """What is left out: ``place.name`` becomes ``instead``; and the test that fails then."""

    place: Any
    name: str
    instead: Any
    test: Callable[..., Any]
    arguments: dict[str, Any] = {}


HOLES: dict[str, Hole] = {
    "the mark is committed before the request": Hole(
        sender.Sender, "_stage", _started_when_loaded, test_delivery.test_nothing_starts_before_its_mark_is_committed
    ),
    "the window is looked at again before the request": Hole(
        sender.Sender,
        "_look_at",
        _whatever_the_books_say,
        test_delivery.test_a_last_look_before_each_start,
        {"closed": "window"},
    ),
    "the end is looked at again before the request": Hole(
        sender.Sender,
        "_look_at",
        _whatever_the_books_say,
        test_delivery.test_a_last_look_before_each_start,
        {"closed": "end"},
    ),
    "who was stopped starts nothing": Hole(sender, "FRESH", math.inf, test_delivery.test_a_stale_record_starts_nothing),
    "what was started is finished before the rest is given back": Hole(
        sender.Sender,
        "idle",
        lambda _: True,
        test_delivery.test_stop_finishes_what_is_in_flight_and_gives_the_rest_back,
    ),
    "a result that comes late is appended": Hole(
        recorder.Recorder, "_append_late", _forget_the_late, test_delivery.test_a_late_acceptance_cancels_the_retry
    ),
    "the ledger is dense": Hole(ledger, "_write", _two_ahead, test_delivery.test_a_late_acceptance_cancels_the_retry),
    "in doubt, and hold: never again by itself": Hole(
        backoff,
        "after",
        _again_and_again,
        test_delivery.test_hold_never_sends_again_by_itself_and_an_operator_decides,
    ),
    "in doubt when hold begins: never again by itself": Hole(
        queue, "load", _let_go, test_delivery.test_a_change_to_hold_holds_what_is_queued_in_doubt
    ),
    "only the probe closes the breaker": Hole(
        limits.Limits, "note", _whoever_answers, test_delivery.test_only_the_probes_answer_closes_an_open_breaker
    ),
    "late use of a token is charged": Hole(limits, "SLOW", 0.0, test_delivery.test_at_a_low_rate_lateness_is_charged),
    "who was cut off judges nobody": Hole(
        scheduler.Watch,
        "look",
        _no_pause_between_looks,
        test_watch.test_who_was_cut_off_knows_nothing_and_watches_anew,
    ),
    "a free lock counts at the second look": Hole(
        scheduler, "FREE_FOR", 0.0, test_watch.test_whose_lock_is_free_at_two_looks_is_dead
    ),
    "a lock counts only for who hears itself": Hole(
        session.Session,
        "held",
        property(_always_trusted),
        test_session.test_who_does_not_hear_itself_does_not_say_that_it_holds_a_lock,
    ),
    "a young connection shows nothing": Hole(
        session,
        "TRUSTED_AFTER",
        0.0,
        test_session.test_a_connection_that_is_cut_is_made_again_and_a_young_one_shows_nothing,
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
