"""Fields of forms: times, lists, and problems that belong to no field."""

from __future__ import annotations

from datetime import UTC, datetime
from zoneinfo import ZoneInfo

import pytest

from notifier.errors import Invalid, Problem
from notifier.web.pages.forms import Form, as_text, read_time, several, show_time


def test_times_are_read_in_the_zone_and_hours_that_are_none_refused() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert read_time("2026-01-31T09:00", berlin) == "2026-01-31T08:00:00.000000Z"
    assert read_time("2026-10-25T02:30", berlin) == "2026-10-25T00:30:00.000000Z"  # of two the first
    with pytest.raises(ValueError, match=r"skip this time; 03:30 is the same moment"):
        read_time("2026-03-29T02:30", berlin)
    for text in ("soon", "2026-13-01T00:00", "2026-01-31T09:00Z"):
        with pytest.raises(ValueError, match="no time"):
            read_time(text, berlin)
    assert read_time("0001-01-01T00:00", berlin) == "0001-01-01T00:00:00Z"  # the schema says which years
    assert show_time(datetime(2026, 1, 31, 8, 0, 0, 5, UTC), berlin) == "2026-01-31T09:00"
    assert show_time(datetime(2026, 1, 31, 8, 0, 7, tzinfo=UTC), berlin) == "2026-01-31T09:00:07"


def test_lists_go_through_a_field_unchanged() -> None:
    for members in (["a", "b"], ["a, b", 'say "hi"'], ["x"], [], ["a,b", "c"]):
        assert several(as_text(members)) == members
    assert several("a,\n b ,, \r\n c") == ["a", "b", "c"]
    assert several("x" * 200_000) == ["x" * 200_000]


def test_a_problem_without_a_field_is_said_of_the_whole_form() -> None:
    form = Form({"name": ""})
    form.blame(Invalid([Problem("/elsewhere/0", "is odd"), Problem("", "is odd too")]), {})
    assert form.errors == {"": ["elsewhere: This is odd.", "This is odd too."]}
