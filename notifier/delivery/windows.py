"""Local hours: when a client may be texted. Pure functions of instant, window and zone.

A client is inside its window when its wall clock shows a time in [start, end), whatever the zone did that night: in a
gap the window opens when the clock has jumped past ``start``, in an overlap it may be open twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from notifier.models import Window


def zone(name: str | None, default: ZoneInfo) -> ZoneInfo:
    """The zone of that name; the default for None, and for a name that the zone data do not know any more."""
    try:
        return ZoneInfo(name) if name else default
    except (ZoneInfoNotFoundError, ValueError):
        return default


def is_open(at: datetime, window: Window, zone: ZoneInfo) -> bool:
    """Whether the wall clock of ``zone`` at the instant ``at`` lies within the window."""
    wall = at.astimezone(zone).time()
    if window.start < window.end:
        return window.start <= wall < window.end
    return wall >= window.start or wall < window.end


def opens_at(now: datetime, window: Window, zone: ZoneInfo) -> datetime:
    """``now`` when the window is open, else the next instant at which it is."""
    if is_open(now, window, zone):
        return now
    return next(at for at in _boundaries(now, window, zone) if is_open(at, window, zone))


def closes_at(now: datetime, window: Window, zone: ZoneInfo) -> datetime:
    """The next instant at which the window is closed; ``now`` when it is."""
    if not is_open(now, window, zone):
        return now
    return next(at for at in _boundaries(now, window, zone) if not is_open(at, window, zone))


def _boundaries(now: datetime, window: Window, zone: ZoneInfo) -> Iterator[datetime]:
    """Instants after ``now``, in order, at which the window may open or close: its two times and jumps of the clock."""
    day = now.astimezone(zone).date()
    for _ in range(4):  # a window opens and closes within two days; a zone may skip a whole one
        edges = [datetime.combine(day, edge, zone) for edge in (window.start, window.end)]
        candidates = {edge.replace(fold=fold).astimezone(UTC) for edge in edges for fold in (0, 1)}
        candidates |= set(_jumps(datetime.combine(day, time(0), UTC) - timedelta(hours=15), zone))
        yield from sorted(at for at in candidates if at > now)
        day += timedelta(days=1)


def _jumps(start: datetime, zone: ZoneInfo) -> Iterator[datetime]:
    """The instants within two days of ``start`` (a whole second) at which the zone's offset changes."""
    for hour in range(48):
        low = start + timedelta(hours=hour)
        offset, seconds = low.astimezone(zone).utcoffset(), 3600
        if (low + timedelta(seconds=seconds)).astimezone(zone).utcoffset() != offset:
            # bisect: at low + first the offset is still the old one, at low + seconds the new one
            first = 0
            while seconds - first > 1:
                middle = (first + seconds) // 2
                if (low + timedelta(seconds=middle)).astimezone(zone).utcoffset() == offset:
                    first = middle
                else:
                    seconds = middle
            yield low + timedelta(seconds=seconds)
