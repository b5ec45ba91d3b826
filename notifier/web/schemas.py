"""JSON and query strings ↔ the domain: what is accepted, what is shown, and what is said of what is wrong.

The same classes check, answer and become the OpenAPI document. Fields are strict: ``"1"`` is no integer, and neither
is ``true``. Every message says what would be right.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, time
from enum import StrEnum
from functools import cache
from hashlib import sha256
from itertools import islice
from typing import Any, cast

import orjson
from marshmallow import RAISE, Schema, ValidationError, fields, post_load, validates_schema

from notifier import characters, phones, zones
from notifier.errors import Invalid, NotifierError, Problem
from notifier.models import (
    INT64_MAX,
    BreakerState,
    Filter,
    GatewayState,
    MailingStatus,
    OnUnknown,
    Outcome,
    Reason,
    Status,
    StatusReason,
    Window,
)
from notifier.storage.statistics import Step

ERRORS_MAX = 100
"""Errors told of at once; a body of a megabyte could earn a hundred thousand."""
PARTS_MAX = 500_000
"""Commas and opening brackets of a body: so many values take 50 MB and a tenth of a second."""
VALUES_MAX = 10_000
"""Values that are looked at one by one: more than the longest lists and 16 KB of attributes can have."""
DEPTH_MAX = 32
"""Lists and objects inside each other; orjson writes 254, PostgreSQL takes thousands."""
YEARS = (1970, 2200)
"""Years a time may lie in: far from the ends of what Python (9999) and time zones can shift."""
TAGS_MAX, TAG_MAX = 50, 64
ATTRIBUTES_MAX = 16 * 1024
"""Bytes of JSON."""
BATCH_MAX = 1000
PAGE_DEFAULT, PAGE_MAX = 50, 200


class TooMuch(NotifierError):
    """The body has more values than we look at."""


class Unparsable(NotifierError):
    """The body is not JSON."""


# ---- reading


def parse(body: bytes) -> Any:
    """Return what the JSON text says. Raises ``Unparsable`` also for NaN, keys given twice and bottomless nesting.

    The standard library's parser: unlike orjson it keeps long integers and lone surrogates as they are, so that the
    fault can be pointed at.
    """
    body = body.removeprefix(codecs.BOM_UTF8)  # as RFC 8259, 8.1 allows: .NET and 1C write one
    if not body.strip():
        raise Unparsable("The body is empty: send a JSON object.")
    if body.count(b",") + body.count(b"{") + body.count(b"[") > PARTS_MAX:
        raise TooMuch(f"The body has over {PARTS_MAX} commas and brackets: send it in smaller parts.")
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant, object_pairs_hook=_unique)
    except UnicodeDecodeError as error:
        raise Unparsable(f"The body is not UTF-8, at byte {error.start}.") from None
    except json.JSONDecodeError as error:
        raise Unparsable(f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}.") from None
    except RecursionError:
        raise Unparsable("The body is nested too deeply.") from None
    except ValueError:  # all that is left: Python reads no integer of over 4,300 digits
        raise Unparsable("The body is not acceptable JSON: an integer is far beyond 64 bits.") from None


def _refuse_constant(name: str) -> None:
    raise Unparsable(f"The body is not acceptable JSON: {name} is no JSON number.")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise Unparsable("The body is not acceptable JSON: an object names the same key twice.")
    return found


@cache
def made(schema: type[Schema]) -> Schema:
    """Return the one instance of a schema: making one costs more than using it."""
    return schema()


def load(schema: type[Schema], value: Any, *, told: int = ERRORS_MAX) -> dict[str, Any]:
    """Return the checked value. Raises ``Invalid`` with a JSON pointer for each fault, ``told`` of them at most."""
    problems = [] if getattr(schema, "PIECEMEAL", False) else list(islice(unstorable(value), told))
    if not problems:
        try:
            return cast("dict[str, Any]", made(schema).load(value))
        except ValidationError as error:
            problems = [Problem(pointer, detail) for pointer, detail in islice(flatten(error.messages), told)]
    raise Invalid(problems)


def load_query(schema: type[Schema], arguments: Mapping[str, list[bytes]], path: str) -> dict[str, Any]:
    """Return the checked query of the list at ``path``. Raises ``Invalid`` with the name of each bad parameter."""
    problems: list[Problem] = []
    given: dict[str, str] = {}
    for name, values in arguments.items():
        try:
            given[name] = values[0].decode()
        except UnicodeDecodeError:
            problems.append(Problem(name, "is not UTF-8", parameter=True))
        if len(values) > 1:
            problems.append(Problem(name, "was given more than once; give it once", parameter=True))
        elif "\0" in given.get(name, ""):
            problems.append(Problem(name, "must not contain a NUL character", parameter=True))
    if not problems:
        try:
            query = cast("dict[str, Any]", made(schema).load(given))
        except ValidationError as error:
            problems = [
                Problem(pointer.removeprefix("/"), detail, parameter=True)
                for pointer, detail in flatten(error.messages)
            ]
        else:
            if query.get("cursor") is None or query["cursor"].key == list_key(path, query):
                return query
            problems = [Problem("cursor", CURSOR_ELSEWHERE, parameter=True)]
    raise Invalid(problems[:ERRORS_MAX])


def unstorable(value: Any) -> Iterator[Problem]:
    """Find what no field may hold: NUL, lone surrogates, numbers beyond 64 bits, nesting over `DEPTH_MAX`.

    Looks at `VALUES_MAX` values; a list or object with which there would be more is a fault itself.
    """
    stack: list[tuple[Any, str, int]] = [(value, "", 0)]
    left = VALUES_MAX
    while stack:
        each, pointer, depth = stack.pop()
        if isinstance(each, str):
            if fault := _fault_of(each):
                yield Problem(pointer, fault)
        elif isinstance(each, int):
            if not -INT64_MAX - 1 <= each <= INT64_MAX:
                yield Problem(pointer, "must be an integer of 64 bits")
        elif isinstance(each, float):
            if not math.isfinite(each):
                yield Problem(pointer, "must be a number of 64 bits")
        elif isinstance(each, dict | list):
            if depth == DEPTH_MAX:
                yield Problem(pointer, f"must not be nested more than {DEPTH_MAX} deep")
                continue
            left -= len(each)
            if left < 0:
                yield Problem(pointer, f"must not bring the body to more than {VALUES_MAX} values")
                return
            pairs = each.items() if isinstance(each, dict) else enumerate(each)
            for key, inner in pairs:
                if isinstance(key, str) and (fault := _fault_of(key)):
                    yield Problem(pointer, f"a key in it {fault}")
                    continue
                stack.append((inner, f"{pointer}/{_escape(key)}", depth + 1))


def _fault_of(text: str) -> str | None:
    if "\0" in text:
        return "must not contain a NUL character"
    # isascii first: it is a flag of the object, and true for most.
    if not text.isascii() and re.search("[\ud800-\udfff]", text):
        return "must not contain half of a surrogate pair"
    return None


def flatten(messages: Any, pointer: str = "") -> Iterator[tuple[str, str]]:
    """Turn marshmallow's nested messages into pairs of JSON pointer and detail."""
    if isinstance(messages, dict):
        for key, inner in messages.items():
            yield from flatten(inner, pointer if key == "_schema" else f"{pointer}/{_escape(key)}")
    elif isinstance(messages, list):
        for inner in messages:
            yield from flatten(inner, pointer)
    else:
        yield pointer, str(messages)


def _escape(key: object) -> str:
    text = str(key).replace("~", "~0").replace("/", "~1")
    return text.encode("utf-8", "replace").decode()


# ---- cursors


CURSOR_BROKEN = "is cut or changed: take next_cursor of the page before as it is"
CURSOR_ELSEWHERE = "is of another list, or of other filters: begin at the first page, without a cursor"
KEY_SIZE = CHECK_SIZE = 6
"""Bytes. They tell mistakes apart; nothing is kept secret by them."""


class Position(tuple[int, ...]):
    """Where a page begins, and in ``key`` of which list."""

    key: bytes


def list_key(path: str, query: Mapping[str, Any]) -> bytes:
    """Return what stands for the list at ``path`` with the filters of ``query``, whatever the size of a page."""
    given = {name: str(value) for name, value in query.items() if value is not None}
    filters = {name: given[name] for name in given.keys() - {"cursor", "limit"}}
    return sha256(orjson.dumps([path, filters], option=orjson.OPT_SORT_KEYS)).digest()[:KEY_SIZE]


def write_cursor(values: Sequence[int], key: bytes) -> str:
    """Return integers as an opaque word for a URL, bound to the list of this `list_key`."""
    content = key + orjson.dumps(values)
    return base64.urlsafe_b64encode(sha256(content).digest()[:CHECK_SIZE] + content).rstrip(b"=").decode()


def read_cursor(text: str) -> Position | None:
    """Return the integers of 64 bits that `write_cursor` wrote, None when it wrote no such text."""
    try:
        content = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)[CHECK_SIZE:]
        values = orjson.loads(content[KEY_SIZE:])
    except (ValueError, binascii.Error):
        return None
    if not isinstance(values, list) or not all(type(each) is int and abs(each) <= INT64_MAX for each in values):
        return None
    found = Position(values)
    found.key = content[:KEY_SIZE]
    return found if write_cursor(values, found.key) == text else None


# ---- fields

COMMON = {"required": "is required", "null": "must not be null"}


CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
"""What no text has: a phone shows it as a box, a terminal obeys it."""


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


# ---- schemas


class Strict(Schema):
    """What every schema of input is: unknown keys are refused."""

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


# ---- clients


class Tag(Text):
    """A tag; white space around it is dropped, for nobody would see it."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **kwargs: Any) -> str:
        return super()._deserialize(value, attr, data, **kwargs).strip()


def _tag(**kwargs: Any) -> Tag:
    return Tag(TAG_MAX, **kwargs)


class ClientEditIn(Strict):
    """A change of a client; what is not named stays."""

    phone = Phone(
        metadata={
            "description": "Unique. In any usual spelling, Russian without a country code; out come E.164 digits.",
            "example": "+7 916 123-45-67",
        }
    )
    operator_code = OperatorCode(metadata={"description": "The number's own when not given.", "example": "916"})
    tags = Several(_tag(), most=TAGS_MAX, metadata={"example": ["vip"]})
    tag = _tag(load_only=True, metadata={"description": "A single tag, instead of tags."})
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
    """What has an ETag: its version."""

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
    tag = _tag()
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


# ---- mailings

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
    tags = Several(_tag(), fewest=1, most=FILTER_MAX, metadata={"example": ["vip"]})

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
    """What has an ETag: its version."""

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


# ---- messages


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


# ---- statistics


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


# ---- gateways

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
    """What has an ETag: its version."""

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
