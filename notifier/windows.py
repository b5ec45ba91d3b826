"""Local hours: when a client may be texted. Pure functions of instant, window and zone.

A client is inside its window when its wall clock shows a time in [start, end), whatever the zone did that night: in a
gap the window opens when the clock has jumped past ``start``, in an overlap it may be open twice.
"""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from notifier.models import Window

UNKNOWN = ZoneInfo.no_cache("UTC")
DAY, SECOND = timedelta(days=1), timedelta(seconds=1)


def zone(name: str | None, default: ZoneInfo) -> ZoneInfo:
    """The zone of that name; the default for None, and for a name that the zone data here do not know."""
    try:
        return ZoneInfo(name) if name else default
    except (ZoneInfoNotFoundError, ValueError, OSError):  # OSError: of a folder, "Europe", or a name too long for one
        return default


def is_known(name: str) -> bool:
    """Whether the zone data here have a zone of that name."""
    return zone(name, UNKNOWN) is not UNKNOWN


def is_open(at: datetime, window: Window, zone: ZoneInfo) -> bool:
    """Whether the wall clock of ``zone`` at the instant ``at`` lies within the window."""
    wall = at.astimezone(zone).time()
    if window.start < window.end:
        return window.start <= wall < window.end
    return wall >= window.start or wall < window.end


def opens_at(now: datetime, window: Window, zone: ZoneInfo) -> datetime:
    """``now`` when the window is open, else the next instant at which it is."""
    return _first(now, window, zone, open_=True)


def closes_at(now: datetime, window: Window, zone: ZoneInfo) -> datetime:
    """The next instant at which the window is closed; ``now`` when it is."""
    return _first(now, window, zone, open_=False)


def _first(now: datetime, window: Window, zone: ZoneInfo, *, open_: bool) -> datetime:
    """The first instant from ``now`` on at which the window is open, or closed.

    While the offset stays, the wall clock runs evenly, so the edge's next time is a matter of subtraction; at a jump of
    the clock the question is asked anew.
    """
    edge = _since_midnight(window.start if open_ else window.end)
    at = now
    while is_open(at, window, zone) != open_:
        at = at.astimezone(UTC)
        reached = at + (edge - _since_midnight(at.astimezone(zone).time())) % DAY
        at = min(reached, _next_jump(at, zone) or reached)
    return at


def _since_midnight(wall: time) -> timedelta:
    return timedelta(hours=wall.hour, minutes=wall.minute, seconds=wall.second, microseconds=wall.microsecond)


def _next_jump(after: datetime, zone: ZoneInfo) -> datetime | None:
    """The first instant within a day after ``after`` (in UTC) at which the zone's offset changes.

    One at most: since 1970 no zone has changed twice within six days (tzdata 2026f).
    """
    low = after.replace(microsecond=0)
    high = low + DAY + SECOND
    offset = low.astimezone(zone).utcoffset()
    if high.astimezone(zone).utcoffset() == offset:
        return None
    while high - low > SECOND:
        middle = low + (high - low) // 2 // SECOND * SECOND
        if middle.astimezone(zone).utcoffset() == offset:
            low = middle
        else:
            high = middle
    return high
