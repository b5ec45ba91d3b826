"""The types of fields: what is accepted, what is shown, and what is said of what is wrong."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import Any

import orjson
from marshmallow import ValidationError, fields

from notifier import characters, phones, zones
from notifier.models import INT64_MAX
from notifier.web.schemas.cursors import CURSOR_BROKEN, CURSOR_ELSEWHERE, Position, read_cursor

YEARS = (1970, 2200)
"""The years that a time may lie in. No time zone moves such a time beyond the years that Python has (1 to 9999)."""
TAG_MAX = 64
"""Characters."""
ATTRIBUTES_MAX = 16 * 1024
"""Bytes of JSON."""
PAGE_MAX = 200
"""Items of a page."""
COMMON = {"required": "is required", "null": "must not be null"}
"""The messages that all fields share."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""Characters that no text may have: a phone shows them as boxes, and a terminal acts on them."""


class Text(fields.String):
    """A string of ``shortest`` to ``longest`` characters; with ``visible`` not only of white space."""

    default_error_messages = {  # noqa: RUF012
        **COMMON,
        "invalid": "must be a string",
        "blank": "must not be empty",
        "invisible": "has nothing that anybody sees: it consists of {names}",
        "control": "must not contain control characters but line ends and tabs; this has U+{code:04X}",
        "length": "must have {shortest} to {longest} characters; this has {length}",
    }

    def __init__(self, longest: int, *, shortest: int = 1, visible: bool = True, **kwargs: Any) -> None:
        self.shortest, self.longest, self.visible = shortest, longest, visible
        kwargs["metadata"] = {"minLength": shortest, "maxLength": longest, **kwargs.get("metadata", {})}
        super().__init__(**kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        text = super()._deserialize(value, attr, data, **kwargs)
        if not text and self.shortest:
            raise self.make_error("blank")
        if not self.shortest <= len(text) <= self.longest:
            raise self.make_error("length", shortest=self.shortest, longest=self.longest, length=len(text))
        if self.visible and self.shortest and not any(map(characters.is_visible, text)):
            if not text.strip():
                raise self.make_error("blank")
            unseen = dict.fromkeys(f"U+{ord(char):04X}" for char in text if not char.isspace())
            raise self.make_error("invisible", names=", ".join(islice(unseen, 5)))
        if control := CONTROL.search(text):
            raise self.make_error("control", code=ord(control[0]))
        return text


class Whole(fields.Integer):
    """An integer from ``least`` to ``most``."""

    default_error_messages = {  # noqa: RUF012
        **COMMON,
        "invalid": "must be an integer",
        "range": "must be from {least} to {most}",
    }

    def __init__(self, least: int = -INT64_MAX - 1, most: int = INT64_MAX, **kwargs: Any) -> None:
        self.least, self.most = least, most
        kwargs["metadata"] = {"minimum": least, "maximum": most, **kwargs.get("metadata", {})}
        super().__init__(strict=True, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        number = super()._deserialize(value, attr, data, **kwargs)
        if not self.least <= number <= self.most:
            raise self.make_error("range", least=self.least, most=self.most)
        return number


class Truth(fields.Boolean):
    """``true`` or ``false`` and nothing else."""

    default_error_messages = {  # noqa: RUF012
        **COMMON,
        "invalid": "must be true or false",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if not isinstance(value, bool):
            raise self.make_error("invalid")
        return value


class Choice(fields.String):
    """One of the words of an enumeration, which is a component of the OpenAPI document under its name."""

    default_error_messages = {  # noqa: RUF012
        **COMMON,
        "invalid": "must be one of: {words}",
    }

    def __init__(self, words: type[StrEnum], **kwargs: Any) -> None:
        self.words = words
        super().__init__(**kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        if not isinstance(value, str) or value not in list(self.words):
            raise self.make_error("invalid", words=", ".join(self.words))
        return value


RFC_3339 = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?(?:[Zz]|[+-]([0-9]{2}):([0-9]{2}))"
)


class Moment(fields.Field[datetime]):
    """A time in RFC 3339; in with an offset, out in UTC with microseconds and a Z."""

    default_error_messages = {  # noqa: RUF012
        **COMMON,
        "invalid": "must be a time in RFC 3339 with an offset, like 2026-01-31T09:00:00Z or 2026-01-31T12:00:00+03:00",
        "offset": "has an offset that does not exist: its hours are 00 to 23, its minutes 00 to 59",
        "year": "must lie in the years {first} to {last}, in UTC",
    }

    def _serialize(self, value: datetime | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else show_time(value)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> datetime:
        match = RFC_3339.fullmatch(value) if isinstance(value, str) else None
        if match is None:
            raise self.make_error("invalid")
        if match[1] and not (match[1] < "24" and match[2] < "60"):  # Python reads +03:60 as +04:00
            raise self.make_error("offset")
        try:
            moment = datetime.fromisoformat(value.upper()).astimezone(UTC)
        except ValueError:
            raise self.make_error("invalid") from None
        except OverflowError:  # beyond the years 1 and 9999
            moment = None
        if moment is None or not YEARS[0] <= moment.year <= YEARS[1]:
            raise self.make_error("year", first=YEARS[0], last=YEARS[1])
        return moment


def show_time(value: datetime) -> str:
    """Return a time as the API shows it: ``2026-01-31T09:00:00.000000Z``."""
    in_utc = value if value.tzinfo is UTC else value.astimezone(UTC)
    return in_utc.isoformat(timespec="microseconds").removesuffix("+00:00") + "Z"


class Phone(fields.Field[int]):
    """A phone number: in as people write it, out as digits."""

    default_error_messages = {  # noqa: RUF012
        **COMMON,
        "type": 'must be a string, like "79161234567"',
    }

    def __init__(self, **kwargs: Any) -> None:
        kwargs["metadata"] = {"maxLength": phones.LONGEST, **kwargs.get("metadata", {})}
        super().__init__(**kwargs)

    def _serialize(self, value: int | None, attr: str | None, obj: Any, **kwargs: Any) -> str | None:
        return None if value is None else str(value)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not isinstance(value, str):
            raise self.make_error("type")
        try:
            return phones.parse(value)
        except phones.NotAPhone as error:
            raise ValidationError(str(error)) from None


class Zone(Text):
    """An IANA time zone, in its one spelling."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(64, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        name = super()._deserialize(value, attr, data, **kwargs)
        if name not in zones.names():
            raise ValidationError(zones.refusal(name))
        return name


class OperatorCode(Text):
    """1 to 16 digits."""

    default_error_messages = {"digits": 'must consist of digits, like "916"'}  # noqa: RUF012

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(16, metadata={"pattern": "^[0-9]+$", **kwargs.pop("metadata", {})}, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        code = super()._deserialize(value, attr, data, **kwargs)
        if not re.fullmatch("[0-9]+", code):
            raise self.make_error("digits")
        return code


class Tag(Text):
    """A tag; white space around it is dropped, since nobody would see it."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(TAG_MAX, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        return super()._deserialize(value, attr, data, **kwargs).strip()


class Counted(fields.List[Any]):
    """A list of ``fewest`` to ``most`` members, which are counted before they are looked at."""

    default_error_messages = {  # noqa: RUF012
        **COMMON,
        "invalid": "must be a list",
        "length": "must have {fewest} to {most} members; this has {length}",
    }

    def __init__(self, inner: fields.Field[Any], *, fewest: int = 0, most: int, **kwargs: Any) -> None:
        self.fewest, self.most = fewest, most
        kwargs["metadata"] = {"minItems": fewest, "maxItems": most, **kwargs.get("metadata", {})}
        super().__init__(inner, **kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        if isinstance(value, list) and not self.fewest <= len(value) <= self.most:
            raise self.make_error("length", fewest=self.fewest, most=self.most, length=len(value))
        return super()._deserialize(value, attr, data, **kwargs)


class Several(Counted):
    """A list of which those members are dropped that repeat an earlier one."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> list[Any]:
        return list(dict.fromkeys(super()._deserialize(value, attr, data, **kwargs)))


class Attributes(fields.Dict):
    """Any JSON object of up to 16 KB."""

    default_error_messages = {  # noqa: RUF012
        **COMMON,
        "invalid": "must be an object",
        "size": "must not be over {most} bytes of JSON; this has {size}",
    }

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self.make_error("invalid")
        size = len(orjson.dumps(value))
        if size > ATTRIBUTES_MAX:
            raise self.make_error("size", most=ATTRIBUTES_MAX, size=size)
        return value


class Limit(fields.Integer):
    """How many items a page may have, in a query."""

    default_error_messages = {"invalid": f"must be an integer from 1 to {PAGE_MAX}"}  # noqa: RUF012

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> int:
        if not re.fullmatch("[1-9][0-9]{0,2}", value) or int(value) > PAGE_MAX:
            raise self.make_error("invalid")
        return int(value)


class Flag(fields.Boolean):
    """``true`` or ``false``, in a query."""

    default_error_messages = {"invalid": "must be true or false"}  # noqa: RUF012

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> bool:
        if value not in ("true", "false"):
            raise self.make_error("invalid")
        return bool(value == "true")


class Cursor(fields.Field[Position]):
    """Where a page begins: as many integers as one of ``lengths`` says."""

    default_error_messages = {"broken": CURSOR_BROKEN, "elsewhere": CURSOR_ELSEWHERE}  # noqa: RUF012

    def __init__(self, *lengths: int, **kwargs: Any) -> None:
        self.lengths = lengths
        super().__init__(**kwargs)

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> Position:
        position = read_cursor(value)
        if position is None:
            raise self.make_error("broken")
        if len(position) not in self.lengths:
            raise self.make_error("elsewhere")
        return position
