"""Does a replica need more memory for a large mailing than for a small one: the highest it ever had resident.

Most of the large mailing is filled in as if planned, the rest is planned by the replica, which sends for `SECONDS`
while somebody looks at the numbers and the lists.
"""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench import fill
from bench.served import TOKEN, Served, replica
from bench.throughput import Row, a_database

SMALL = 10_000
LEFT = 100_000  # for the planner
SECONDS = 12.0
TARGET, TARGET_MORE = 200, 30  # MB


def peak(server: Served) -> float:
    """MB that the process had resident at most, mapped files included."""
    status = Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def look(server: Served, mailing_id: int) -> None:
    """What the page of a mailing asks for."""
    for path in ("", "/statistics", "/messages?limit=200", "/messages?status=sent", "/messages?status=waiting"):
        request = urllib.request.Request(
            f"{server.url}/api/v1/mailings/{mailing_id}{path}", headers={"Authorization": f"Bearer {TOKEN}"}
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            answer.read()


def measure(url: str, size: int) -> float:
    """MB at most of a fresh replica with a mailing of that size."""
    with a_database() as dsn:
        fill.clients(dsn, size)
        (mailing_id,) = fill.mailings(dsn, size - min(LEFT, size // 2), planned=False)
        with replica(dsn, url) as server:
            deadline = time.monotonic() + SECONDS
            while time.monotonic() < deadline:
                look(server, mailing_id)
                time.sleep(0.5)
            return peak(server)


def rows(url: str) -> Iterator[Row]:
    """Yield the rows of the table."""
    small, large = measure(url, SMALL), measure(url, fill.LARGE)
    question = f"memory at most, mailing of {fill.LARGE:,} over one of {SMALL:,}"
    more = large - small
    yield question, f"{large:.0f} MB", f"{small:.0f} MB", f"{more:+.0f} MB", f"+{TARGET_MORE} MB", more <= TARGET_MORE
    yield "memory at most in all", f"{large:.0f} MB", "-", "-", f"{TARGET} MB", large < TARGET
