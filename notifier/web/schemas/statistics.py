"""A mailing in numbers, and the overview of all."""

from __future__ import annotations

from marshmallow import Schema, fields

from notifier.models import MailingStatus, Status
from notifier.storage.statistics import Step
from notifier.web.schemas.base import NoQuery, page_of
from notifier.web.schemas.fields import Choice, Moment


class StatisticsQuery(NoQuery):
    """How fine the series is."""

    step = Choice(Step, load_default=Step.MINUTE.value, metadata={"description": "The width of a point."})


# One field per status, whatever statuses there are.
StatusesOut = Schema.from_dict({status.value: fields.Integer(required=True) for status in Status}, name="StatusesOut")
StatusesOut.__doc__ = "How many messages have each status; they sum to the audience."


class FailureOut(Schema):
    """How many messages failed for a reason."""

    reason = fields.String(required=True)
    count = fields.Integer(required=True)


class PointOut(Schema):
    """Messages sent and failed within one step."""

    at = Moment(required=True, metadata={"description": "Where the step begins, in UTC."})
    sent = fields.Integer(required=True)
    failed = fields.Integer(required=True)


class StatisticsOut(Schema):
    """A mailing in numbers; the messages sum to the audience, the failures to the failed ones."""

    audience = fields.Integer(required=True, metadata={"description": "Messages planned so far."})
    planned = fields.Boolean(required=True, metadata={"description": "Whether that is all."})
    messages = fields.Nested(StatusesOut, required=True)
    failures = fields.List(fields.Nested(FailureOut), required=True)
    rate = fields.Float(required=True, metadata={"description": "Messages a second over the last 10 s."})
    forecast_finish_at = Moment(
        required=True,
        allow_none=True,
        metadata={
            "description": "When the last message is sent at this rate. null unless the mailing is running, its "
            "audience is planned, and it has been sent for 10 to 20 s without a gap: before that the rate is too low."
        },
    )
    first_sent_at = Moment(required=True, allow_none=True)
    last_sent_at = Moment(required=True, allow_none=True)
    series = fields.List(
        fields.Nested(PointOut),
        required=True,
        metadata={"description": "The newest 1,000 points, oldest first."},
    )


class MailingLineOut(Schema):
    """A mailing in the overview."""

    id = fields.Integer(required=True)
    name = fields.String(required=True, allow_none=True)
    status = Choice(MailingStatus, required=True)
    audience = fields.Integer(required=True)
    messages = fields.Nested(StatusesOut, required=True)


class OverviewOut(Schema):
    """All mailings in numbers, deleted ones left out, and a page of them."""

    audience = fields.Integer(required=True)
    messages = fields.Nested(StatusesOut, required=True)
    mailings = fields.Nested(page_of(MailingLineOut), required=True)
