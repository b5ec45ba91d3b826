"""What went wrong with a request, and how it is told: errors as problems (RFC 9457) with their statuses."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import tornado.web

from notifier import errors
from notifier.storage.database import AWAY, DISTURBED
from notifier.web import schemas
from notifier.web.budgets import FAILURES_MAX, Busy
from notifier.web.sentences import detail as detail_of
from notifier.web.sentences import sentence


class BadRequest(errors.NotifierError):
    """The request cannot be understood."""


class Misdirected(errors.NotifierError):
    """This is not the host under which the service is reached."""

    def __init__(self, host: str, url: str) -> None:
        super().__init__(
            f"This service is {url}, and this request is for {host[:100]!r}. Call that address; if you did, its proxy"
            " does not pass the header Host on."
        )


class TooLarge(errors.NotifierError):
    """The body is too large."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"The body is over {most // 1024**2} MB." if most >= 1024**2 else f"The body is over {most // 1024} KB."
        )


class Encoded(errors.NotifierError):
    """Bodies with a Content-Encoding are not taken: send the JSON as it is."""


class Unauthorized(errors.NotifierError):
    """A token is needed: Authorization: Bearer …"""


class Forbidden(errors.NotifierError):
    """The token does not allow this."""


class TooMany(errors.NotifierError):
    """Too many wrong tokens came from this address; ``seconds`` until another may be tried."""

    def __init__(self, seconds: int) -> None:
        super().__init__(
            f"More than {FAILURES_MAX} wrong tokens a minute came from your address. Wait {seconds} s; a right one"
            " enters at once."
        )
        self.seconds = seconds


IN_DETAIL = 5
"""Things wrong with the input that ``detail`` names; ``errors`` has them all."""

# The first class that fits: those below stand before those above them in the tree.
STATUS_OF: dict[type[BaseException], tuple[int, str, str]] = {
    schemas.TooMuch: (413, "too-large", "The body is too large"),
    schemas.Unparsable: (400, "unparsable", "The body cannot be parsed"),
    BadRequest: (400, "bad-request", "The request cannot be understood"),
    Unauthorized: (401, "unauthorized", "A valid token is needed"),
    Forbidden: (403, "forbidden", "The token does not allow this"),
    errors.NotFound: (404, "not-found", "There is no such thing"),
    errors.PhoneTaken: (409, "phone-taken", "Another client has this phone"),
    errors.IllegalTransition: (409, "illegal-transition", "The status does not allow this"),
    errors.Conflict: (409, "conflict", "The present state does not allow this"),
    errors.Stale: (412, "stale", "The resource was changed meanwhile"),
    Misdirected: (421, "misdirected", "Another host is meant"),
    TooLarge: (413, "too-large", "The body is too large"),
    Encoded: (415, "encoded", "The body is encoded"),
    errors.Invalid: (422, "invalid", "The input is not acceptable"),
    TooMany: (429, "too-many-failures", "Too many wrong tokens"),
    errors.Unavailable: (503, "unavailable", "The database is unavailable"),
    Busy: (503, "busy", "Too much has come at once"),
}


def problem_of(error: BaseException | None, status: int = 500) -> dict[str, Any]:
    """Return the problem (RFC 9457, without its ``request_id``) that tells a client of ``error``.

    ``status`` is what to say where there is no error, or one that is none of ours. Nothing of an unforeseen error is
    told.
    """
    for known, (code, kind, title) in STATUS_OF.items():
        if isinstance(error, known):
            problem = {
                "type": f"urn:notifier:{kind}",
                "title": title,
                "status": code,
                "detail": sentence(error),
            }
            if isinstance(error, errors.DomainError):
                problem["code"] = error.code
            if isinstance(error, errors.PhoneTaken):
                problem["client_id"] = error.client_id
            if isinstance(error, errors.Invalid):
                problem["errors"] = [
                    {"parameter" if each.parameter else "pointer": each.at, "detail": detail_of(each.detail)}
                    for each in error.problems
                ]
                named = [f"{each.at or 'the body'}: {detail_of(each.detail)}" for each in error.problems[:IN_DETAIL]]
                more = len(error.problems) - len(named)
                problem["detail"] = "; ".join(named) + (f"; and {more} more" if more else "")
            return problem
    if is_away(error):
        return problem_of(errors.Unavailable())
    if isinstance(error, tornado.web.HTTPError):
        status = error.status_code
    try:
        title = HTTPStatus(status).phrase
    except ValueError:
        title = "Error"
    detail = {
        400: "The request cannot be understood.",
        403: "This is not allowed from here.",
        404: "There is nothing at this address.",
        405: "This address does not take this method; Allow lists those it takes.",
        500: "Something went wrong on our side; the log has it under this request_id.",
    }.get(status, f"{title}.")
    return {"type": "about:blank", "title": title, "status": status, "detail": detail}


def is_away(error: BaseException | None) -> bool:
    """Whether ``error`` says that the database cannot serve now; the same call may succeed later."""
    return isinstance(error, (*AWAY, *DISTURBED))
