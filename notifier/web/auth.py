"""Who calls, and what a token may do."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

PUBLIC = ""
"""The scope of what needs no token."""
SCOPES = frozenset(
    {
        "clients:read",
        "clients:write",
        "mailings:read",
        "mailings:write",
        "messages:read",
        "messages:write",
        "statistics:read",
        "gateways:read",
        "gateways:write",
    }
)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the name of a token, its SHA-256, and what it may do."""

    name: str
    digest: bytes
    scopes: frozenset[str]


TokenCheck = Callable[[bytes], Awaitable[Caller | None]]
"""Returns whose token has this SHA-256, or None; asked for every call that needs one."""


def digest_of(token: str) -> bytes:
    """Return the SHA-256 of a token: all that is kept of it."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def bootstrap_token(token: str | None) -> TokenCheck:
    """Return the check that knows one token, with every scope; with None it knows none."""
    known = None if token is None else digest_of(token)

    async def check(digest: bytes) -> Caller | None:
        if known is None or not hmac.compare_digest(digest, known):
            return None
        return Caller("bootstrap", digest, SCOPES)

    return check
