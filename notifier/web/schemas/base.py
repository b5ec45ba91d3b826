"""What the schemas of several nouns share: strict input, lists in pages, errors."""

from __future__ import annotations

from functools import cache

from marshmallow import RAISE, Schema, fields

from notifier.web.schemas.fields import PAGE_MAX, Cursor, Limit

PAGE_DEFAULT = 50
"""Items of a page when none are asked for."""


class Strict(Schema):
    """The base of every schema of input: unknown keys are refused."""

    class Meta:
        unknown = RAISE

    error_messages = {"unknown": "is no field of this", "type": "must be a JSON object"}  # noqa: RUF012


class NoBody(Strict):
    """Where no body is needed an empty object will do."""


class NoQuery(Strict):
    """No parameters."""

    error_messages = {"unknown": "is no parameter of this"}  # noqa: RUF012


class PageQuery(NoQuery):
    """The parameters of every list."""

    limit = Limit(
        load_default=PAGE_DEFAULT, metadata={"minimum": 1, "maximum": PAGE_MAX, "description": "Items a page."}
    )
    cursor = Cursor(
        1,
        load_default=None,
        metadata={"description": "next_cursor of the page before, of the same list with the same filters."},
    )


@cache
def page_of(item: type[Schema]) -> type[Schema]:
    """Return the schema of a page of such items."""
    page = Schema.from_dict(
        {
            "items": fields.List(fields.Nested(item), required=True),
            "next_cursor": fields.String(
                required=True, allow_none=True, metadata={"description": "null on the last page only."}
            ),
        },
        name=f"{item.__name__.removesuffix('Out')}Page",
    )
    page.__doc__ = "A page of a list."
    page.ITEM = item  # type: ignore[attr-defined]
    return page


class FieldErrorOut(Schema):
    """One thing wrong with the input."""

    pointer = fields.String(metadata={"description": "Where in the body, as a JSON pointer.", "example": "/phone"})
    parameter = fields.String(metadata={"description": "Which parameter of the query, instead of a pointer."})
    detail = fields.String(required=True)


class ProblemOut(Schema):
    """An error, after RFC 9457."""

    type = fields.String(required=True)
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    request_id = fields.String(required=True)
    errors = fields.List(fields.Nested(FieldErrorOut))
    client_id = fields.Integer(metadata={"description": "Who has the phone, in a 409 for one."})
    code = fields.String(
        metadata={"description": "In a 404 and 409 what is wrong, as a word that stays when the sentence changes."}
    )
