"""Conditional requests: ``If-Match`` and ``If-None-Match``, whose ETags are versions."""

from __future__ import annotations

import re

from tornado.httputil import HTTPHeaders

from notifier.errors import Stale
from notifier.web.problems import BadRequest

INT32_MAX = 2**31 - 1
"""The largest version there can be."""


def asked_version(headers: HTTPHeaders) -> int | None:
    """Return the version that ``If-Match`` asks for; None when any will do. Raises `Stale` for one that never was.

    A weak one is taken as well: proxies that compress answers make ``W/"7"`` of our ``"7"``.
    """
    text = headers.get("If-Match", "*").strip()
    if text == "*":
        return None
    if not re.fullmatch(r'(W/)?"[\x21\x23-\x7e\x80-\xff]*"', text):
        raise BadRequest('If-Match: one ETag (not several) as it was given, like "7", or *')
    version = text.removeprefix("W/").strip('"')
    if not re.fullmatch(r"[1-9][0-9]{0,9}", version) or int(version) > INT32_MAX:
        raise Stale
    return int(version)


def is_known(headers: HTTPHeaders, version: int) -> bool:
    """Whether ``If-None-Match`` names this version; compared weakly (RFC 9110, 13.1.2)."""
    known = headers.get("If-None-Match", "")
    return known.strip() == "*" or f'"{version}"' in re.findall(r'"[^"]*"', known)
