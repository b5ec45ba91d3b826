"""Gateways that lie, refuse and shut us out, at a small size; `make chaos ONLY=7,8` is the whole of it."""

from __future__ import annotations

from chaos import gateways

HARD = (
    "a gigabyte",
    "a gzip bomb",
    "headers without end",
    "401",
    "302",
    "429, nonsense",
    "JSON a hundred thousand deep",
)


def test_lies_are_booked_as_they_should_be_and_move_nothing() -> None:
    figures = gateways.lies(HARD, clients=10)
    assert figures.breaches == []


def test_a_gateway_that_is_gone_costs_nobody_a_chance() -> None:
    figures = gateways.refused(30)
    assert figures.breaches == []


def test_a_revoked_token_stops_the_gateway_and_fails_nobody() -> None:
    figures = gateways.revoked(1_200, latency=200)
    assert figures.breaches == []


def test_a_gateway_that_hangs_does_not_slow_the_api() -> None:
    figures = gateways.hanging(300, seconds=3, timeout=3)
    assert figures.breaches == []
