"""Logs (structlog, to stderr) and metrics (Prometheus): every name in one place."""

from __future__ import annotations

import json
import logging
import math
import platform
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import orjson
import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from structlog.typing import EventDict, Processor, WrappedLogger

from notifier import __version__

# ---- logs

FREE_TEXT = ("event", "detail", "error", "url", "path", "exception")
# A phone has 10 to 15 digits (E.164). So have ids: those stand in other fields, or behind "word/" in a path.
PHONE_IN_TEXT = re.compile(r"(?<!\d)(?<![a-z]/)\d{10,15}(?!\d)")


def mask_phone(phone: str) -> str:
    """Return the phone with its first 4 and last 2 characters only: ``7916*****67``."""
    return f"{phone[:4]}{'*' * (len(phone) - 6)}{phone[-2:]}" if len(phone) > 6 else "*" * len(phone)


def mask_phones(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask the field ``phone`` and what looks like a phone in fields of free text; a structlog processor."""
    if event.get("phone") is not None:
        event["phone"] = mask_phone(str(event["phone"]))
    for key in FREE_TEXT:
        if key in event:
            event[key] = PHONE_IN_TEXT.sub(lambda match: mask_phone(match[0]), str(event[key]))
    return event


def configure(level: str, format: str) -> None:
    """Send structlog's and the standard library's records to stderr as ``console`` lines or ``json`` objects.

    Fields bound with `structlog.contextvars` (``request_id``, ``mailing_id``, …) stand in every line.
    ``level`` is debug, info, warning or error. May be called again.
    """
    begin: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    finish: list[Processor] = [
        structlog.processors.format_exc_info,
        mask_phones,
        structlog.processors.JSONRenderer(serializer=_json)
        if format == "json"
        else structlog.dev.ConsoleRenderer(colors=sys.stderr is not None and sys.stderr.isatty()),
    ]
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*begin, structlog.stdlib.ExtraAdder()],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *finish],
        )
    )
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(True)
    logging.getLogger("tornado.general").setLevel(logging.WARNING)  # the rest anybody can cause, at any rate
    logging.getLogger("yoyo").setLevel(logging.WARNING)  # we say ourselves what was migrated
    # Not by way of the standard library: each answer is logged, and that took a seventh of it.
    structlog.configure(
        processors=[*begin, *finish],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_Lines,
    )


class _Lines:
    """Writes our own records; a reader of stderr that is gone, or a full disk behind it, is nobody's error."""

    def __init__(self, name: str = "notifier") -> None:
        self.name = name

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError, AttributeError):  # the last: there is no stderr
            sys.stderr.write(line + "\n")
            sys.stderr.flush()

    debug = info = warning = error = critical = msg


def _json(event: EventDict, default: Callable[[Any], Any]) -> str:
    try:
        return orjson.dumps(event, default=default).decode()
    except TypeError:  # integers beyond 64 bits, lone surrogates, keys that are no strings, circles
        plain = (str, int, float, type(None))
        return json.dumps({str(k): v if isinstance(v, plain) else repr(v) for k, v in event.items()})


# ---- metrics

CONTENT_TYPE = CONTENT_TYPE_PLAIN_0_0_4
# A second series beside each counter and histogram, which nobody reads.
disable_created_metrics()  # type: ignore[no-untyped-call]
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)
PlatformCollector(registry=REGISTRY)
GCCollector(registry=REGISTRY)

# Seconds. Our own answers are judged at 300 ms, the gateway's at its timeout of 15 s: bounds on both sides.
FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.5, 5.0)
SLOW = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 15.0, 30.0)

HTTP_REQUESTS = Counter(
    "notifier_http_requests_total", "Requests answered.", ("method", "route", "status"), registry=REGISTRY
)
HTTP_SECONDS = Histogram(
    "notifier_http_request_seconds", "Time to answer.", ("route",), buckets=FAST, registry=REGISTRY
)
HTTP_CONNECTIONS = Gauge("notifier_http_connections", "Connections of clients.", registry=REGISTRY)
HTTP_CLOSED = Counter(
    "notifier_http_closed_total",
    "Connections closed on clients: crowded, slow_head, stalled.",
    ("reason",),
    registry=REGISTRY,
)
ATTEMPTS = Counter("notifier_attempts_total", "Requests to the gateway.", ("outcome",), registry=REGISTRY)
ATTEMPT_SECONDS = Histogram(
    "notifier_attempt_seconds", "Time of a request to the gateway.", buckets=SLOW, registry=REGISTRY
)
INFLIGHT = Gauge("notifier_inflight", "Requests to the gateway under way.", registry=REGISTRY)
READY = Gauge("notifier_ready", "Messages marked and waiting to start.", registry=REGISTRY)
RECORDER_PENDING = Gauge("notifier_recorder_pending", "Results not yet committed.", registry=REGISTRY)
RECORD_SECONDS = Histogram(
    "notifier_record_seconds", "Time to commit a flush of results.", buckets=FAST, registry=REGISTRY
)
CLAIMS = Counter("notifier_claims_total", "Batches claimed.", registry=REGISTRY)
PLANNED = Counter("notifier_planned_total", "Messages planned.", registry=REGISTRY)
TAKEOVERS = Counter("notifier_takeovers_total", "Batches taken over from the dead.", registry=REGISTRY)
LOOP_LAG = Gauge("notifier_loop_lag_seconds", "How late the event loop runs.", registry=REGISTRY)
BREAKER_OPEN = Gauge("notifier_breaker_open", "1 while the gateway's breaker is open.", ("gateway",), registry=REGISTRY)
LOOP_ERRORS = Counter("notifier_loop_errors_total", "Polls that ended in an exception.", ("loop",), registry=REGISTRY)
# Of the whole installation: every replica that is asked shows the same.
DATABASE_UP = Gauge("notifier_database_up", "1 when the database answered this scrape.", registry=REGISTRY)
MAILINGS = Gauge("notifier_mailings", "Mailings that are not over.", ("status",), registry=REGISTRY)
MESSAGES = Gauge("notifier_messages", "Messages that are not done with.", ("status",), registry=REGISTRY)
OLDEST_DUE = Gauge(
    "notifier_oldest_due_seconds", "For how long the oldest message that may be sent has been due.", registry=REGISTRY
)
GATEWAY_STATE = Gauge(
    "notifier_gateway_state", "1 for the state that a gateway is in.", ("gateway", "state"), registry=REGISTRY
)
HELD = Gauge("notifier_held", "1 while nothing is sent since the database looks like a copy.", registry=REGISTRY)
BUILD = Gauge("notifier_build_info", "1, with what runs.", ("version", "python"), registry=REGISTRY)
BUILD.labels(__version__, platform.python_version()).set(1)


def forget_cluster() -> None:
    """Show nothing of the installation until it is counted again: an old figure would hide a stop."""
    DATABASE_UP.set(0)
    OLDEST_DUE.set(math.nan)
    HELD.set(math.nan)
    for gauge in (MAILINGS, MESSAGES, GATEWAY_STATE):
        gauge.clear()


def exposition() -> bytes:
    """Return every metric in Prometheus' text format; its Content-Type is `CONTENT_TYPE`."""
    return generate_latest(REGISTRY)
