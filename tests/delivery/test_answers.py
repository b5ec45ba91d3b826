"""What answers mean that no server of a test can give, and in which words; all others: test_delivery.py."""

from __future__ import annotations

import os
import ssl
import time
from collections.abc import Iterator

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from notifier.delivery.answers import (
    Answer,
    classify_body,
    classify_error,
    classify_status,
    classify_unsent,
    has_it_already,
    parse_retry_after,
    without_phone,
)
from notifier.delivery.lenient import Unreadable
from notifier.models import Outcome, Reason

NOW = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("7", 7),
        ("0", 1),
        ("999999", 3600),
        ("Fri, 15 Jan 2027 08:01:00 GMT", 60),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 1),
        ("Friday, 15-Jan-27 08:01:00 GMT", 60),
        ("Fri Jan 15 08:01:00 2027", 60),
        ("Fri, 15 Jan 2027 08:01:00 -0000", 60),
        ("Fri, 15 Jan 2027 11:01:00 +0300", 60),
        ("Fri, 15 Jan 99999 08:01:00 GMT", 3600),
        ("120.5", 121),
        ("0.2", 1),
        ("120, 120", 120),
        ("30, 120", 120),
        ("Fri, 15 Jan 2027 08:01:00 GMT, Fri, 15 Jan 2027 08:01:00 GMT", 60),
        ("-5", 1),
        ("9" * 400, 3600),
        ("soon", None),
        ("1e3", None),
        ("inf", None),
        ("Fri, 41 Jan 2027 08:01:00 GMT", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("zone", ["UTC", "Europe/Moscow", "America/New_York"])
def test_retry_after(value: str | None, seconds: float | None, zone: str, clock_zone: None) -> None:
    """The three forms of a date in HTTP (RFC 9110, 5.6.7), whatever the machine's own zone is."""
    os.environ["TZ"] = zone
    time.tzset()
    assert parse_retry_after(value, NOW) == seconds


@pytest.fixture
def clock_zone() -> Iterator[None]:
    """The machine's zone comes back after the test."""
    before = os.environ.get("TZ")
    yield
    if before is None:
        os.environ.pop("TZ", None)
    else:
        os.environ["TZ"] = before
    time.tzset()


STATUSES = {
    Outcome.UNKNOWN: [100, 199, 408, 500, 502, 504, 599, 600, 999],
    Outcome.MISCONFIGURED: [
        *(300, 301, 302, 307, 308, 399, 401, 402, 403, 404, 405),
        *(411, 413, 414, 415, 421, 423, 425, 426, 428, 431, 451),
    ],
    Outcome.REJECTED: [400, 406, 409, 410, 412, 422, 499],
    Outcome.THROTTLED: [429],
    Outcome.UNAVAILABLE: [407, 503, 511],
}


@pytest.mark.parametrize(("outcome", "status"), [(o, s) for o, statuses in STATUSES.items() for s in statuses])
def test_every_status_has_an_outcome(outcome: Outcome, status: int) -> None:
    answer = classify_status(status, "5", NOW)
    assert (answer.outcome, answer.status_code) == (outcome, status)
    assert answer.retry_after == (5 if status in (429, 503) else None)
    assert answer.reason is not None


def test_success_is_a_rule_on_the_body() -> None:
    assert classify_body(b'{"code":0}').outcome is Outcome.ACCEPTED
    assert classify_body(b'{"code":0.0}').outcome is Outcome.UNKNOWN
    assert classify_body(b'{"code":-1,"message":"no \\u0000 money"}').detail == "-1: no \ufffd money"
    assert classify_body(b'{"code":99999999999999999999}').outcome is Outcome.UNKNOWN
    assert classify_body(None).reason is Reason.BAD_ANSWER
    assert classify_body(b'\xef\xbb\xbf{"code":0}').outcome is Outcome.ACCEPTED
    assert classify_body(b'{"code":0,"error":"no money"}').outcome is Outcome.ACCEPTED


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        (b'{"code":1,"code":0}', Outcome.UNKNOWN),
        (b'{"code":0,"code":1}', Outcome.UNKNOWN),
        (b'{"code":1,"\\u0063ode":0}', Outcome.UNKNOWN),
        (b'{"code":0,"code":0}', Outcome.ACCEPTED),
        (b'{"code":0,"message":"code"}', Outcome.ACCEPTED),
        (b'{"detail":{"code":1},"code":0}', Outcome.ACCEPTED),
        (b'{"code":0,"message":"\\u043e\\u043a"}', Outcome.ACCEPTED),
    ],
)
def test_an_object_that_gives_two_codes_gives_none(body: bytes, outcome: Outcome) -> None:
    assert classify_body(body).outcome is outcome


@pytest.mark.parametrize(
    "words",
    [
        *("Bad Credentials", "Unauthorized", "authentication failed", "invalid token", "Your token has expired"),
        *("insufficient funds", "not enough money", "Balance too low", "account is suspended", "sender not allowed"),
        *("Unknown sender", "sender ID is not registered"),
        *("недостаточно средств", "Ошибка авторизации", "Неверный пароль", "имя отправителя не разрешено"),
    ],
)
def test_a_refusal_about_us_is_told_by_its_words(words: str) -> None:
    answer = classify_body(orjson.dumps({"code": 4, "message": words}))
    assert (answer.outcome, answer.reason) == (Outcome.DECLINED, Reason.ACCOUNT_REFUSED)
    assert not has_it_already(answer)


@pytest.mark.parametrize(
    "words",
    [
        "no such number",
        "recipient has opted out",
        "number is blocked",
        "already unsubscribed",
        "blocked by him as sender",
    ],
)
def test_a_refusal_about_the_recipient_is_neither_about_us_nor_a_duplicate(words: str) -> None:
    answer = classify_body(orjson.dumps({"code": 4, "message": words}))
    assert (answer.outcome, answer.reason, answer.detail) == (Outcome.DECLINED, Reason.DECLINED, f"4: {words}")
    assert not has_it_already(answer)


@pytest.mark.parametrize(
    ("answer", "has_it"),
    [
        (Answer(Outcome.REJECTED, Reason.REJECTED, 409), True),
        (Answer(Outcome.REJECTED, Reason.REJECTED, 400, "Message with the same ID already exists"), True),
        (Answer(Outcome.DECLINED, Reason.DECLINED, 200, "9: duplicate"), True),
        (Answer(Outcome.DECLINED, Reason.DECLINED, 200, "9: has already been sent"), True),
        (Answer(Outcome.DECLINED, Reason.DECLINED, 200, "231: повторная отправка"), True),
        (Answer(Outcome.REJECTED, Reason.REJECTED, 400, "invalid number"), False),
        (Answer(Outcome.DECLINED, Reason.ACCOUNT_REFUSED, 409, "invalid sender, or already sent"), True),
        (Answer(Outcome.DECLINED, Reason.ACCOUNT_REFUSED, 400, "invalid token: already used"), False),
        (Answer(Outcome.UNKNOWN, Reason.SERVER_ERROR, 500, "duplicate key"), False),
        (Answer(Outcome.MISCONFIGURED, Reason.UNAUTHORIZED, 403, "duplicate"), False),
    ],
)
def test_what_says_that_the_gateway_has_a_message_already(answer: Answer, has_it: bool) -> None:
    assert has_it_already(answer) is has_it


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        ("invalid number 79139990323", "-1: invalid number ***"),
        ("invalid number +7 913 999-03-23!", "-1: invalid number ***!"),
        (
            "7913999 and 791399903237913 and 7913999032379139, not 791399",
            "-1: *** and *** and ***, not 791399",
        ),
        ("to 7 916 555 12 00 or 8 (916) 555-12-01", "-1: to *** or ***"),
        ("to 7-916-555-12-01, +7.916.555.12.01", "-1: to ***, ***"),
        ("to 7_9_1_6_5_5_5_1_2_0_1", "-1: to ***"),
        ("to 7\u200b916\u200b5551201", "-1: to ***"),
        (r"to \u0037\u0039\u0031\u0036\u0035\u0035\u0035", "-1: to ***"),
        ("to %37%39%31%36%35%35%35, %2537%2539165551201", "-1: to ***, ***"),
        (
            "to \uff17\uff19\uff11\uff16\uff15\uff15\uff15, \u0667\u0669\u0661\u0666\u0665\u0665\u0665",
            "-1: to ***, ***",
        ),
        ("503 at 2026-12-01 02:30:15 from 192.168.100.200", "-1: 503 at 2026-12-01 02:30:15 from 192.168.100.200"),
    ],
)
def test_a_phone_number_in_a_gateway_s_words_is_not_kept(words: str, kept: str) -> None:
    assert classify_body(orjson.dumps({"code": -1, "message": words})).detail == kept


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ssl.SSLError("in the middle"), Reason.RESET),
        (TimeoutError(), Reason.TIMEOUT),
        (ConnectionResetError(), Reason.RESET),
        (Unreadable(), Reason.BAD_ANSWER),
        (RuntimeError(), Reason.INTERNAL_ERROR),
    ],
)
def test_what_is_raised_has_a_reason(error: Exception, reason: Reason) -> None:
    answer = classify_error(error)
    assert (answer.outcome, answer.reason) == (Outcome.UNKNOWN, reason)


@given(st.integers(10**9, 10**15 - 1), st.lists(st.text(st.sampled_from(" -_.:;/*ax\u200b"), max_size=4), min_size=15))
def test_the_digits_of_the_message_s_own_phone_are_not_kept(phone: int, between: list[str]) -> None:
    written = "".join(map("".join, zip(str(phone), between, strict=False)))
    answer = classify_body(orjson.dumps({"code": -1, "message": f"no such number {written}, or {phone}"}))
    kept = without_phone(answer, phone).detail or ""
    assert str(phone)[-7:] not in "".join(filter(str.isdecimal, kept))


def test_what_is_left_around_a_phone_is_no_phone() -> None:
    answer = Answer(Outcome.REJECTED, detail="555a5a5a5a1a2a0a1a1201")
    assert "5551201" not in "".join(filter(str.isdecimal, without_phone(answer, 79165551201).detail or ""))


def test_a_secret_in_what_is_raised_before_a_connection_is_not_kept() -> None:
    assert classify_unsent(OSError("no way to /s3cret-path/"), ["s3cret-path"]).detail == "OSError: no way to /***/"
