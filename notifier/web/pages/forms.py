"""Forms: what stands in their fields, how fields are read, and what is wrong, beside each field."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

from notifier.errors import Invalid
from notifier.web import schemas
from notifier.web.sentences import detail

TOLD = 5
"""Errors told of one field: a list of a thousand tags has room for more than anybody reads."""


@dataclass(frozen=True, slots=True)
class Form:
    """A form: what stands in its fields, and what is wrong with it, by field; "" is the form as a whole.

    ``newer`` has what somebody else has put into a field meanwhile.
    """

    values: Mapping[str, str]
    errors: dict[str, list[str]] = field(default_factory=dict)
    newer: Mapping[str, str] = field(default_factory=dict)

    @property
    def first_wrong(self) -> str | None:
        """The first field in the order of the form that is wrong: there the cursor goes."""
        return next((name for name in self.values if name in self.errors), None)

    def refuse(self, name: str, detail: str) -> None:
        """Note what is wrong with a field."""
        if name not in self.values:
            name, detail = "", f"{name}: {detail}" if name else detail
        self.errors.setdefault(name, []).append(detail)

    def blame(self, error: Invalid, fields: Mapping[str, str], body: Any = None) -> None:
        """Put each problem beside its field; ``fields`` maps JSON pointers to fields where the names differ.

        ``body`` is what was checked: a problem with a member of a list names the member.
        """
        for problem in error.problems:
            pointer = problem.at if problem.parameter else problem.at.removeprefix("/")
            name = next((fields[p] for p in fields if pointer == p or pointer.startswith(f"{p}/")), None)
            name = name or pointer.partition("/")[0]
            if len(self.errors.get(name, ())) < TOLD:
                self.refuse(name, _sentence(detail(problem.detail), _member(body, pointer)))

    def check(self, schema: type[schemas.Strict], fields: Mapping[str, str], body: dict[str, Any]) -> dict[str, Any]:
        """Return what the schema makes of the body. Raises ``Invalid``, with the form's errors filled in.

        A field that was refused before is not blamed twice; ``fields`` as for `blame`.
        """
        refused = set(self.errors)
        try:
            loaded = schemas.load(schema, body)
        except Invalid as error:
            found = [each for each in error.problems if each.at.removeprefix("/") not in refused]
            self.blame(Invalid(found), fields, body)
            raise
        if self.errors:
            raise Invalid([])
        return loaded


# What is said of JSON, said of a form.
SAID_OF_A_FORM = {
    "must differ from from; a window of null is the whole day": "must differ from the beginning; "
    "leave both empty for the whole day",
    "must be after starts_at": "must be after the start",
}


def _sentence(detail: str, member: str | None) -> str:
    detail = SAID_OF_A_FORM.get(detail, detail)
    if member is not None:
        detail = f"“{member}” {detail}"
    elif detail[:1].islower():
        detail = f"This {detail}"
    return detail if detail.endswith((".", "?")) else f"{detail}."


def _member(body: Any, pointer: str) -> str | None:
    """The member of a list that a pointer leads to, cut to what a sentence can hold."""
    inside = False
    for part in pointer.split("/"):
        if isinstance(body, list) and part.isdigit() and int(part) < len(body):
            body, inside = body[int(part)], True
        elif isinstance(body, dict) and part in body:
            body, inside = body[part], False
        else:
            return None
    return body[:40] if inside and isinstance(body, str) else None


def several(text: str) -> list[str]:
    """Members separated by commas or lines; one with a comma stands in double quotes."""
    try:
        rows = list(csv.reader(text.splitlines(), skipinitialspace=True))
    except csv.Error:  # a member of over 128 KB: too long for any list here
        rows = [[text]]
    return [member.strip() for row in rows for member in row if member.strip()]


def as_text(members: list[str] | None) -> str:
    """What `several` reads back."""
    out = io.StringIO()
    csv.writer(out, lineterminator="").writerow(members or [])
    return out.getvalue().replace(",", ", ") if not any("," in each for each in members or []) else out.getvalue()


def read_time(text: str, zone: ZoneInfo) -> str:
    """Return RFC 3339 for what a ``datetime-local`` field of this zone holds.

    An hour that the clocks repeat means its first time. Raises ValueError, in words, for one they skip, and for what
    is no time.
    """
    try:
        local = datetime.fromisoformat(text)
    except ValueError:
        local = None
    if local is None or local.tzinfo is not None:
        raise ValueError("This is no time: write it like 2026-01-31T09:00.")
    try:
        moment = local.replace(tzinfo=zone).astimezone(UTC)
        back = moment.astimezone(zone).replace(tzinfo=None)
    except OverflowError:  # the schema says which years are meant
        return f"{local.isoformat(timespec='seconds')}Z"
    if back != local:
        raise ValueError(f"The clocks in {zone.key} skip this time; {back:%H:%M} is the same moment.")
    return schemas.show_time(moment)


def show_time(value: datetime, zone: ZoneInfo) -> str:
    """Return what a ``datetime-local`` field of this zone shows; whole minutes without seconds."""
    local = value.astimezone(zone).replace(tzinfo=None, microsecond=0)
    return local.isoformat(timespec="seconds" if local.second else "minutes")


def changes(form: Form, before: Form, fields: Mapping[str, str], body: dict[str, Any]) -> dict[str, Any]:
    """Of ``body`` what the form changed: its keys whose fields do not read as they did ``before``.

    So a time keeps its seconds, and a list its commas, as long as nobody touches them.
    """
    touched = {fields.get(name, name) for name, value in form.values.items() if value != before.values.get(name)}
    return {key: value for key, value in body.items() if key in touched}
