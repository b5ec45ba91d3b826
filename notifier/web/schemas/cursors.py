"""Cursors: where the next page of a list begins, as an opaque word in a URL."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

import orjson

from notifier.models import INT64_MAX

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
