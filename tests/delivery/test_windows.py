"""Local hours, also on the nights when clocks jump."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.delivery.windows import closes_at, is_open, opens_at, zone
from notifier.models import Window

NEW_YORK, MOSCOW = ZoneInfo("America/New_York"), ZoneInfo("Europe/Moscow")
KATHMANDU, APIA = ZoneInfo("Asia/Kathmandu"), ZoneInfo("Pacific/Apia")


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


DAY = Window(time(9), time(21))
NIGHT = Window(time(22), time(6))
CASES = [
    # window, zone, now, opens, closes after that
    (DAY, MOSCOW, "2026-05-01 05:59", "2026-05-01 06:00", "2026-05-01 18:00"),
    (DAY, MOSCOW, "2026-05-01 06:00", "2026-05-01 06:00", "2026-05-01 18:00"),
    (DAY, MOSCOW, "2026-05-01 18:00", "2026-05-02 06:00", "2026-05-02 18:00"),
    (NIGHT, MOSCOW, "2026-05-01 12:00", "2026-05-01 19:00", "2026-05-02 03:00"),
    (NIGHT, MOSCOW, "2026-05-01 23:00", "2026-05-01 23:00", "2026-05-02 03:00"),
    (DAY, KATHMANDU, "2026-05-01 00:00", "2026-05-01 03:15", "2026-05-01 15:15"),
    # 2:00 is 3:00 that night: the clock jumps into the window
    (Window(time(2, 30), time(4)), NEW_YORK, "2026-03-08 05:00", "2026-03-08 07:00", "2026-03-08 08:00"),
    # and over it: there is no such time that night
    (Window(time(2, 15), time(2, 45)), NEW_YORK, "2026-03-08 05:00", "2026-03-09 06:15", "2026-03-09 06:45"),
    # 1:00 to 2:00 comes twice: open, closed and open again
    (Window(time(1, 30), time(1, 45)), NEW_YORK, "2026-11-01 05:00", "2026-11-01 05:30", "2026-11-01 05:45"),
    (Window(time(1, 30), time(1, 45)), NEW_YORK, "2026-11-01 05:46", "2026-11-01 06:30", "2026-11-01 06:45"),
    # the clock falls back out of the window
    (Window(time(1, 30), time(3)), NEW_YORK, "2026-11-01 05:45", "2026-11-01 05:45", "2026-11-01 06:00"),
    # Samoa had no 30 December 2011
    (DAY, APIA, "2011-12-30 08:00", "2011-12-30 19:00", "2011-12-31 07:00"),
]


@pytest.mark.parametrize(("window", "tz", "now", "opens", "closes"), CASES)
def test_when_a_window_opens_and_closes(window: Window, tz: ZoneInfo, now: str, opens: str, closes: str) -> None:
    opened = opens_at(utc(now), window, tz)
    assert opened == utc(opens)
    assert closes_at(opened, window, tz) == utc(closes)


@given(
    now=st.datetimes(datetime(2024, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC)),
    start=st.times().map(lambda t: t.replace(second=0, microsecond=0)),
    length=st.integers(1, 24 * 60 - 1),
    tz=st.sampled_from([NEW_YORK, MOSCOW, KATHMANDU, APIA, ZoneInfo("Australia/Lord_Howe"), ZoneInfo("UTC")]),
)
def test_both_agree_with_the_wall_clock(now: datetime, start: time, length: int, tz: ZoneInfo) -> None:
    end = (datetime.combine(datetime(2026, 1, 1), start) + timedelta(minutes=length)).time()
    window = Window(start, end)
    opens = opens_at(now, window, tz)
    closes = closes_at(opens, window, tz)
    assert now <= opens < closes
    assert is_open(opens, window, tz)
    assert not is_open(closes, window, tz)
    for share in (0.01, 0.3, 0.5, 0.7, 0.99):
        assert is_open(opens + (closes - opens) * share, window, tz)
        if opens > now:
            assert not is_open(now + (opens - now) * share, window, tz)


def test_a_closed_window_closes_now() -> None:
    now = utc("2026-05-01 00:00")
    assert closes_at(now, DAY, MOSCOW) == now


def test_a_zone_that_is_not_known_any_more_is_the_default() -> None:
    assert zone("Europe/Moscow", NEW_YORK) is MOSCOW
    assert zone(None, NEW_YORK) is NEW_YORK
    assert zone("Mars/Olympus", NEW_YORK) is NEW_YORK
    assert zone("../etc/passwd", NEW_YORK) is NEW_YORK
