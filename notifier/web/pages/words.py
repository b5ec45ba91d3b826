"""What people read instead of the names in the database, and how numbers, times and phones look."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from notifier import phones
from notifier.models import (
    BreakerState,
    GatewayState,
    Mailing,
    MailingStatus,
    OnUnknown,
    Outcome,
    Reason,
    Status,
    StatusReason,
)

THIN = "\u202f"
"""A narrow space that does not break."""

STATUSES: dict[str, str] = {
    Status.WAITING: "Waiting",
    Status.SENDING: "Sending",
    Status.RETRYING: "Retrying",
    Status.SENT: "Sent",
    Status.DELIVERED: "Delivered",
    Status.UNDELIVERED: "Not delivered",
    Status.FAILED: "Failed",
    Status.EXPIRED: "Expired",
    Status.CANCELLED: "Cancelled",
    Status.UNKNOWN: "Unknown",
    Status.SUPPRESSED: "Suppressed",
    MailingStatus.DRAFT: "Draft",
    MailingStatus.SCHEDULED: "Scheduled",
    MailingStatus.RUNNING: "Running",
    MailingStatus.PAUSED: "Paused",
    MailingStatus.FINISHED: "Finished",
    GatewayState.MISCONFIGURED: "Misconfigured",
    GatewayState.UNCONFIGURED: "Not configured",
    BreakerState.CLOSED: "Closed: requests go through",
    BreakerState.OPEN: "Open: nothing is sent until the next probe",
    BreakerState.HALF_OPEN: "Half open: one probe is under way",
    OnUnknown.RETRY: "sent again, with the same id, up to 3 times",
    OnUnknown.HOLD: "held until somebody decides",
}

MAILING_REASONS: dict[str, str] = {
    StatusReason.COMPLETED: "All messages are worked off.",
    StatusReason.ENDED: "Its end came; what was not sent by then has expired.",
    StatusReason.NOBODY_MATCHED: "No client matched its filter: nobody was texted.",
    StatusReason.GATEWAY_UNCONFIGURED: "Waits: no gateway is configured. Set GATEWAY_URL and start the service again.",
    StatusReason.GATEWAY_PAUSED: "Waits: the gateway is paused.",
    StatusReason.GATEWAY_MISCONFIGURED: "Waits: the gateway refuses us. Put that right, then resume the gateway.",
    StatusReason.GATEWAY_UNAVAILABLE: "Waits: the gateway is out of order. One request tries it now and then.",
    StatusReason.GATEWAY_THROTTLED: "Waits: the gateway asked for a pause.",
    StatusReason.PAUSED_BY_SETTINGS: "Waits: the whole service is paused by its settings (PAUSE_ALL).",
    StatusReason.HELD_AS_COPY: "Waits: this database looks like a copy, and was not released.",
    StatusReason.WINDOW: "Waits for the clients' local hours.",
}

REASONS: dict[str, str] = {
    Reason.REJECTED: "The gateway refuses this message for good",
    Reason.DECLINED: "The gateway declined it",
    Reason.ALREADY_ACCEPTED: "The gateway had taken it before",
    Reason.ACCOUNT_REFUSED: "The gateway refuses our account: credentials, money or sender",
    Reason.REQUEST_REFUSED: "The gateway refuses our requests, whoever they are for",
    Reason.THROTTLED: "The gateway asked us to slow down",
    Reason.DNS: "The gateway's name could not be resolved",
    Reason.REFUSED: "The gateway could not be reached",
    Reason.CONNECT_TIMEOUT: "Connecting to the gateway took too long",
    Reason.TLS: "No secure connection to the gateway",
    Reason.UNAVAILABLE: "The gateway was unavailable",
    Reason.OUTAGE: "The gateway was down",
    Reason.UNAUTHORIZED: "The gateway refuses our token",
    Reason.PAYMENT_REQUIRED: "The gateway demands payment: the balance may be used up",
    Reason.WRONG_ADDRESS: "There is no gateway at this address",
    Reason.PROXY_AUTHENTICATION: "A proxy refuses us",
    Reason.REDIRECTED: "The gateway points elsewhere, which is never followed",
    Reason.TIMEOUT: "No whole answer in time",
    Reason.RESET: "The connection broke after the request was sent",
    Reason.SERVER_ERROR: "The gateway had an error of its own",
    Reason.BAD_ANSWER: "The gateway's answer made no sense",
    Reason.INTERNAL_ERROR: "An error of our own; the log has it",
    Reason.INTERRUPTED: "The process that had started it was cut off",
    Reason.UNRECORDABLE: "The result could not be stored",
    Reason.ATTEMPTS_EXHAUSTED: "Too many attempts",
    Reason.WINDOW: "Outside the client's local hours",
    Reason.PAUSED: "Sending was paused",
    Reason.ENDED: "The mailing's end came",
    Reason.CANCELLED: "The mailing was cancelled",
    Reason.RELEASED: "The process stopped before it was sent",
    Reason.CLIENT_DELETED: "The client was deleted",
    Reason.LATE: "The true result came late",
    Reason.OPERATOR: "Somebody decided by hand",
    Reason.HELD: "It may have been sent, and is not sent again by itself",
}

OUTCOMES: dict[str, str] = {
    Outcome.ACCEPTED: "Accepted by the gateway",
    Outcome.REJECTED: "Rejected",
    Outcome.DECLINED: "Declined",
    Outcome.THROTTLED: "Throttled",
    Outcome.UNAVAILABLE: "Gateway unavailable",
    Outcome.MISCONFIGURED: "Gateway misconfigured",
    Outcome.UNKNOWN: "Unknown",
    Outcome.INTERRUPTED: "Interrupted",
    Outcome.NOT_STARTED: "Not started",
    Outcome.SUPPRESSED: "Suppressed",
    Outcome.RESOLVED: "Resolved by hand",
}

# What a status of a message means, where one looks at all of them.
MEANINGS: dict[str, str] = {
    Status.WAITING: "not started yet",
    Status.SENDING: "handed to the sender: a request is under way, or about to be",
    Status.RETRYING: "will be tried again",
    Status.SENT: "the gateway accepted it",
    Status.DELIVERED: "it reached the phone",
    Status.UNDELIVERED: "it did not reach the phone",
    Status.FAILED: "given up",
    Status.EXPIRED: "not sent before the mailing's end",
    Status.CANCELLED: "not sent before the mailing was cancelled",
    Status.UNKNOWN: "may have been sent; nobody can know",
    Status.SUPPRESSED: "not sent because the client is gone",
}


def status(name: str) -> str:
    """A status of a mailing, a message or a gateway."""
    return STATUSES[name]


def reason(name: str | None) -> str:
    """Why a message stands where it stands; nothing for none."""
    return "" if name is None else REASONS.get(name, name.replace("_", " ").capitalize())


def mailing_reason(name: str) -> str:
    """Why a mailing stands where it stands."""
    return MAILING_REASONS.get(name, name.replace("_", " ").capitalize())


def outcome(name: str) -> str:
    """What became of an attempt."""
    return OUTCOMES[name]


def number(value: float) -> str:
    """A number with thin spaces between the thousands, and one decimal only where it says something."""
    text = f"{value:,.1f}" if value % 1 and value < 100 else f"{value:,.0f}"
    return text.replace(",", THIN)


def moment(value: datetime, zone: ZoneInfo, *, seconds: bool = False) -> str:
    """``31 Jan 2026, 09:00 MSK``; where the zone has no letters, its offset stands there."""
    local = value.astimezone(zone)
    name = local.tzname() or ""
    if name[:1] in "+-":
        name = f"UTC{name}"
    clock = "%H:%M:%S" if seconds else "%H:%M"
    return f"{local.day}\u00a0{local:%b}\u00a0{local:%Y}, {local.strftime(clock)}\u00a0{name}"


def span(value: timedelta) -> str:
    """``2 h 5 min``, ``40 s``: the two largest units."""
    left = max(0, round(value.total_seconds()))
    parts = []
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}\u00a0{unit}")
    return " ".join(parts[:2]) or "0\u00a0s"


def ahead(value: datetime | None) -> bool:
    """Whether a time is still to come."""
    return value is not None and value > datetime.now(UTC)


def until(value: datetime) -> str:
    """How far off a time is, from now."""
    return span(value - datetime.now(UTC))


def since(value: datetime) -> str:
    """How long ago a time was."""
    return span(datetime.now(UTC) - value)


def phone(value: int | None) -> str:
    """``+7 916 123-45-67``."""
    return "" if value is None else phones.show(value)


def size(value: int, noun: str) -> str:
    """``1 message``, ``2 messages``."""
    return f"{number(value)} {noun}{'' if value == 1 else 's'}"


def title_of(mailing: Mailing) -> str:
    """The name of a mailing, or a number where there is none."""
    return mailing.name or f"Mailing {mailing.id}"
