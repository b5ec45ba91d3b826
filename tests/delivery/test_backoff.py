"""From an outcome and a message's history to what comes next."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from notifier.delivery import backoff
from notifier.delivery.backoff import History, after
from notifier.models import OnUnknown, Outcome, Reason, Standing

RETRY, HOLD = OnUnknown.RETRY, OnUnknown.HOLD
NEW = History()

CASES = [
    # outcome, history, policy, standing
    (Outcome.ACCEPTED, NEW, RETRY, Standing.SENT),
    (Outcome.REJECTED, NEW, RETRY, Standing.FAILED),
    (Outcome.DECLINED, NEW, RETRY, Standing.RETRYING),
    (Outcome.DECLINED, History(counted=4, declined=4), RETRY, Standing.FAILED),
    (Outcome.DECLINED, History(counted=1, in_doubt=1), RETRY, Standing.DOUBTFUL),
    (Outcome.THROTTLED, History(counted=49), RETRY, Standing.RETRYING),
    (Outcome.UNAVAILABLE, NEW, RETRY, Standing.RETRYING),
    (Outcome.UNAVAILABLE, History(counted=49), RETRY, Standing.FAILED),
    (Outcome.UNAVAILABLE, History(counted=49, in_doubt=1), RETRY, Standing.UNKNOWN),
    (Outcome.MISCONFIGURED, History(counted=49), RETRY, Standing.RETRYING),
    (Outcome.UNKNOWN, NEW, RETRY, Standing.DOUBTFUL),
    (Outcome.UNKNOWN, NEW, HOLD, Standing.UNKNOWN),
    (Outcome.UNKNOWN, History(counted=2, in_doubt=2), RETRY, Standing.UNKNOWN),
    (Outcome.INTERRUPTED, NEW, RETRY, Standing.DOUBTFUL),
    (Outcome.INTERRUPTED, NEW, HOLD, Standing.UNKNOWN),
]


@pytest.mark.parametrize(("outcome", "history", "policy", "standing"), CASES)
def test_the_table(outcome: Outcome, history: History, policy: OnUnknown, standing: Standing) -> None:
    next_ = after(outcome, None, history, policy)
    assert next_.standing is standing
    assert (next_.wait is not None) == (standing in (Standing.RETRYING, Standing.DOUBTFUL))


def test_an_outage_costs_no_attempt() -> None:
    next_ = after(Outcome.UNAVAILABLE, Reason.OUTAGE, History(counted=49), RETRY)
    assert next_.standing is Standing.RETRYING


def test_the_cap_gives_its_own_reason() -> None:
    assert after(Outcome.UNAVAILABLE, Reason.DNS, History(counted=49), RETRY).reason is Reason.ATTEMPTS_EXHAUSTED


def test_a_given_wait_overrules_the_backoff() -> None:
    assert after(Outcome.THROTTLED, None, NEW, RETRY, wait=7.0).wait == 7.0


@pytest.mark.parametrize(("tries", "most"), [(0, 2), (1, 2), (2, 4), (3, 8), (8, 256), (9, 300), (50, 300)])
def test_the_wait_is_a_random_part_of_a_growing_time(tries: int, most: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "BASE", 2.0)
    monkeypatch.setattr(backoff, "CAP", 300.0)
    waits = [backoff.backoff(tries) for _ in range(500)]
    assert 0 <= min(waits) < most * 0.1
    assert most * 0.9 < max(waits) <= most


@pytest.mark.parametrize(("wait", "grid"), [(0.0, 0.25), (1.1, 0.25), (17.3, 1.0), (111.1, 5.0)])
def test_due_times_are_rounded_up_so_that_retries_share_batches(wait: float, grid: float) -> None:
    now = datetime(2026, 1, 1, 12, 0, 0, 130_000, UTC)
    due = backoff.due_at(now, wait)
    assert 0 <= due.timestamp() - now.timestamp() - wait < grid
    assert due.timestamp() % grid == 0
