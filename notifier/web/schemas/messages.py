"""Messages, their timeline, and what an operator decides about one."""

from __future__ import annotations

from enum import StrEnum

from marshmallow import Schema, fields

from notifier.models import Outcome, Reason, Status
from notifier.web.schemas.base import PageQuery, Strict
from notifier.web.schemas.fields import Choice, Cursor, Moment, Phone


class MessagesQuery(PageQuery):
    """The filter of a mailing's messages."""

    # One integer, or three where the list comes from the queue.
    cursor = Cursor(1, 3, load_default=None, metadata=PageQuery._declared_fields["cursor"].metadata)
    status = Choice(Status, load_default=None)


class MessageOut(Schema):
    """A message: one text to one client."""

    id = fields.Integer(required=True)
    mailing_id = fields.Integer(required=True)
    client_id = fields.Integer(required=True)
    phone = Phone(
        required=True,
        allow_none=True,
        metadata={"description": "null when the client was erased.", "example": "79161234567"},
    )
    status = Choice(Status, required=True)
    reason = Choice(Reason, required=True, allow_none=True)
    attempts = fields.Integer(required=True, metadata={"description": "Requests started."})
    created_at = Moment(required=True)
    next_attempt_at = Moment(required=True, allow_none=True)
    sent_at = Moment(required=True, allow_none=True)


class AttemptOut(Schema):
    """One entry of a message's timeline."""

    seq = fields.Integer(required=True)
    at = Moment(required=True)
    outcome = Choice(Outcome, required=True)
    status = Choice(Status, required=True, metadata={"description": "The message's after it."})
    reason = Choice(Reason, required=True, allow_none=True)
    detail = fields.String(required=True, allow_none=True, metadata={"description": "The gateway's words."})
    status_code = fields.Integer(required=True, allow_none=True, metadata={"description": "Of the HTTP answer."})
    duration_ms = fields.Integer(required=True, allow_none=True)


class MessageWithTimelineOut(MessageOut):
    """A message with all that was done about it."""

    text = fields.String(
        required=True,
        metadata={"description": "What the last request carried; before the first one, what it will carry."},
    )
    timeline = fields.List(fields.Nested(AttemptOut), required=True)


class Decision(StrEnum):
    """What an operator says of an unknown message."""

    SENT = "sent"
    FAILED = "failed"
    AGAIN = "again"


class ResolveIn(Strict):
    """What an operator found out about a message, or wants."""

    decision = Choice(Decision, data_key="as", required=True, metadata={"description": "again: try once more."})
