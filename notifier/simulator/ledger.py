"""The ledger: what the simulated gateway was asked and what it answered.

It has a JSON line per request, written before the answer leaves: ``{"at", "id", "phone", "text", "authorized",
"repeat", "status", "code"}``. ``at`` is when the request arrived, ``repeat`` that this id was accepted before.
Status 200 with code 0 means that the gateway took the message, also where the client never sees it (``accept``
in a script); status 0 means that no answer was given. ``drip`` and ``delay`` of the success count as taken at
once. A ledger that exists is continued, and its accepted ids stay accepted.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import NamedTuple

import orjson


class Entry(NamedTuple):
    """A line of the ledger; ``at`` is aware UTC, ``id``, ``phone`` and ``text`` are None where unreadable."""

    at: datetime
    id: int | None
    phone: int | None
    text: str | None
    authorized: bool
    repeat: bool
    status: int
    code: int | None

    @property
    def accepted(self) -> bool:
        """Whether the gateway took the message with this request, or had taken it and said so again."""
        return self.status == 200 and self.code == 0


def read_ledger(path: str | Path) -> list[Entry]:
    """Return the ledger's entries in order; a last line without its end (a killed writer) is left out.

    Raises ValueError, with the number of the line, for any other line that is not an entry.
    """
    entries = []
    for number, line in enumerate(Path(path).read_bytes().split(b"\n")[:-1], 1):
        try:
            given = orjson.loads(line)
            entries.append(Entry(**{**given, "at": datetime.fromisoformat(given["at"])}))
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{path}, line {number}: not a ledger entry: {error}") from error
    return entries
