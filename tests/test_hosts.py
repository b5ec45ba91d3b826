"""Hosts as addresses and headers name them; a gateway's address as people may see it: many take a token in the path."""

from __future__ import annotations

import tracemalloc

import pytest

from notifier.hosts import is_loopback, parsed, secrets_in, without_secrets


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://gw.example", "https://gw.example"),
        ("https://gw.example:8443/sms-gateway/api2/v1.2/", "https://gw.example:8443/sms-gateway/api2/v1.2/"),
        ("https://me:secret@[::1]:8443/x?token=secret#part", "https://[::1]:8443/x"),
        ("https://gw.example/bot123456:AAHdqTcvCH1vGWJxfSeof/send", "https://gw.example/***/send"),
        ("/hook/6f1c9a4e-2d3b-4c5d-8e7f-001122334455/sms", "/hook/***/sms"),
        ("https://gw.example/Xk29vbnQ/%D1%82%D0%BE/", "https://gw.example/***/***/"),
    ],
)
def test_what_may_be_secret_is_not_shown(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


def test_what_may_be_secret_is_known_in_both_spellings() -> None:
    assert secrets_in("https://gw.example/api/a%3Ab%3Ac123") == ["a%3Ab%3Ac123", "a:b:c123"]
    assert secrets_in("https://gw.example/api/v1/sms") == []


def test_of_long_names_nothing_is_kept() -> None:
    """A header Host may have 16 KB."""
    assert str(parsed("::ffff:203.0.113.9")) == "203.0.113.9"
    assert str(parsed("fe80:1111:2222:3333:4444:5555:6666:7777%enp0s31f6")).startswith("fe80:")
    tracemalloc.start()
    try:
        for number in range(1000):
            assert not is_loopback(f"{number}{'a' * 16_000}")
        assert tracemalloc.get_traced_memory()[0] < 2**20
    finally:
        tracemalloc.stop()
