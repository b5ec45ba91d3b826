"""What is shown is what marshmallow itself would show of the same value."""

from __future__ import annotations

from datetime import UTC, datetime, time
from types import SimpleNamespace
from typing import Any

import pytest
from marshmallow import Schema, fields

from notifier.web import operations, schemas
from notifier.web.routes import ROUTES, VERBS
from notifier.web.showing import show

VALUES: dict[type[fields.Field[Any]], Any] = {
    fields.Integer: 7,
    fields.Float: 20,
    fields.Boolean: True,
    fields.String: "text",
    fields.Dict: {"name": "Anna", "level": [1, None]},
    schemas.Moment: datetime(2026, 1, 31, 9, 0, 1, tzinfo=UTC),
    schemas.Phone: 79161234567,
    schemas.TimeOfDay: time(9, 5),
}


def sample(field: fields.Field[Any], nothing: bool) -> Any:
    """A value of the field; None where that is allowed and ``nothing`` is wanted."""
    if nothing and (field.allow_none or not field.required):
        return None
    if isinstance(field, schemas.Choice):
        return next(iter(field.words))
    if isinstance(field, fields.Nested):
        return sample_of(type(field.schema), nothing)
    if isinstance(field, fields.List):
        return [sample(field.inner, nothing=False)] * 2
    return VALUES[type(field)]


def sample_of(schema: type[Schema], nothing: bool) -> Any:
    values = {name: sample(field, nothing) for name, field in schemas.made(schema).fields.items()}
    return values if schema.__name__.endswith("Page") else SimpleNamespace(**values)


def answers() -> list[type[Schema]]:
    verbs = (getattr(route.handler, verb.lower()) for route in ROUTES for verb in VERBS)
    found = (operations.operation_of(verb) for verb in verbs)
    return list(dict.fromkeys(each.answer for each in found if each is not None and each.answer is not None))


@pytest.mark.parametrize("nothing", [False, True])
@pytest.mark.parametrize("schema", answers(), ids=lambda schema: schema.__name__)
def test_a_value_is_shown_as_its_schema_says(schema: type[Schema], nothing: bool) -> None:
    value = sample_of(schema, nothing)
    dumped = schemas.made(schema).dump(value)
    assert show(schema, value) == without_optional(schemas.made(schema), dumped)


def without_optional(schema: Schema, dumped: Any) -> Any:
    """The same without what is not required and null, which marshmallow shows."""
    result = {}
    for name, field in schema.fields.items():
        key = field.data_key or name
        value = dumped[key]
        if value is None and not field.required:
            continue
        inner = field.inner if isinstance(field, fields.List) else field
        if type(inner) is fields.Nested and value is not None:
            made = inner.schema
            value = (
                [without_optional(made, each) for each in value]
                if inner is not field
                else without_optional(made, value)
            )
        result[key] = value
    return result


def test_what_is_missing_and_not_required_is_left_out() -> None:
    assert show(schemas.FilterOut, {"tags": ["vip"]}) == {"tags": ["vip"]}
    with pytest.raises(AttributeError, match="text"):
        show(schemas.MailingOut, SimpleNamespace(id=1, name=None))
