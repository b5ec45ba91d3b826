"""From JSON and query strings to checked values; each fault is told with where it is."""

from __future__ import annotations

import codecs
import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from itertools import islice
from typing import Any, cast

from marshmallow import Schema, ValidationError

from notifier.errors import Invalid, NotifierError, Problem
from notifier.models import INT64_MAX
from notifier.web.schemas.cursors import CURSOR_ELSEWHERE, list_key

ERRORS_MAX = 100
"""Faults that are reported at once: a body of 1 MB can have 100,000."""
PARTS_MAX = 500_000
"""Commas and opening brackets of a body: so many values take 50 MB and 0.1 s."""
VALUES_MAX = 10_000
"""Values that are checked one by one: more than the longest lists and 16 KB of attributes can have."""
DEPTH_MAX = 32
"""Levels of lists and objects inside each other: orjson writes 254, PostgreSQL reads thousands."""


class TooMuch(NotifierError):
    """The body has more values than are checked."""


class Unparsable(NotifierError):
    """The body is not JSON."""


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
