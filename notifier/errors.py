"""Every error of the domain, in one tree; a class's docstring is its default message.

NotifierError
├── SettingsError       the start is refused: every wrong setting at once
├── NotFound            no such thing
├── Conflict            the state, or another row, does not allow it
│   ├── PhoneTaken      another client has this phone
│   └── IllegalTransition
├── Stale               ``If-Match`` names an older version
├── Invalid             understood, but not acceptable; points at the fields
└── Unavailable         the database is unavailable; try again
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class NotifierError(Exception):
    """Something went wrong."""

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or (type(self).__doc__ or "").strip().splitlines()[0])


class SettingsError(NotifierError):
    """The settings are wrong; ``rows`` are all settings for people to read and ``warnings`` what is to be said of them.

    Both as far as the settings could be read.
    """

    def __init__(
        self, errors: list[str], rows: Sequence[tuple[str, str, str]] = (), warnings: Sequence[str] = ()
    ) -> None:
        self.errors, self.rows, self.warnings = errors, rows, warnings
        super().__init__("\n".join(errors))


class NotFound(NotifierError):
    """There is no such thing."""


class Conflict(NotifierError):
    """The present state does not allow this."""


class PhoneTaken(Conflict):
    """Another client has this phone."""

    def __init__(self, client_id: int) -> None:
        self.client_id = client_id
        super().__init__()


class IllegalTransition(Conflict):
    """The status does not allow this."""


class Stale(NotifierError):
    """The resource was changed since you read it: read it again, then repeat the edit."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the input.

    ``at`` is a JSON pointer into the body (``/phone``), or the name of a query parameter when ``parameter`` is true.
    """

    at: str
    detail: str
    parameter: bool = False


class Invalid(NotifierError):
    """The input is not acceptable."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{p.at}: {p.detail}" for p in problems))


class Unavailable(NotifierError):
    """The database is unavailable; try again in a moment."""
