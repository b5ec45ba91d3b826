from __future__ import annotations

import io
import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator

import pytest
import structlog

from notifier import telemetry

PHONE = "79161234567"
MESSAGE_ID = 251234567890123


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []
    yield
    root.handlers = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, object]]:
    captured = capsys.readouterr()
    assert captured.out == ""
    return [json.loads(line) for line in captured.err.splitlines()]


def test_bound_fields_stand_in_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("info", "json")
    with structlog.contextvars.bound_contextvars(request_id="r1", mailing_id=7):
        structlog.get_logger("notifier.web").info("отправлено", client_id=3)
        logging.getLogger("tornado.general").warning("slow %s", "loop")
    ours, theirs = lines(capsys)
    assert ours | {"timestamp": ""} == {
        "event": "отправлено",
        "client_id": 3,
        "request_id": "r1",
        "mailing_id": 7,
        "level": "info",
        "logger": "notifier.web",
        "timestamp": "",
    }
    assert (theirs["event"], theirs["request_id"], theirs["logger"]) == ("slow loop", "r1", "tornado.general")


def test_phones_are_masked_and_ids_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("info", "json")
    structlog.get_logger().info(
        f"to {PHONE}",
        phone=int(PHONE),
        message_id=MESSAGE_ID,
        detail=f"Key (phone)=({PHONE}) exists",
        error=ValueError(f"+{PHONE}"),
        url=f"/api/v1/messages/{MESSAGE_ID}?phone=%2B{PHONE}",
        path=f"/{PHONE}",
    )
    (line,) = lines(capsys)
    assert line["phone"] == "7916*****67"
    assert line["event"] == "to 7916*****67"
    assert line["detail"] == "Key (phone)=(7916*****67) exists"
    assert line["error"] == "+7916*****67"
    assert line["message_id"] == MESSAGE_ID
    assert f"/messages/{MESSAGE_ID}?" in str(line["url"])
    assert line["path"] == "/7916*****67"
    assert PHONE not in json.dumps(line)


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_phones_are_masked_in_tracebacks_of_either_kind(capsys: pytest.CaptureFixture[str], log_format: str) -> None:
    telemetry.configure("info", log_format)
    try:
        raise ValueError(PHONE)
    except ValueError:
        structlog.get_logger().exception("ours")
        logging.getLogger("asyncio").exception("theirs %s", PHONE)
    err = capsys.readouterr().err
    assert err.count("ValueError: 7916*****67") == 2
    assert PHONE not in err


def test_no_phone_is_too_short_to_mask() -> None:
    assert telemetry.mask_phone("123456") == "******"
    assert telemetry.mask_phone("1234567") == "1234*67"


def test_quieter_than_the_level_is_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("warning", "json")
    structlog.get_logger().info("no")
    logging.getLogger("yoyo").info("no")
    structlog.get_logger().warning("yes")
    assert [line["event"] for line in lines(capsys)] == ["yes"]


def test_what_cannot_be_encoded_is_logged_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("info", "json")
    structlog.get_logger().info("x", huge=2**80, thing=object())
    (line,) = lines(capsys)
    assert line["huge"] == 2**80


def test_a_reader_that_is_gone_is_nobodys_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pipe whose reader has closed it, as stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    gone = open(writer, "wb", buffering=0)  # noqa: SIM115
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(gone, write_through=True))
    with pytest.raises(BrokenPipeError):
        sys.stderr.write("nobody hears")
    telemetry.configure("info", "json")
    structlog.get_logger().info("nobody hears")
    gone.close()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_without_a_stderr_nothing_is_said(monkeypatch: pytest.MonkeyPatch, log_format: str) -> None:
    """As a service that is started with 2>&-."""
    monkeypatch.setattr(sys, "stderr", None)
    telemetry.configure("info", log_format)
    structlog.get_logger().info("nobody hears")
    logging.getLogger("tornado.general").warning("nor this")


def test_circles_and_odd_keys_are_logged_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    telemetry.configure("info", "json")
    circle: list[object] = []
    circle.append(circle)
    structlog.get_logger().info("x", circle=circle, pairs={(1, 2): 3})
    (line,) = lines(capsys)
    assert (line["circle"], line["pairs"]) == ("[[...]]", "{(1, 2): 3}")


def test_warnings_go_the_same_way(capsys: pytest.CaptureFixture[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        telemetry.configure("info", "json")
        warnings.warn("old", stacklevel=1)
    (line,) = lines(capsys)
    assert line["logger"] == "py.warnings"


def test_every_metric_is_in_the_exposition() -> None:
    telemetry.ATTEMPTS.labels(outcome="accepted").inc()
    telemetry.BREAKER_OPEN.labels(gateway="default").set(0)
    text = telemetry.exposition().decode()
    for name in (
        "notifier_http_requests_total",
        "notifier_http_request_seconds",
        'notifier_attempts_total{outcome="accepted"}',
        "notifier_attempt_seconds_bucket",
        "notifier_inflight",
        "notifier_ready",
        "notifier_recorder_pending",
        "notifier_record_seconds_bucket",
        "notifier_claims_total",
        "notifier_planned_total",
        "notifier_takeovers_total",
        "notifier_loop_lag_seconds",
        'notifier_breaker_open{gateway="default"}',
        "notifier_loop_errors_total",
        "python_info",
    ):
        assert name in text
    assert "_created" not in text
