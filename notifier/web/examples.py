"""An example of each answer, for the documentation; the tests hold them against the schemas."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema

from notifier.models import Status
from notifier.web import schemas

_ANNA: dict[str, Any] = {
    "id": 17,
    "phone": "79161234567",
    "operator_code": "916",
    "tags": ["vip"],
    "timezone": "Europe/Moscow",
    "attributes": {"name": "Anna"},
    "created_at": "2030-01-01T05:00:00.000000Z",
    "updated_at": "2030-01-01T05:00:00.000000Z",
}
_PROBLEM: dict[str, Any] = {
    "type": "urn:notifier:invalid",
    "title": "The input is not acceptable",
    "status": 422,
    "detail": "/phone: is required",
    "request_id": "5f0c6a1e2b7d4c0f9a3e8d7b6c5a4f3e",
    "errors": [{"pointer": "/phone", "detail": "is required"}],
}
_COUNTS = {status.value: 0 for status in Status} | {"waiting": 4_200, "sending": 100, "sent": 5_690, "failed": 10}
_MAILING: dict[str, Any] = {
    "id": 4,
    "name": "Spring sale",
    "text": "Two days only: everything at half the price.",
    "filter": {"operator_codes": ["916", "926"], "tags": ["vip"]},
    "starts_at": "2030-01-01T06:00:00.000000Z",
    "ends_at": "2030-01-02T18:00:00.000000Z",
    "window": {"from": "09:00", "to": "21:00"},
    "priority": 0,
    "status": "running",
    "status_reason": None,
    "undecided": 0,
    "audience": 10_000,
    "created_at": "2029-12-31T12:00:00.000000Z",
    "updated_at": "2029-12-31T12:00:00.000000Z",
    "started_at": "2030-01-01T06:00:00.012345Z",
    "finished_at": None,
    "archived_at": None,
}
_MESSAGE: dict[str, Any] = {
    "id": 661_224_488_960_123,
    "mailing_id": 4,
    "client_id": 17,
    "phone": "79161234567",
    "status": "sent",
    "reason": None,
    "attempts": 1,
    "created_at": "2030-01-01T06:00:00.023456Z",
    "next_attempt_at": None,
    "sent_at": "2030-01-01T06:00:01.345678Z",
}
_LINE = {"id": 4, "name": "Spring sale", "status": "running", "audience": 10_000, "messages": _COUNTS}

EXAMPLES: dict[type[Schema], dict[str, Any]] = {
    schemas.ProblemOut: _PROBLEM,
    schemas.ClientOut: _ANNA,
    schemas.ClientBatchOut: {
        "items": [
            {"index": 0, "status": "created", "id": 17, "problem": None},
            {"index": 1, "status": "invalid", "id": None, "problem": _PROBLEM},
        ]
    },
    schemas.MailingOut: _MAILING,
    schemas.MessageOut: _MESSAGE,
    schemas.MessageWithTimelineOut: _MESSAGE
    | {
        "text": "Two days only: everything at half the price.",
        "timeline": [
            {
                "seq": 1,
                "at": "2030-01-01T06:00:01.298765Z",
                "outcome": "accepted",
                "status": "sent",
                "reason": None,
                "detail": None,
                "status_code": 200,
                "duration_ms": 47,
            }
        ],
    },
    schemas.StatisticsOut: {
        "audience": 10_000,
        "planned": True,
        "messages": _COUNTS,
        "failures": [{"reason": "rejected", "count": 10}],
        "rate": 820.5,
        "forecast_finish_at": "2030-01-01T06:00:12.345678Z",
        "first_sent_at": "2030-01-01T06:00:00.123456Z",
        "last_sent_at": "2030-01-01T06:00:07.123456Z",
        "series": [{"at": "2030-01-01T06:00:00.000000Z", "sent": 5_690, "failed": 10}],
    },
    schemas.OverviewOut: {
        "audience": 10_000,
        "messages": _COUNTS,
        "mailings": {"items": [_LINE], "next_cursor": None},
    },
    schemas.GatewayOut: {
        "name": "default",
        "url": "https://gateway.example.com",
        "state": "running",
        "reason": None,
        "detail": None,
        "concurrency": 100,
        "rate": 0.0,
        "timeout": 15.0,
        "on_unknown": "retry",
        "paused_until": None,
        "breaker": {"state": "closed", "retry_at": None, "detail": None},
        "last_errors": [
            {
                "at": "2030-01-01T05:59:00.000000Z",
                "first_at": "2030-01-01T05:58:57.000000Z",
                "count": 3,
                "outcome": "unavailable",
                "status_code": 503,
                "reason": "unavailable",
                "message_id": 661_224_488_960_123,
                "detail": "Service Unavailable",
            }
        ],
    },
}


def example_of(schema: type[Schema]) -> dict[str, Any]:
    """Return the example of an answer; of a page, one with a single item. Raises ``KeyError`` where there is none."""
    item = getattr(schema, "ITEM", None)
    return EXAMPLES[schema] if item is None else {"items": [EXAMPLES[item]], "next_cursor": None}
