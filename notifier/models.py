"""The nouns of the service, and the statuses with their legal transitions, written once.

Read this file first: the delivery story goes on in `policy.py`, `storage/queue.py`, `delivery/feeder.py`,
`delivery/sender.py`, `delivery/recorder.py` and `storage/recording.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime, time
from enum import StrEnum
from typing import Any, Self

INT64_MAX = 2**63 - 1


class MailingStatus(StrEnum):
    """Where a mailing stands."""

    DRAFT = "draft"
    SCHEDULED = "scheduled"
    RUNNING = "running"
    PAUSED = "paused"
    FINISHED = "finished"
    CANCELLED = "cancelled"


# verb → (from any of these, to this); what is not listed is a 409. People have `start`, `pause`, `resume` and `cancel`.
# `resume_unbegun` is what `resume` does when nobody was chosen yet; `begin` and `finish` are the scheduler's; `reopen`
# is done by a late result or a decision that has a message sent again (storage/ledger.py).
MAILING_TRANSITIONS: dict[str, tuple[frozenset[MailingStatus], MailingStatus]] = {
    "start": (frozenset({MailingStatus.DRAFT}), MailingStatus.SCHEDULED),
    "begin": (frozenset({MailingStatus.SCHEDULED}), MailingStatus.RUNNING),
    "pause": (frozenset({MailingStatus.SCHEDULED, MailingStatus.RUNNING}), MailingStatus.PAUSED),
    "resume": (frozenset({MailingStatus.PAUSED}), MailingStatus.RUNNING),
    "resume_unbegun": (frozenset({MailingStatus.PAUSED}), MailingStatus.SCHEDULED),
    "cancel": (
        frozenset({MailingStatus.DRAFT, MailingStatus.SCHEDULED, MailingStatus.RUNNING, MailingStatus.PAUSED}),
        MailingStatus.CANCELLED,
    ),
    "finish": (
        frozenset({MailingStatus.SCHEDULED, MailingStatus.RUNNING, MailingStatus.PAUSED}),
        MailingStatus.FINISHED,
    ),
    "reopen": (frozenset({MailingStatus.FINISHED}), MailingStatus.RUNNING),
}

OVER = frozenset({MailingStatus.FINISHED, MailingStatus.CANCELLED})


class StatusReason(StrEnum):
    """Why a mailing stands where it stands: the closed list behind ``status_reason``."""

    # how it finished
    COMPLETED = "completed"
    ENDED = "ended"  # its end came first
    NOBODY_MATCHED = "nobody_matched"
    # what a scheduled or running one waits for
    GATEWAY_UNCONFIGURED = "gateway_unconfigured"
    GATEWAY_PAUSED = "gateway_paused"
    GATEWAY_MISCONFIGURED = "gateway_misconfigured"
    GATEWAY_UNAVAILABLE = "gateway_unavailable"  # its breaker is not closed
    GATEWAY_THROTTLED = "gateway_throttled"  # it asked for a pause
    PAUSED_BY_SETTINGS = "paused_by_settings"  # PAUSE_ALL
    HELD_AS_COPY = "held_as_copy"  # the database was last used elsewhere and is not released
    WINDOW = "window"  # the local hours of all that are left


class MessageState(StrEnum):
    """What the ledger and the counters say of a message (the PostgreSQL type ``message_state``).

    It is the status after the message's last ledger row; a message without a row is ``waiting``.
    ``retrying`` was surely not sent yet, ``doubtful`` may have been. Both are shown as ``retrying`` while the mailing
    is not over.
    """

    WAITING = "waiting"
    RETRYING = "retrying"
    DOUBTFUL = "doubtful"
    SENT = "sent"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"
    FAILED = "failed"
    SUPPRESSED = "suppressed"
    UNKNOWN = "unknown"


# States from which the message goes on: it is in a batch as long as it stands there.
OPEN_STATES = frozenset({MessageState.WAITING, MessageState.RETRYING, MessageState.DOUBTFUL})


# What an attempt, or a late result, may make of a message that is not settled.
_ATTEMPTED = frozenset(
    {MessageState.RETRYING, MessageState.DOUBTFUL, MessageState.SENT, MessageState.FAILED, MessageState.UNKNOWN}
)
# state → the states that the next row of the ledger may lead to; every row is one such step, and the audit checks each.
# A row may leave the state as it is: something was tried, or not started, and the message goes on as before.
MESSAGE_TRANSITIONS: dict[MessageState, frozenset[MessageState]] = {
    MessageState.WAITING: _ATTEMPTED | {MessageState.WAITING, MessageState.SUPPRESSED},
    MessageState.RETRYING: _ATTEMPTED | {MessageState.SUPPRESSED},
    # A late result may settle the doubt: surely not sent. Only 0.1.0 suppressed what was in doubt.
    MessageState.DOUBTFUL: _ATTEMPTED | {MessageState.SUPPRESSED},
    MessageState.UNKNOWN: _ATTEMPTED,
    # Only an acceptance overrules what was final; what is sent stays sent.
    MessageState.FAILED: frozenset({MessageState.FAILED, MessageState.SENT}),
    MessageState.SUPPRESSED: frozenset({MessageState.SUPPRESSED, MessageState.SENT}),
    MessageState.SENT: frozenset({MessageState.SENT, MessageState.DELIVERED, MessageState.UNDELIVERED}),
    MessageState.DELIVERED: frozenset({MessageState.DELIVERED}),
    MessageState.UNDELIVERED: frozenset({MessageState.UNDELIVERED, MessageState.DELIVERED}),
}


class Status(StrEnum):
    """The status of a message as everybody outside sees it."""

    WAITING = "waiting"
    SENDING = "sending"
    RETRYING = "retrying"
    SENT = "sent"
    DELIVERED = "delivered"
    UNDELIVERED = "undelivered"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"
    SUPPRESSED = "suppressed"


def status_of(state: MessageState, mailing: MailingStatus, *, sending: bool = False) -> Status:
    """The shown status of a message: from its state, its mailing, and whether it is under a watermark without a row."""
    if sending:
        return Status.SENDING
    if state not in OPEN_STATES:
        return Status(state.value)
    if mailing not in OVER:
        return Status.WAITING if state is MessageState.WAITING else Status.RETRYING
    if state is MessageState.DOUBTFUL:
        return Status.UNKNOWN
    return Status.EXPIRED if mailing is MailingStatus.FINISHED else Status.CANCELLED


class Outcome(StrEnum):
    """What became of one attempt (the PostgreSQL type ``outcome``).

    Two questions decide: may the text have been sent (no, maybe, yes), and whose fault is it (the message's, the
    recipient's, the gateway's)? Those from ``not_started`` on are entries of our own, not answers of a gateway.
    """

    ACCEPTED = "accepted"
    REJECTED = "rejected"
    DECLINED = "declined"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"
    MISCONFIGURED = "misconfigured"
    UNKNOWN = "unknown"
    INTERRUPTED = "interrupted"
    NOT_STARTED = "not_started"
    SUPPRESSED = "suppressed"
    RESOLVED = "resolved"


# Outcomes of a request that was, or may have been, started: what `Message.attempts` counts.
REQUESTS = frozenset(
    {
        Outcome.ACCEPTED,
        Outcome.REJECTED,
        Outcome.DECLINED,
        Outcome.THROTTLED,
        Outcome.UNAVAILABLE,
        Outcome.MISCONFIGURED,
        Outcome.UNKNOWN,
        Outcome.INTERRUPTED,
    }
)
# Outcomes that leave open whether the text was sent; each is one possible copy.
IN_DOUBT = frozenset({Outcome.UNKNOWN, Outcome.INTERRUPTED})
MAX_IN_DOUBT = 3  # of these a message may have, before it is sent no more by itself; promise 5 names this number


class Reason(StrEnum):
    """Why a ledger row says what it says: the closed list behind every ``reason`` of the API."""

    REJECTED = "rejected"  # the gateway refuses this message for good (4xx)
    DECLINED = "declined"  # 200 with a code other than 0; its words are in the detail
    ALREADY_ACCEPTED = "already_accepted"  # after an attempt in doubt the gateway says that it has this id: sent
    ACCOUNT_REFUSED = "account_refused"  # a refusal whose words are about us: credentials, money, sender
    REQUEST_REFUSED = "request_refused"  # 411, 413, 415, …: our request as such, whoever the recipient is
    THROTTLED = "throttled"  # 429
    DNS = "dns"
    REFUSED = "refused"  # the connection was refused, or no route leads there
    CONNECT_TIMEOUT = "connect_timeout"
    TLS = "tls"
    UNAVAILABLE = "unavailable"  # 503
    OUTAGE = "outage"  # unavailable while the breaker is open: costs the message no attempt; the detail says what
    UNAUTHORIZED = "unauthorized"  # 401, 403
    PAYMENT_REQUIRED = "payment_required"  # 402
    WRONG_ADDRESS = "wrong_address"  # 404, 405
    PROXY_AUTHENTICATION = "proxy_authentication"  # 407, 511: the network in between wants a log-in
    REDIRECTED = "redirected"  # 3xx, never followed
    TIMEOUT = "timeout"  # no whole answer in time, or 408
    RESET = "reset"  # the connection broke after the request was written
    SERVER_ERROR = "server_error"  # 5xx but 503
    BAD_ANSWER = "bad_answer"  # 2xx whose body is not what was agreed
    INTERNAL_ERROR = "internal_error"  # an exception of our own between watermark and record
    INTERRUPTED = "interrupted"  # the replica that had started it died or was cut off
    UNRECORDABLE = "unrecordable"  # PostgreSQL refused a value of the result
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"  # the cap on counted attempts
    WINDOW = "window"  # outside the client's local hours
    PAUSED = "paused"  # the mailing, the gateway or the whole service was paused
    ENDED = "ended"  # the mailing's end came
    CANCELLED = "cancelled"  # somebody cancelled the mailing, or deleted it while it was not over
    RELEASED = "released"  # the replica shut down before the request was started
    CLIENT_DELETED = "client_deleted"
    LATE = "late"  # a result that came after the batch was reclaimed; the detail names its reason
    OPERATOR = "operator"  # somebody decided about an unknown one
    HELD = "held"  # in doubt when the policy became `hold`: not sent again


class GatewayState(StrEnum):
    """Whether a gateway may be used."""

    RUNNING = "running"
    PAUSED = "paused"
    MISCONFIGURED = "misconfigured"
    UNCONFIGURED = "unconfigured"


class BreakerState(StrEnum):
    """The circuit breaker of a gateway."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class OnUnknown(StrEnum):
    """What happens to a message whose outcome cannot be known."""

    RETRY = "retry"
    HOLD = "hold"


@dataclass(frozen=True, slots=True)
class Client:
    """Somebody who can be texted; ``phone`` is E.164 digits, ``timezone`` an IANA name or None for the default."""

    id: int
    phone: int
    operator_code: str
    tags: list[str]
    timezone: str | None
    attributes: dict[str, Any]
    version: int
    created_at: datetime
    updated_at: datetime


@dataclass(frozen=True, slots=True)
class Filter:
    """Which clients a mailing is for: both lists must match when both are given; None is everybody."""

    operator_codes: list[str] | None = None
    tags: list[str] | None = None

    def as_json(self) -> dict[str, list[str]]:
        """The JSON of the API: only the lists that are given."""
        pairs = (("operator_codes", self.operator_codes), ("tags", self.tags))
        return {name: values for name, values in pairs if values is not None}

    @classmethod
    def from_json(cls, value: dict[str, list[str]]) -> Filter:
        """The filter that `as_json` wrote."""
        return cls(value.get("operator_codes"), value.get("tags"))


@dataclass(frozen=True, slots=True)
class Window:
    """Local hours for texts: ``start`` inclusive, ``end`` exclusive; start > end crosses midnight."""

    start: time
    end: time

    @classmethod
    def between(cls, start: time | None, end: time | None) -> Self | None:
        """A window from how it is stored; None where no hours are set."""
        return None if start is None or end is None else cls(start, end)


@dataclass(frozen=True, slots=True)
class Mailing:
    """A text for all clients that match a filter, between ``starts_at`` and ``ends_at``.

    ``updated_at`` is the last edit or action; sending moves only ``started_at`` and ``finished_at``.
    """

    id: int
    name: str | None
    text: str
    text_version: int
    filter: Filter
    starts_at: datetime
    ends_at: datetime
    window: Window | None
    priority: int
    status: MailingStatus
    status_reason: str | None  # also what the gateway's row says of one that waits
    undecided: int  # messages that are `unknown`: somebody has to decide
    audience: int
    planned: bool
    version: int
    created_at: datetime
    updated_at: datetime
    started_at: datetime | None
    finished_at: datetime | None  # or cancelled
    archived_at: datetime | None


@dataclass(frozen=True, slots=True)
class Attempt:
    """One row of the ledger; ``duration_ms`` is None where no request was made."""

    seq: int
    at: datetime
    outcome: Outcome
    status: Status
    reason: str | None
    detail: str | None
    status_code: int | None
    duration_ms: int | None


@dataclass(frozen=True, slots=True)
class Message:
    """One text to one client; ``timeline`` and ``text`` are filled only where one message is asked for.

    ``text`` is what the last request carried, or what the next one will; ``changed_at`` when the status became what it
    is, None for one that is still to be sent.
    """

    id: int
    mailing_id: int
    client_id: int
    phone: int | None
    status: Status
    reason: str | None
    attempts: int
    created_at: datetime
    next_attempt_at: datetime | None
    sent_at: datetime | None
    changed_at: datetime | None = None
    text: str | None = None
    timeline: list[Attempt] = field(default_factory=list)
