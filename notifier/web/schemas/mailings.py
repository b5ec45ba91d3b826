"""Mailings, with their filter and their window."""

from __future__ import annotations

import re
from datetime import time
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load, validates_schema

from notifier.models import Filter, MailingStatus, StatusReason, Window
from notifier.web.schemas.base import PageQuery, Strict
from notifier.web.schemas.fields import (
    COMMON,
    Choice,
    Flag,
    Moment,
    OperatorCode,
    Several,
    Tag,
    Text,
    Truth,
    Whole,
)

NAME_MAX, TEXT_MAX, FILTER_MAX, PRIORITY_MAX = 200, 10_000, 1000, 10


class MessageText(Text):
    """What is sent; nothing in it is filled in, so what looks like a placeholder is refused."""

    PLACEHOLDER = re.compile(r"\{\{\s*\w[^{}]*\}\}")
    default_error_messages = {  # noqa: RUF012
        "placeholder": "has “{found}” at character {place}: nothing is filled in, everybody would get it as it stands"
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if match := self.PLACEHOLDER.search(text):
            raise self.make_error("placeholder", found=match[0][:40], place=match.start() + 1)
        return text


class TimeOfDay(fields.Field[time]):
    """Hours and minutes, ``HH:MM``; where ``midnight`` is true also 24:00, the end of the day, which is 00:00."""

    PATTERN = "([01][0-9]|2[0-3]):[0-5][0-9]"
    default_error_messages = {  # noqa: RUF012
        **COMMON,
        "invalid": "must be a time of day: two digits for the hour, a colon, two digits for the minute, like 09:00",
        "midnight": "must be from 00:00 to 23:59: the day begins at 00:00",
    }

    def __init__(self, *, midnight: bool = False, **kwargs: Any) -> None:
        self.midnight = midnight
        pattern = f"^({self.PATTERN}|24:00)$" if midnight else f"^{self.PATTERN}$"
        kwargs["metadata"] = {"type": "string", "pattern": pattern, **kwargs.get("metadata", {})}
        super().__init__(**kwargs)

    def _serialize(self, value: time | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else f"{value:%H:%M}"

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> time:
        if value == "24:00":
            if not self.midnight:
                raise self.make_error("midnight")
            return time(0)
        if not isinstance(value, str) or not re.fullmatch(self.PATTERN, value):
            raise self.make_error("invalid")
        return time.fromisoformat(value)


class FilterIn(Strict):
    """Which clients: both lists must match when both are given, any member of a list is enough; {} is everybody."""

    operator_codes = Several(OperatorCode(), fewest=1, most=FILTER_MAX, metadata={"example": ["916"]})
    tags = Several(Tag(), fewest=1, most=FILTER_MAX, metadata={"example": ["vip"]})

    @post_load
    def _make(self, data: dict[str, Any], **_kwargs: Any) -> Filter:
        return Filter(**data)


class WindowIn(Strict):
    """Hours of the client's local day: from inclusive, to exclusive; from > to crosses midnight."""

    start = TimeOfDay(data_key="from", required=True, metadata={"example": "09:00"})
    end = TimeOfDay(
        data_key="to",
        required=True,
        midnight=True,
        metadata={"description": "24:00, the end of the day, comes out as 00:00.", "example": "21:00"},
    )

    @validates_schema
    def _differ(self, data: dict[str, Any], **_kwargs: Any) -> None:
        if data["start"] == data["end"]:
            raise ValidationError("must differ from from; a window of null is the whole day", "to")

    @post_load
    def _make(self, data: dict[str, Any], **_kwargs: Any) -> Window:
        return Window(**data)


class MailingEditIn(Strict):
    """A change of a mailing; what is not named stays."""

    name = Text(NAME_MAX, allow_none=True, metadata={"example": "Spring sale"})
    text = MessageText(TEXT_MAX, metadata={"example": "Two days only: everything at half the price."})
    filter = fields.Nested(FilterIn, error_messages={**COMMON})
    starts_at = Moment(metadata={"example": "2030-01-01T09:00:00+03:00"})
    ends_at = Moment(metadata={"example": "2030-01-02T21:00:00+03:00"})
    window = fields.Nested(WindowIn, allow_none=True, metadata={"description": "null: at any hour."})
    priority = Whole(-PRIORITY_MAX, PRIORITY_MAX, metadata={"description": "Higher goes first.", "example": 0})


class MailingIn(MailingEditIn):
    """A new mailing."""

    text = MessageText(TEXT_MAX, required=True, metadata=MailingEditIn._declared_fields["text"].metadata)
    starts_at = Moment(
        allow_none=True, metadata={"description": "Now, when not given.", "example": "2030-01-01T09:00:00+03:00"}
    )
    ends_at = Moment(required=True, metadata=MailingEditIn._declared_fields["ends_at"].metadata)
    draft = Truth(metadata={"description": "Hold it back until it is started by hand.", "example": False})

    @post_load
    def _defaults(self, data: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        absent = {"name": None, "filter": Filter(), "starts_at": None, "window": None, "priority": 0, "draft": False}
        return absent | data


class FilterOut(Schema):
    """Which clients; a list that is not there matches everybody."""

    operator_codes = fields.List(fields.String())
    tags = fields.List(fields.String())


class WindowOut(Schema):
    """Hours of the client's local day."""

    start = TimeOfDay(data_key="from", required=True, metadata={"example": "09:00"})
    end = TimeOfDay(data_key="to", required=True, metadata={"example": "21:00"})


class MailingOut(Schema):
    """A mailing."""

    VERSIONED = True
    """Its answers have the version as their ETag."""

    id = fields.Integer(required=True)
    name = fields.String(required=True, allow_none=True)
    text = fields.String(required=True)
    filter = fields.Nested(FilterOut, required=True)
    starts_at = Moment(required=True)
    ends_at = Moment(required=True)
    window = fields.Nested(WindowOut, required=True, allow_none=True)
    priority = fields.Integer(required=True)
    status = Choice(MailingStatus, required=True)
    status_reason = Choice(
        StatusReason,
        required=True,
        allow_none=True,
        metadata={
            "description": "How it finished: `completed`, `ended` (its end came first), `nobody_matched` (look at the "
            "filter). What a scheduled or running one waits for: `gateway_unconfigured`, `gateway_paused`, "
            "`gateway_misconfigured`, `gateway_unavailable` (its breaker is not closed), `gateway_throttled` (it asked "
            "for a pause), `paused_by_settings`, `held_as_copy` (the database was last used elsewhere and is not "
            "released), `window` (the local hours of all that are left).",
        },
    )
    undecided = fields.Integer(
        required=True,
        metadata={"description": "Messages that are `unknown`, so that somebody has to decide about them."},
    )
    audience = fields.Integer(required=True, metadata={"description": "Messages planned so far."})
    created_at = Moment(required=True)
    updated_at = Moment(
        required=True, metadata={"description": "The last edit or action. Sending and the finish do not move it."}
    )
    started_at = Moment(required=True, allow_none=True, metadata={"description": "When its audience was chosen."})
    finished_at = Moment(required=True, allow_none=True, metadata={"description": "When it finished or was cancelled."})
    archived_at = Moment(required=True, allow_none=True, metadata={"description": "null: it stands in the lists."})


class ArchivedQuery(PageQuery):
    """Which mailings a list shows."""

    archived = Flag(
        load_default=False, metadata={"description": "true: those that were archived, instead of all others."}
    )


class MailingsQuery(ArchivedQuery):
    """The filter of the list of mailings."""

    status = Choice(MailingStatus, load_default=None)
