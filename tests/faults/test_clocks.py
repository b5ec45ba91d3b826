"""Clocks that step, and odd local hours, at a small size; `make chaos ONLY=9,10` is the whole of it."""

from __future__ import annotations

from chaos import clocks
from tests.faults.conftest import skipped_where_lacking


def test_a_clock_that_steps_starts_nothing_early_and_kills_nobody() -> None:
    with skipped_where_lacking():
        assert clocks.steps(hold=1.0, clients=600).breaches == []


def test_windows_on_nights_when_the_clock_changes() -> None:
    with skipped_where_lacking():
        assert clocks.nights(clocks.NIGHTS[:2], clients=20).breaches == []


def test_a_zone_whose_rules_change_between_planning_and_start() -> None:
    with skipped_where_lacking():
        assert clocks.rules_change(clients=20).breaches == []
