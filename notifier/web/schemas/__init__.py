"""The schemas of the API: JSON and query strings to checked values, and the fields of each answer.

The same classes check what comes in, say what an answer shows, and become the OpenAPI document. Fields are strict:
``"1"`` is no integer, and neither is ``true``. Every message says what would be right.

Other packages write ``from notifier.web import schemas`` and find here what they use.
"""

from __future__ import annotations

from notifier.web.schemas.base import NoBody, NoQuery, PageQuery, ProblemOut, Strict, page_of
from notifier.web.schemas.clients import (
    ClientBatchIn,
    ClientBatchOut,
    ClientEditIn,
    ClientIn,
    ClientOut,
    ClientsQuery,
)
from notifier.web.schemas.cursors import list_key, write_cursor
from notifier.web.schemas.fields import Choice, Cursor, Moment, Phone, show_time
from notifier.web.schemas.gateways import GatewayEditIn, GatewayOut
from notifier.web.schemas.mailings import (
    TEXT_MAX,
    ArchivedQuery,
    FilterOut,
    MailingEditIn,
    MailingIn,
    MailingOut,
    MailingsQuery,
    TimeOfDay,
)
from notifier.web.schemas.messages import MessageOut, MessagesQuery, MessageWithTimelineOut, ResolveIn
from notifier.web.schemas.reading import TooMuch, Unparsable, load, load_query, made, parse
from notifier.web.schemas.statistics import OverviewOut, StatisticsOut, StatisticsQuery

__all__ = [
    "TEXT_MAX",
    "ArchivedQuery",
    "Choice",
    "ClientBatchIn",
    "ClientBatchOut",
    "ClientEditIn",
    "ClientIn",
    "ClientOut",
    "ClientsQuery",
    "Cursor",
    "FilterOut",
    "GatewayEditIn",
    "GatewayOut",
    "MailingEditIn",
    "MailingIn",
    "MailingOut",
    "MailingsQuery",
    "MessageOut",
    "MessageWithTimelineOut",
    "MessagesQuery",
    "Moment",
    "NoBody",
    "NoQuery",
    "OverviewOut",
    "PageQuery",
    "Phone",
    "ProblemOut",
    "ResolveIn",
    "StatisticsOut",
    "StatisticsQuery",
    "Strict",
    "TimeOfDay",
    "TooMuch",
    "Unparsable",
    "list_key",
    "load",
    "load_query",
    "made",
    "page_of",
    "parse",
    "show_time",
    "write_cursor",
]
