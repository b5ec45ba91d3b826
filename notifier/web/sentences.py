"""The sentences of errors, made where they are shown: problem details, pages, command line."""

from __future__ import annotations

from notifier.errors import Code, DomainError

SENTENCES: dict[Code, str] = {
    Code.NOT_FOUND: "There is no such thing.",
    Code.NO_ID: "'{text}' is no id: ids are integers from 1 to {most}.",
    Code.NO_ADDRESS_WITH_SLASH: "There is nothing at this address; there may be without the slash at its end.",
    Code.NO_PAGE: "There is no page at this address.",
    Code.NO_CLIENT: "There is no client {id}.",
    Code.NO_MAILING: "There is no mailing {id}.",
    Code.NO_DELETED_MAILING: "There is no deleted mailing {id}.",
    Code.MAILING_PURGED: "Mailing {id} was deleted too long ago; its messages are gone.",
    Code.NO_MESSAGE: "There is no message {id}.",
    Code.NO_GATEWAY: "There is no gateway '{name}'.",
    Code.CONFLICT: "The present state does not allow this.",
    Code.PHONE_TAKEN: "Another client has this phone.",
    Code.MAILING_OVER: "The mailing is {status}; nothing can be changed any more.",
    Code.MAILING_STARTED: "The mailing has started; {fields} cannot be changed any more.",
    Code.STATUS_FORBIDS: "A mailing that is {status} cannot {verb}.",
    Code.END_HAS_COME: "The mailing is over; it cannot {verb}.",
    Code.NOT_OVER: "Only a mailing that is over is archived; this one is {status}.",
    Code.MESSAGE_NOT_UNKNOWN: "Only a message that is unknown can be resolved.",
    Code.TOO_LATE_TO_SEND: "The mailing is over; the message cannot be sent again.",
    Code.CHANGES_TOO_FAST: "Message {id} changes faster than it can be written.",
    Code.FIRST_UNDER_WAY: "The first request with this Idempotency-Key is still under way.",
    Code.KEY_USED: "this Idempotency-Key was used with another body; take a new key",
    Code.ENDS_IN_THE_PAST: "lies in the past: the mailing would be over already",
    Code.ENDS_BEFORE_START: "must be after starts_at",
    Code.CURSOR_ELSEWHERE: "is no cursor of this list: take next_cursor of the page before as it is",
}
"""Where a parameter stands in braces; those of single fields follow the name of the field."""


def sentence(error: BaseException) -> str:
    """Return what people read of an error."""
    if isinstance(error, DomainError):
        return SENTENCES[error.code].format_map(error.parameters)
    return str(error)


def detail(said: str | Code) -> str:
    """Return what people read of one thing wrong with the input."""
    return SENTENCES[said] if isinstance(said, Code) else said
