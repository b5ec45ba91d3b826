"""Every name has words; times, numbers and phones look as people read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from notifier import models
from notifier.web.pages import words


def test_every_name_has_words() -> None:
    statuses = (models.Status, models.MailingStatus, models.GatewayState, models.BreakerState, models.OnUnknown)
    assert {str(name) for each in statuses for name in each} == {str(name) for name in words.STATUSES}
    assert set(words.REASONS) == set(models.Reason)
    assert set(words.OUTCOMES) == set(models.Outcome)
    assert set(words.MEANINGS) == set(models.Status)
    assert set(words.MAILING_REASONS) == set(models.StatusReason)
    assert words.reason("something_new") == "Something new"
    assert words.mailing_reason("something_new") == "Something new"


def test_times_numbers_and_phones_as_people_read_them() -> None:
    moment = datetime(2026, 1, 31, 6, 0, 5, tzinfo=UTC)
    assert words.moment(moment, ZoneInfo("Europe/Moscow")).replace("\xa0", " ") == "31 Jan 2026, 09:00 MSK"
    assert words.moment(moment, ZoneInfo("Asia/Almaty"), seconds=True).endswith("11:00:05\xa0UTC+05")
    assert words.number(1234567) == "1\u202f234\u202f567"
    assert (words.number(2.5), words.number(2.0), words.number(1234.5)) == ("2.5", "2", "1\u202f234")
    assert words.span(timedelta(hours=2, minutes=5, seconds=9)) == "2\xa0h 5\xa0min"
    assert words.span(timedelta(seconds=-3)) == "0\xa0s"
    assert words.size(1, "message") == "1 message"
    assert (words.phone(79161234567), words.phone(None), words.phone(1)) == ("+7 916 123-45-67", "", "+1")
