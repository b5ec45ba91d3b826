"""From an outcome and a message's history to what comes next."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import product

import pytest

from notifier import policy
from notifier.models import MESSAGE_TRANSITIONS, REQUESTS, MessageState, OnUnknown, Outcome, Reason
from notifier.policy import History, after

RETRY, HOLD = OnUnknown.RETRY, OnUnknown.HOLD
NEW = History()

CASES = [
    # outcome, history, policy, state
    (Outcome.ACCEPTED, NEW, RETRY, MessageState.SENT),
    (Outcome.REJECTED, NEW, RETRY, MessageState.FAILED),
    (Outcome.DECLINED, NEW, RETRY, MessageState.RETRYING),
    (Outcome.DECLINED, History(counted=4, declined=4), RETRY, MessageState.FAILED),
    (Outcome.DECLINED, History(counted=1, in_doubt=1), RETRY, MessageState.DOUBTFUL),
    (Outcome.THROTTLED, History(counted=49), RETRY, MessageState.RETRYING),
    (Outcome.UNAVAILABLE, NEW, RETRY, MessageState.RETRYING),
    (Outcome.UNAVAILABLE, History(counted=49), RETRY, MessageState.FAILED),
    (Outcome.UNAVAILABLE, History(counted=49, in_doubt=1), RETRY, MessageState.UNKNOWN),
    (Outcome.MISCONFIGURED, History(counted=49), RETRY, MessageState.RETRYING),
    (Outcome.UNKNOWN, NEW, RETRY, MessageState.DOUBTFUL),
    (Outcome.UNKNOWN, NEW, HOLD, MessageState.UNKNOWN),
    (Outcome.UNKNOWN, History(counted=2, in_doubt=2), RETRY, MessageState.UNKNOWN),
    (Outcome.INTERRUPTED, NEW, RETRY, MessageState.DOUBTFUL),
    (Outcome.INTERRUPTED, NEW, HOLD, MessageState.UNKNOWN),
]


@pytest.mark.parametrize(("outcome", "history", "policy", "state"), CASES)
def test_the_table(outcome: Outcome, history: History, policy: OnUnknown, state: MessageState) -> None:
    next_ = after(outcome, None, history, policy)
    assert next_.state is state
    assert (next_.wait is not None) == (state in (MessageState.RETRYING, MessageState.DOUBTFUL))


def test_an_outage_costs_no_attempt() -> None:
    next_ = after(Outcome.UNAVAILABLE, Reason.OUTAGE, History(counted=49), RETRY)
    assert next_.state is MessageState.RETRYING


def test_the_cap_gives_its_own_reason() -> None:
    assert after(Outcome.UNAVAILABLE, Reason.DNS, History(counted=49), RETRY).reason is Reason.ATTEMPTS_EXHAUSTED


def test_a_given_wait_overrules_the_backoff() -> None:
    assert after(Outcome.THROTTLED, None, NEW, RETRY, wait=7.0).wait == 7.0


@pytest.mark.parametrize(("tries", "most"), [(0, 2), (1, 2), (2, 4), (3, 8), (8, 256), (9, 300), (50, 300)])
def test_the_wait_is_a_random_part_of_a_growing_time(tries: int, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "BASE", 2.0)
    monkeypatch.setattr(policy, "CAP", 300.0)
    waits = [policy.backoff(tries) for _ in range(500)]
    assert 0 <= min(waits) < most * 0.1
    assert most * 0.9 < max(waits) <= most


@pytest.mark.parametrize(("wait", "grid"), [(0.0, 0.25), (1.1, 0.25), (17.3, 1.0), (111.1, 5.0)])
def test_due_times_are_rounded_up_so_that_retries_share_batches(wait: float, grid: float) -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, 130_000, UTC)
    due = policy.due_at(now, wait)
    assert 0 <= due.timestamp() - now.timestamp() - wait < grid
    assert due.timestamp() % grid == 0


def test_whatever_comes_next_is_a_legal_step() -> None:
    """Each outcome of a request, with each history and policy, from each state in which a request may start."""
    histories = [History(*counts) for counts in product((0, 4, 49), (0, 4), (0, 1, 2, 3))]
    starts = {MessageState.WAITING, MessageState.RETRYING, MessageState.DOUBTFUL}
    for state, outcome, history, on_unknown in product(starts, REQUESTS, histories, OnUnknown):
        if (state is MessageState.DOUBTFUL) == (history.in_doubt > 0):
            assert after(outcome, None, history, on_unknown).state in MESSAGE_TRANSITIONS[state]


def test_whatever_a_late_result_says_is_a_legal_step() -> None:
    results = {MessageState.RETRYING, MessageState.DOUBTFUL, MessageState.SENT, MessageState.FAILED}
    for last, new, doubts in product(MessageState, results, (0, 1, 2)):
        assert policy.after_late(last, new, doubts=doubts) in MESSAGE_TRANSITIONS[last]
