"""Every error of the domain, in one tree.

NotifierError           a class's docstring is its default message
├── SettingsError       the start is refused: every wrong setting at once
├── DomainError         a code with parameters; the sentence is made where it is shown (`web/sentences.py`)
│   ├── NotFound        no such thing
│   └── Conflict        the state, or another row, does not allow it
│       ├── PhoneTaken  another client has this phone
│       └── IllegalTransition
├── Stale               ``If-Match`` names an older version
├── Invalid             understood, but not acceptable; points at the fields
└── Unavailable         the database is unavailable; try again
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


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


class Code(StrEnum):
    """What is wrong, for programs; in brackets the parameters of its sentence."""

    NOT_FOUND = "not_found"
    NO_ID = "no_id"  # (text, most)
    NO_ADDRESS_WITH_SLASH = "no_address_with_slash"
    NO_PAGE = "no_page"
    NO_CLIENT = "no_client"  # (id)
    NO_MAILING = "no_mailing"  # (id)
    NO_DELETED_MAILING = "no_deleted_mailing"  # (id)
    MAILING_PURGED = "mailing_purged"  # (id)
    NO_MESSAGE = "no_message"  # (id)
    NO_GATEWAY = "no_gateway"  # (name)
    CONFLICT = "conflict"
    PHONE_TAKEN = "phone_taken"  # (client_id)
    MAILING_OVER = "mailing_over"  # (status)
    MAILING_STARTED = "mailing_started"  # (fields)
    STATUS_FORBIDS = "status_forbids"  # (status, verb)
    END_HAS_COME = "end_has_come"  # (verb)
    NOT_OVER = "not_over"  # (status)
    MESSAGE_NOT_UNKNOWN = "message_not_unknown"
    TOO_LATE_TO_SEND = "too_late_to_send"
    CHANGES_TOO_FAST = "changes_too_fast"  # (id)
    FIRST_UNDER_WAY = "first_under_way"
    KEY_USED = "key_used"
    ENDS_IN_THE_PAST = "ends_in_the_past"
    ENDS_BEFORE_START = "ends_before_start"
    CURSOR_ELSEWHERE = "cursor_elsewhere"


class DomainError(NotifierError):
    """A code with the parameters of its sentence."""

    default = Code.NOT_FOUND

    def __init__(self, code: Code | None = None, **parameters: str | int) -> None:
        self.code = code or self.default
        self.parameters = parameters
        super().__init__(" ".join([self.code, *(f"{name}={value}" for name, value in parameters.items())]))


class NotFound(DomainError):
    """There is no such thing."""


class Conflict(DomainError):
    """The present state does not allow this."""

    default = Code.CONFLICT


class PhoneTaken(Conflict):
    """Another client has this phone."""

    def __init__(self, client_id: int) -> None:
        self.client_id = client_id
        super().__init__(Code.PHONE_TAKEN, client_id=client_id)


class IllegalTransition(Conflict):
    """The status does not allow this."""


class Stale(NotifierError):
    """The resource was changed since you read it: read it again, then repeat the edit."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with the input.

    ``at`` is a JSON pointer into the body (``/phone``), or the name of a query parameter when ``parameter`` is true;
    ``detail`` is a sentence, or a code whose sentence is made where it is shown.
    """

    at: str
    detail: str | Code
    parameter: bool = False


class Invalid(NotifierError):
    """The input is not acceptable."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("; ".join(f"{p.at}: {p.detail}" for p in problems))


class Unavailable(NotifierError):
    """The database is unavailable; try again in a moment."""
