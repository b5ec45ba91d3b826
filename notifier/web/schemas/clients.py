"""Clients, and batches of them."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from marshmallow import Schema, ValidationError, fields, post_load, validates_schema

from notifier.web.schemas.base import PageQuery, ProblemOut, Strict
from notifier.web.schemas.fields import (
    Attributes,
    Choice,
    Counted,
    Moment,
    OperatorCode,
    Phone,
    Several,
    Tag,
    Zone,
)

TAGS_MAX = 50
BATCH_MAX = 1000


class ClientEditIn(Strict):
    """A change of a client; what is not named stays."""

    phone = Phone(
        metadata={
            "description": "Unique. In any usual spelling, Russian without a country code; out come E.164 digits.",
            "example": "+7 916 123-45-67",
        }
    )
    operator_code = OperatorCode(metadata={"description": "The number's own when not given.", "example": "916"})
    tags = Several(Tag(), most=TAGS_MAX, metadata={"example": ["vip"]})
    tag = Tag(load_only=True, metadata={"description": "A single tag, instead of tags."})
    timezone = Zone(
        allow_none=True, metadata={"description": "IANA name; null means DEFAULT_TIMEZONE.", "example": "Europe/Moscow"}
    )
    attributes = Attributes(metadata={"description": "Any JSON object of up to 16 KB.", "example": {"name": "Anna"}})

    @validates_schema
    def _one_of_two(self, data: dict[str, Any], **_kwargs: Any) -> None:
        if "tag" in data and "tags" in data:
            raise ValidationError("give either tag or tags, not both", "tag")

    @post_load
    def _tag_to_tags(self, data: dict[str, Any], **_kwargs: Any) -> dict[str, Any]:
        if "tag" in data:
            data["tags"] = [data.pop("tag")]
        return data


class ClientIn(ClientEditIn):
    """A new client."""

    phone = Phone(required=True, metadata=ClientEditIn._declared_fields["phone"].metadata)


class ClientOut(Schema):
    """A client."""

    VERSIONED = True
    """Its answers have the version as their ETag."""

    id = fields.Integer(required=True)
    phone = Phone(required=True, metadata={"example": "79161234567"})
    operator_code = fields.String(required=True, metadata={"example": "916"})
    tags = fields.List(fields.String(), required=True)
    timezone = fields.String(required=True, allow_none=True, metadata={"example": "Europe/Moscow"})
    attributes = fields.Dict(required=True)
    created_at = Moment(required=True)
    updated_at = Moment(required=True)


class ClientsQuery(PageQuery):
    """The filters of the list of clients; all given must match."""

    phone = Phone(metadata={"description": "In any usual spelling; in an address a plus is written %2B."})
    operator_code = OperatorCode()
    tag = Tag()
    timezone = Zone()


class _Unchecked(fields.Raw):
    """Anything, null as well."""

    def deserialize(self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any) -> Any:
        return value


class ClientBatchIn(Strict):
    """Clients to add or change by phone; each item is checked by itself."""

    PIECEMEAL = True
    """Faults in one item must not be the whole body's."""

    items = Counted(
        _Unchecked(metadata={"allOf": [{"$ref": "#/components/schemas/ClientIn"}]}),
        most=BATCH_MAX,
        required=True,
    )


class BatchItemStatus(StrEnum):
    """What became of an item of a batch."""

    CREATED = "created"
    UPDATED = "updated"
    INVALID = "invalid"


class _Shown(fields.Nested):
    """What is in its outward form already: taking it apart again would hold the loop, a thousand items long."""

    # marshmallow's own two signatures disagree about the first name
    def _serialize(self, value: Any, attr: Any, obj: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return value


class ClientBatchItemOut(Schema):
    """What became of one item."""

    index = fields.Integer(required=True)
    status = Choice(BatchItemStatus, required=True)
    id = fields.Integer(required=True, allow_none=True)
    problem = _Shown(ProblemOut, required=True, allow_none=True)


class ClientBatchOut(Schema):
    """What became of each item, in their order."""

    items = fields.List(fields.Nested(ClientBatchItemOut), required=True)
