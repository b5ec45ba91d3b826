"""Local hours, also on the nights when clocks jump."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from notifier.models import Window
from notifier.windows import closes_at, is_known, is_open, opens_at, zone

NEW_YORK, MOSCOW, BERLIN = ZoneInfo("America/New_York"), ZoneInfo("Europe/Moscow"), ZoneInfo("Europe/Berlin")
KATHMANDU, APIA, CAIRO = ZoneInfo("Asia/Kathmandu"), ZoneInfo("Pacific/Apia"), ZoneInfo("Africa/Cairo")
LORD_HOWE = ZoneInfo("Australia/Lord_Howe")


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
    # the clock jumps within the window: it is open an hour shorter, or longer, and from its beginning on
    (Window(time(0, 30), time(8)), BERLIN, "2027-03-27 12:00", "2027-03-27 23:30", "2027-03-28 06:00"),
    (Window(time(0), time(6)), NEW_YORK, "2027-11-06 12:00", "2027-11-07 04:00", "2027-11-07 11:00"),
    # half an hour comes twice, and is open both times without a break
    (Window(time(1, 30), time(2)), LORD_HOWE, "2027-04-03 12:00", "2027-04-03 14:30", "2027-04-03 15:30"),
    # no such hour that night: in Berlin, and in Cairo where it is the first of the day
    (Window(time(2), time(3)), BERLIN, "2026-03-28 23:00", "2026-03-30 00:00", "2026-03-30 01:00"),
    (Window(time(0), time(1)), CAIRO, "2026-04-23 21:00", "2026-04-24 21:00", "2026-04-24 22:00"),
    # a minute a day
    (Window(time(23, 59), time(0)), MOSCOW, "2026-05-01 06:00", "2026-05-01 20:59", "2026-05-01 21:00"),
    # Samoa had no 30 December 2011
    (DAY, APIA, "2011-12-30 08:00", "2011-12-30 19:00", "2011-12-31 07:00"),
]


@pytest.mark.parametrize(("window", "tz", "now", "opens", "closes"), CASES)
def test_when_a_window_opens_and_closes(window: Window, tz: ZoneInfo, now: str, opens: str, closes: str) -> None:
    opened = opens_at(utc(now), window, tz)
    assert opened == utc(opens)
    assert closes_at(opened, window, tz) == utc(closes)


@pytest.mark.parametrize(
    ("shown", "open_"),
    [
        ("20:59:59", False), ("21:00:00", True), ("23:59:59.999999", True), ("00:00:00", True), ("06:59:59", True),
        ("07:00:00", False),
    ],
)  # fmt: skip
def test_a_window_over_midnight(shown: str, open_: bool) -> None:
    at = datetime.combine(datetime(2026, 5, 1), time.fromisoformat(shown), MOSCOW)
    assert is_open(at, Window(time(21), time(7)), MOSCOW) is open_


def jumps(tz: ZoneInfo, first: int, last: int) -> list[datetime]:
    """Midnights (UTC) before the days of those years on which the zone's offset changes, found day by day."""
    days = [datetime(first, 1, 1, tzinfo=UTC) + timedelta(days=n) for n in range((last - first + 1) * 365)]
    offsets = [day.astimezone(tz).utcoffset() for day in days]
    return [day for day, a, b in zip(days, offsets, offsets[1:], strict=False) if a != b]


# A jump: of an hour, at midnight, of half an hour, of a whole day; and zones that have none.
JUMPS = {
    **{tz: jumps(tz, 2024, 2030) for tz in (NEW_YORK, BERLIN, CAIRO, LORD_HOWE, ZoneInfo("Africa/Casablanca"))},
    APIA: jumps(APIA, 2010, 2012),
    KATHMANDU: [utc("2026-01-01 00:00")],
    MOSCOW: [utc("2014-10-25 00:00")],
}
NEAR_A_JUMP = st.sampled_from(list(JUMPS)).flatmap(
    lambda tz: st.tuples(st.just(tz), st.sampled_from(JUMPS[tz]), st.floats(-60, 60)).map(
        lambda drawn: (drawn[0], drawn[1] + timedelta(hours=drawn[2]))
    )
)
MINUTES = st.integers(0, 24 * 60 - 1).map(lambda minutes: time(minutes // 60, minutes % 60))


@given(near=NEAR_A_JUMP, start=MINUTES, end=MINUTES)
def test_both_agree_with_a_walk_from_minute_to_minute(near: tuple[ZoneInfo, datetime], start: time, end: time) -> None:
    """A person with a clock on the wall, who looks at it every minute: what they see first is the answer."""
    assume(start != end)
    tz, now = near
    window = Window(start, end)

    def shows_open(at: datetime) -> bool:
        shown = at.astimezone(tz).strftime("%H:%M")
        inside = f"{start:%H:%M}" <= shown < f"{end:%H:%M}"
        return inside if start < end else shown >= f"{start:%H:%M}" or shown < f"{end:%H:%M}"

    def first(at: datetime, wanted: bool) -> datetime:
        if shows_open(at) == wanted:
            return at
        at = at.replace(second=0, microsecond=0)
        while shows_open(at) != wanted:
            at += timedelta(minutes=1)
        return at

    opens = opens_at(now, window, tz)
    assert opens == first(now, True)
    assert closes_at(now, window, tz) == first(now, False)
    assert closes_at(opens, window, tz) == first(opens, False)


def test_a_closed_window_closes_now() -> None:
    now = utc("2026-05-01 00:00")
    assert closes_at(now, DAY, MOSCOW) == now


def test_a_zone_that_is_not_known_any_more_is_the_default() -> None:
    assert zone("Europe/Moscow", NEW_YORK) is MOSCOW
    assert zone(None, NEW_YORK) is NEW_YORK
    assert zone("Mars/Olympus", NEW_YORK) is NEW_YORK
    assert zone("../etc/passwd", NEW_YORK) is NEW_YORK
    assert zone("Europe", NEW_YORK) is NEW_YORK  # a folder of the zone data
    assert zone("x" * 300, NEW_YORK) is NEW_YORK
    assert [is_known(name) for name in ("Europe/Moscow", "UTC", "Europe/Nowhere", "Europe")] == [
        True,
        True,
        False,
        False,
    ]
