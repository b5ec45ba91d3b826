"""What happens to a message next: from an outcome and its history to its state and the time of its next try. Pure.

The counts of a history are made in SQL (storage/queue.py), from the sets of outcomes that stand here.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime

from notifier.models import IN_DOUBT, MAX_IN_DOUBT, OPEN_STATES, MessageState, OnUnknown, Outcome, Reason

# Full jitter: a try comes after a random part of base × 2**(tries − 1), at most the cap. It spreads a herd best.
BASE, CAP = 2.0, 300.0
# A recipient that a gateway declines five times in a row of growing waits is not going to be accepted.
MAX_DECLINED = 5
# At the cap of 300 s that is about four hours of tries; an outage (the breaker open) costs none.
MAX_COUNTED = 50

# Outcomes that count against MAX_COUNTED, and raise the wait; an outage does not, whatever the outcome.
COUNTED = frozenset({Outcome.DECLINED, Outcome.UNAVAILABLE, Outcome.UNKNOWN, Outcome.INTERRUPTED})
# After these the gateway's own pause holds a message back, and no backoff.
HELD_BACK = frozenset({Outcome.THROTTLED, Outcome.MISCONFIGURED})


@dataclass(frozen=True, slots=True)
class History:
    """What a message has behind it, this attempt not included (see storage.queue.Loaded).

    ``in_doubt`` is the number of requests that may have been taken.
    """

    counted: int = 0
    declined: int = 0
    in_doubt: int = 0


@dataclass(frozen=True, slots=True)
class Next:
    """The state after an attempt; ``wait`` is in seconds, None when the message is through."""

    state: MessageState
    reason: Reason | None
    wait: float | None


def after(
    outcome: Outcome, reason: Reason | None, history: History, on_unknown: OnUnknown, *, wait: float | None = None
) -> Next:
    """Return what the table of outcomes in docs/delivery.md says; ``wait`` overrules the backoff's (seconds).

    ``reason`` is handed through, unless a limit is reached. A refusal says nothing of an earlier request that may have
    been taken: where there is one, what is given up is unknown and not failed, which says "surely not sent".
    """
    in_doubt = history.in_doubt + (outcome in IN_DOUBT)
    pending = MessageState.DOUBTFUL if in_doubt else MessageState.RETRYING
    given_up = MessageState.UNKNOWN if in_doubt else MessageState.FAILED
    if outcome is Outcome.ACCEPTED:
        return Next(MessageState.SENT, reason, None)
    if outcome is Outcome.REJECTED:
        return Next(given_up, reason, None)
    if outcome is Outcome.DECLINED and reason is not Reason.ACCOUNT_REFUSED and history.declined + 1 >= MAX_DECLINED:
        return Next(given_up, reason, None)
    if outcome in IN_DOUBT and (on_unknown is OnUnknown.HOLD or in_doubt >= MAX_IN_DOUBT):
        return Next(MessageState.UNKNOWN, reason, None)
    counted = history.counted + (outcome in COUNTED and reason is not Reason.OUTAGE)
    if counted >= MAX_COUNTED:
        return Next(given_up, Reason.ATTEMPTS_EXHAUSTED, None)
    if wait is None:
        wait = 0.0 if outcome in HELD_BACK else backoff(counted)
    return Next(pending, reason, wait)


def after_late(last: MessageState, new: MessageState, *, doubts: int) -> MessageState:
    """Return the state after a late result: an acceptance always counts, and nothing but it overrules a final one.

    `unknown` is final only for want of better, so whatever is known later overrules it. ``doubts`` are the requests
    that left open whether the text was sent; the late result settles one of them, and says nothing of the others.
    """
    if last in (MessageState.SENT, MessageState.DELIVERED, MessageState.UNDELIVERED):
        return last
    if new is MessageState.SENT or last in OPEN_STATES or last is MessageState.UNKNOWN:
        return _IN_DOUBT.get(new, new) if doubts > 1 else new
    return last


# What a result that says "surely not sent" of one request leaves where another one is in doubt.
_IN_DOUBT = {MessageState.RETRYING: MessageState.DOUBTFUL, MessageState.FAILED: MessageState.UNKNOWN}


def backoff(tries: int) -> float:
    """Seconds until the next try after ``tries`` counted ones."""
    return random.uniform(0, min(CAP, BASE * 2 ** (max(1, tries) - 1)))


def due_at(now: datetime, wait: float) -> datetime:
    """``wait`` seconds after ``now``, rounded up so that retries share batches: to 1/4 s, later to 1 s and 5 s."""
    grid = 0.25 if wait < 4 else 1.0 if wait < 60 else 5.0
    return datetime.fromtimestamp(math.ceil((now.timestamp() + wait) / grid) * grid, UTC)
