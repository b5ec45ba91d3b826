"""Settings: what each value may be, the rules between them, warnings, and how they are shown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from notifier.errors import SettingsError
from notifier.settings import SETTINGS, Settings

POSTGRES = "postgresql://user:hidden@db.example.com:5432/notifier"
KEY = "0123456789abcdefghijklmnopqrstuv"
TOKEN = "abcdefghij0123456789"
GATEWAY = {"GATEWAY_URL": "https://gateway.example.com", "GATEWAY_TOKEN": "jwt"}


def errors_of(environ: Mapping[str, str], env_file: Path | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, env_file)
    return caught.value.errors


def test_nothing_given_is_a_complete_set_of_defaults() -> None:
    settings = Settings.load({}, None)
    assert settings.database_url is settings.database_migration_url is settings.gateway_url is None
    assert (settings.host, settings.port, settings.role) == ("127.0.0.1", 8080, "all")
    assert (settings.gateway_concurrency, settings.gateway_rate, settings.gateway_timeout) == (100, 0.0, 15.0)
    assert (settings.gateway_on_unknown, settings.shutdown_grace) == ("retry", 20.0)
    assert (settings.default_timezone, settings.pause_all) == ("UTC", False)
    assert settings.data_dir == Path(".data")


def test_everything_given() -> None:
    environ = GATEWAY | {
        "DATABASE_URL": "postgres://user@one:5432,two:5432/notifier?target_session_attrs=read-write",
        "DATABASE_STATEMENT_CACHE": "0",
        "DATABASE_MIGRATION_URL": POSTGRES,
        "DATA_DIR": "/var/lib/notifier",
        "HOST": "::1",
        "PORT": "0",
        "PUBLIC_URL": "https://notifier.example.com",
        "TRUSTED_PROXIES": "127.0.0.1",
        "ROLE": "worker",
        "GATEWAY_URL": "http://127.0.0.1:8090/base/",
        "GATEWAY_CONCURRENCY": "10000",
        "GATEWAY_RATE": "0.5",
        "GATEWAY_TIMEOUT": "2.5",
        "GATEWAY_ON_UNKNOWN": "hold",
        "BOOTSTRAP_TOKEN": TOKEN,
        "SECRET_KEY": KEY,
        "DEFAULT_TIMEZONE": "Europe/Moscow",
        "LOG_LEVEL": "WARNING",
        "LOG_FORMAT": "json",
        "INSTANCE": "production",
        "PAUSE_ALL": "1",
        "SHUTDOWN_GRACE": "3",
        "DRAIN_DELAY": "0.5",
    }
    settings = Settings.load(environ, None)
    assert set(environ) == {setting.name for setting in SETTINGS}
    assert settings.gateway_url == "http://127.0.0.1:8090/base"
    assert settings.database_migration_url == POSTGRES
    assert (settings.gateway_rate, settings.gateway_timeout, settings.shutdown_grace) == (0.5, 2.5, 3.0)
    assert (settings.pause_all, settings.log_level, settings.port) == (True, "warning", 0)


def test_migrations_use_the_database_url_unless_told_otherwise() -> None:
    settings = Settings.load({"DATABASE_URL": POSTGRES, "SECRET_KEY": KEY}, None)
    assert settings.database_migration_url == POSTGRES


def test_an_empty_value_counts_as_not_given() -> None:
    assert Settings.load({"GATEWAY_URL": "", "PORT": ""}, None).port == 8080


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PORT", "65536", "0 to 65535"),
        ("PORT", "-1", "whole number"),
        ("PORT", "80_80", "whole number"),
        ("PORT", "8080.0", "whole number"),
        ("PORT", "٨", "whole number"),
        ("DATABASE_STATEMENT_CACHE", "many", "whole number"),
        ("GATEWAY_CONCURRENCY", "0", "1 to 10000"),
        ("GATEWAY_CONCURRENCY", "10001", "1 to 10000"),
        ("GATEWAY_RATE", "-1", "0 or more"),
        ("GATEWAY_RATE", "inf", "0 or more"),
        ("GATEWAY_RATE", "nan", "0 or more"),
        ("GATEWAY_RATE", "fast", "0 or more"),
        ("GATEWAY_TIMEOUT", "0.9", "1 to 30"),
        ("GATEWAY_TIMEOUT", "31", "1 to 30"),
        ("GATEWAY_TIMEOUT", "20", "below SHUTDOWN_GRACE"),
        ("SHUTDOWN_GRACE", "15", "below SHUTDOWN_GRACE"),
        ("SHUTDOWN_GRACE", "0", "1 to 3600"),
        ("GATEWAY_ON_UNKNOWN", "ignore", "retry, hold"),
        ("GATEWAY_TOKEN", "to ken", "spaces"),
        ("GATEWAY_TOKEN", "to\r\nken", "control characters"),
        ("GATEWAY_TOKEN", "жетон", "ASCII"),
        ("BOOTSTRAP_TOKEN", "t" * 19, "at least 20"),
        ("SECRET_KEY", KEY[1:], "at least 32"),
        ("SECRET_KEY", "k" * 32, "secrets.token_urlsafe(32)"),
        ("SECRET_KEY", "012345678" * 4, "fewer than 10 different characters"),
        ("BOOTSTRAP_TOKEN", "a" * 20, "secrets.token_urlsafe(32)"),
        ("BOOTSTRAP_TOKEN", "change-me-0123456789", "everybody knows"),
        ("BOOTSTRAP_TOKEN", "CHANGE_ME_0123456789abcdef", "everybody knows"),
        ("SECRET_KEY", "changeme-0123456789-0123456789-0123456789", "everybody knows"),
        ("DEFAULT_TIMEZONE", "Asia/Ekaterinburg", "did you mean Asia/Yekaterinburg?"),
        ("DEFAULT_TIMEZONE", "Moscow", "Europe/Moscow"),
        ("DEFAULT_TIMEZONE", "Europe", "Europe/Moscow"),
        ("DEFAULT_TIMEZONE", "../etc/passwd", "Europe/Moscow"),
        ("ROLE", "boss", "all, api, worker"),
        ("LOG_LEVEL", "loud", "debug, info, warning, error"),
        ("LOG_FORMAT", "xml", "console, json"),
        ("PAUSE_ALL", "yes", "neither 0 nor 1"),
        ("HOST", "two hosts", "no address"),
        ("HOST", "127.0.0.1:8080", "a port is given as PORT"),
        ("HOST", "[127.0.0.1]", "no address"),
        ("HOST", "::1,", "no address"),
        ("HOST", "*", ":: is every one"),
        ("DRAIN_DELAY", "-1", "0 to 3600"),
        ("DRAIN_DELAY", "21", "over SHUTDOWN_GRACE, which is 20"),
        ("DATA_DIR", "a\0b", "path"),
        ("DATABASE_URL", "mysql://host/db", "postgresql://"),
        ("DATABASE_URL", "postgresql:host", "postgresql://"),
        ("DATABASE_URL", "postgresql://[::1/db", "address"),
        ("DATABASE_MIGRATION_URL", POSTGRES, "DATABASE_URL is missing"),
    ],
)
def test_a_wrong_value_is_named_with_what_would_be_right(name: str, value: str, says: str) -> None:
    errors = errors_of({"SECRET_KEY": KEY} | {name: value})
    assert len(errors) == 1
    assert says in errors[0]
    assert name in errors[0]


@pytest.mark.parametrize(
    "url",
    [
        "gateway.example.com",
        "ftp://gateway.example.com",
        "https://",
        "https://host:99999",
        "https://host:0",
        "https://ho st",
        "https://[::1",
        "https://user:hidden@host",
        "https://host/?token=hidden",
        "https://host/#part",
    ],
)
def test_a_gateway_url_is_a_plain_base_address(url: str) -> None:
    (error,) = errors_of({"GATEWAY_URL": url, "GATEWAY_TOKEN": "jwt"})
    assert error.startswith("GATEWAY_URL: ")
    assert "hidden" not in error


@pytest.mark.parametrize(
    ("url", "read"),
    [
        ("https://notifier.example.com", "https://notifier.example.com"),
        ("HTTPS://Notifier.Example.com:443/sms/", "https://notifier.example.com/sms"),
        ("http://[::1]:80/", "http://[::1]"),
        ("https://example.com:8443/a/b-c.d~e_f", "https://example.com:8443/a/b-c.d~e_f"),
    ],
)
def test_the_public_address_is_read_as_browsers_write_it(url: str, read: str) -> None:
    assert Settings.load({"PUBLIC_URL": url}, None).public_url == read


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("notifier.example.com", "https://notifier.example.com"),
        ("ftp://user:hidden@host", "password"),
        ("https://host:0", "http:// or https://"),
        ("https://host:", "http:// or https://"),
        ("https://host:99999", "not an address"),
        ("https://[::1", "not an address"),
        ("https://host/?a=hidden", "query"),
        ("https://host/a//b", "single slashes"),
        ("https://host/../b", "single slashes"),
        ("https://host/%61", "letters, digits"),
        ("https://host/admin", "begins with /admin"),
        ("https://host/api/sms", "begins with /api"),
        ("https://пример.рф", "xn--e1afmkfd.xn--p1ai"),
    ],
)
def test_a_public_address_that_no_link_could_begin_with_stops_the_start(url: str, says: str) -> None:
    (error,) = errors_of({"PUBLIC_URL": url})
    assert error.startswith("PUBLIC_URL: ")
    assert says in error
    assert "hidden" not in error


def test_proxies_are_addresses_and_networks() -> None:
    settings = Settings.load({"TRUSTED_PROXIES": " 10.0.0.5, 10.1.0.0/16,2001:db8::/32 "}, None)
    assert list(map(str, settings.trusted_proxies)) == ["10.0.0.5/32", "10.1.0.0/16", "2001:db8::/32"]
    assert ("TRUSTED_PROXIES", "10.0.0.5/32, 10.1.0.0/16, 2001:db8::/32", "environment") in settings.describe()
    assert Settings.load({}, None).trusted_proxies == ()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("proxy.example.com", "separated by commas"),
        ("10.0.0.5 10.0.0.6", "separated by commas"),
        ("10.0.0.0/33", "no address and no network"),
        ("10.0.0.5/8", "10.0.0.0/8"),
        ("0.0.0.0/0", "everybody"),
        ("10.0.0.5,::/0", "everybody"),
    ],
)
def test_whom_nobody_should_trust_is_told(text: str, says: str) -> None:
    (error,) = errors_of({"TRUSTED_PROXIES": text})
    assert error.startswith("TRUSTED_PROXIES: ")
    assert says in error


def test_what_belongs_together_is_asked_for() -> None:
    assert [line.split(":")[0] for line in errors_of({"GATEWAY_URL": GATEWAY["GATEWAY_URL"]})] == ["GATEWAY_TOKEN"]
    assert [line.split(":")[0] for line in errors_of({"DATABASE_URL": POSTGRES})] == ["SECRET_KEY"]


def test_every_error_comes_at_once_and_none_shows_a_secret() -> None:
    environ = {
        "DATABASE_URL": "mysql://user:hidden@host/db",
        "BOOTSTRAP_TOKEN": "hidden",
        "GATEWAY_URL": "https://user:hidden@host",
        "GATEWAY_TIMEOUT": "31",
        "PORT": "x",
        "GATEWAY_TOKN": "hidden",
    }
    errors = errors_of(environ)
    assert {line.split(":")[0] for line in errors} == {*environ, "SECRET_KEY", "GATEWAY_TOKEN"}
    assert "hidden" not in "\n".join(errors)


@pytest.mark.parametrize(
    ("environ", "about"),
    [
        ({}, []),
        ({"HOST": "0.0.0.0"}, ["PUBLIC_URL"]),
        ({"HOST": "::"}, ["PUBLIC_URL"]),
        ({"HOST": "::1"}, []),
        ({"HOST": "0.0.0.0", "ROLE": "worker"}, []),
        ({"HOST": "0.0.0.0", "PUBLIC_URL": "https://notifier.example.com", "TRUSTED_PROXIES": "10.0.0.5"}, []),
        ({"PUBLIC_URL": "https://notifier.example.com"}, ["TRUSTED_PROXIES"]),
        ({"PUBLIC_URL": "http://notifier.example.com"}, ["PUBLIC_URL"]),
        ({"PUBLIC_URL": "http://localhost:8080/sms"}, []),
        ({"GATEWAY_URL": "http://gateway.example.com:8090/v2"}, ["GATEWAY_URL"]),
        ({"GATEWAY_URL": "http://[::1]:8090"}, []),
        ({"GATEWAY_URL": "http://127.0.0.1"}, []),
        ({"GATEWAY_URL": "https://gateway.example.com"}, []),
        ({"DATABASE_URL": POSTGRES}, ["DATABASE_URL"]),
        ({"DATABASE_URL": f"{POSTGRES}?sslmode=verify-ca"}, ["DATABASE_URL"]),
        ({"DATABASE_URL": f"{POSTGRES}?sslmode=verify-full"}, []),
        ({"DATABASE_URL": "postgresql://u@localhost,db.example.com:5433/n"}, ["DATABASE_URL"]),
        ({"DATABASE_URL": "postgresql://u@127.0.0.1/n?host=db.example.com"}, ["DATABASE_URL"]),
        ({"DATABASE_URL": "postgresql://u@localhost/n?hostaddr=203.0.113.9"}, ["DATABASE_URL"]),
        ({"DATABASE_URL": "postgresql:///n?host=/run/postgresql"}, []),
        ({"DATABASE_URL": "postgresql://u:p@%2Frun%2Fpostgresql/n"}, []),
        ({"DATABASE_URL": "postgresql://u:p@[::1]:5432/n"}, []),
    ],
)
def test_what_somebody_on_the_way_can_read_is_warned_of(environ: dict[str, str], about: list[str]) -> None:
    settings = Settings.load(GATEWAY | {"SECRET_KEY": KEY, "BOOTSTRAP_TOKEN": TOKEN} | environ, None)
    assert [line.split(":")[0] for line in settings.warnings()] == about
    assert "hidden" not in str(settings.warnings())


@pytest.mark.parametrize(
    ("environ", "warned"),
    [
        ({}, ["BOOTSTRAP_TOKEN", "GATEWAY_URL"]),
        ({"ROLE": "worker"}, ["GATEWAY_URL"]),
        ({"ROLE": "api"}, ["BOOTSTRAP_TOKEN"]),
        ({"BOOTSTRAP_TOKEN": " ", **GATEWAY}, ["BOOTSTRAP_TOKEN"]),
    ],
)
def test_what_cannot_be_done_yet_is_warned_of(environ: dict[str, str], warned: list[str]) -> None:
    assert [line.partition(" is not set: ")[0] for line in Settings.load(environ, None).warnings()] == warned


@pytest.mark.parametrize(
    ("environ", "warned"),
    [
        ({"PORT": "x"}, ["BOOTSTRAP_TOKEN", "GATEWAY_URL"]),
        ({"PORT": "x", "HOST": "0.0.0.0"}, ["BOOTSTRAP_TOKEN", "PUBLIC_URL", "GATEWAY_URL"]),
        ({"PUBLIC_URL": "x", "HOST": "0.0.0.0"}, ["BOOTSTRAP_TOKEN", "GATEWAY_URL"]),
        ({"BOOTSTRAP_TOKEN": "short", "GATEWAY_URL": "ftp://x", "GATEWAY_TOKEN": "jwt"}, []),
        ({"ROLE": "x", **GATEWAY, "DATABASE_URL": POSTGRES}, ["DATABASE_URL"]),
    ],
)
def test_errors_hide_no_warning_but_those_of_what_is_wrong(environ: dict[str, str], warned: list[str]) -> None:
    with pytest.raises(SettingsError) as caught:
        Settings.load(environ, None)
    assert [re.split("[ :]", line)[0] for line in caught.value.warnings] == warned


def test_rules_that_do_not_depend_on_a_wrong_value_are_judged() -> None:
    """The grace is wrong in the first, and the time-out, which the delay has nothing to do with, in the second."""
    for environ, named in (
        (
            {"DRAIN_DELAY": "500", "SHUTDOWN_GRACE": "x", "GATEWAY_URL": "https://g"},
            {"SHUTDOWN_GRACE", "GATEWAY_TOKEN"},
        ),
        ({"DRAIN_DELAY": "500", "GATEWAY_TIMEOUT": "x"}, {"GATEWAY_TIMEOUT", "DRAIN_DELAY"}),
    ):
        assert {line.split(":")[0] for line in errors_of(environ)} == named


def test_secrets_are_masked_wherever_settings_are_shown() -> None:
    environ = GATEWAY | {
        "DATABASE_URL": "postgresql://user:hidden@one,two/db?sslpassword=hidden&target_session_attrs=any",
        "GATEWAY_TOKEN": "hidden",
        "SECRET_KEY": f"hidden-{KEY}",
        "BOOTSTRAP_TOKEN": f"hidden-{TOKEN}",
    }
    settings = Settings.load(environ, None)
    shown = {name: value for name, value, _ in settings.describe()}
    assert "hidden" not in f"{settings!r} {shown}"
    assert shown["DATABASE_URL"] == "postgresql://user:***@one,two/db?sslpassword=***&target_session_attrs=any"
    assert (shown["PORT"], shown["PAUSE_ALL"], shown["GATEWAY_RATE"]) == ("8080", "0", "0")


def test_a_token_in_the_path_of_the_gateway_s_address_is_masked() -> None:
    settings = Settings.load({"GATEWAY_URL": "https://gw.example/v1/bot1:hidden", "GATEWAY_TOKEN": "t" * 20}, None)
    assert settings.gateway_url == "https://gw.example/v1/bot1:hidden"
    shown = {name: value for name, value, _ in settings.describe()}
    assert shown["GATEWAY_URL"] == "https://gw.example/v1/***"
