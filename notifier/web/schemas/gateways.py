"""Gateways: their limits, state and last errors."""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields

from notifier.models import BreakerState, GatewayState, OnUnknown, Outcome
from notifier.web.schemas.base import Strict
from notifier.web.schemas.fields import COMMON, Choice, Moment, Whole

CONCURRENCY_MAX = 10_000
RATE_LEAST, RATE_MOST = 1e-6, 1e9
"""Messages a second; what lies beyond breaks the arithmetic of the token bucket, and is of no use."""


class Rate(fields.Float):
    """Messages a second; 0 is no limit."""

    default_error_messages = {  # noqa: RUF012
        **COMMON,
        "invalid": "must be a number",
        "range": f"must be 0 (no limit), or from {RATE_LEAST:f} to {RATE_MOST:.0f}",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.make_error("invalid")
        if value != 0 and not RATE_LEAST <= value <= RATE_MOST:
            raise self.make_error("range")
        return float(value)


class GatewayEditIn(Strict):
    """Limits that beat those of the environment, until they are null again."""

    concurrency = Whole(
        1,
        CONCURRENCY_MAX,
        allow_none=True,
        metadata={"description": "Requests in flight at most, per replica.", "example": 50},
    )
    rate = Rate(
        allow_none=True,
        metadata={
            "description": f"Messages a second, all replicas together, from {RATE_LEAST:f}; 0 = no limit.",
            "minimum": 0,
            "maximum": RATE_MOST,
            "example": 20,
        },
    )


class BreakerOut(Schema):
    """The circuit breaker."""

    state = Choice(BreakerState, required=True)
    retry_at = Moment(required=True, allow_none=True)
    detail = fields.String(
        required=True, allow_none=True, metadata={"description": "A sentence: why it is not closed."}
    )


class GatewayErrorOut(Schema):
    """Answers of one kind that were no success: of one outcome, status code and reason."""

    at = fields.String(required=True, metadata={"format": "date-time", "description": "The last one."})
    first_at = fields.String(required=True, metadata={"format": "date-time"})
    count = fields.Integer(required=True, metadata={"description": "How many of this kind, from `first_at` to `at`."})
    outcome = Choice(Outcome, required=True)
    status_code = fields.Integer(required=True, allow_none=True)
    reason = fields.String(required=True, allow_none=True)
    message_id = fields.Integer(
        required=True, allow_none=True, metadata={"description": "The message that the last one was about."}
    )
    detail = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "The gateway's words in the last one, cut and without phone numbers."},
    )


class GatewayOut(Schema):
    """A gateway: its state, the limits in force, and its last errors, newest first."""

    VERSIONED = True
    """Its answers have the version as their ETag."""

    name = fields.String(required=True, metadata={"example": "default"})
    url = fields.String(required=True, allow_none=True)
    state = Choice(GatewayState, required=True)
    reason = fields.String(required=True, allow_none=True)
    detail = fields.String(
        required=True,
        allow_none=True,
        metadata={"description": "A sentence: why it is misconfigured, with the gateway's own words."},
    )
    concurrency = fields.Integer(required=True)
    rate = fields.Float(required=True)
    timeout = fields.Float(required=True, metadata={"description": "Seconds for a whole request."})
    on_unknown = Choice(OnUnknown, required=True)
    paused_until = Moment(required=True, allow_none=True, metadata={"description": "By the gateway's own wish."})
    breaker = fields.Nested(BreakerOut, required=True)
    last_errors = fields.List(fields.Nested(GatewayErrorOut), required=True)
