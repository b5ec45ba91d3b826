"""What the faults' tests do where a machine lacks what a fault is made with, or has more to do than run them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from chaos import clocks, oracle, storm
from chaos.verdict import Lacking


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing fails for being slow: how fast it must be is what `make chaos` judges, on a machine of its own."""
    monkeypatch.setattr(oracle, "P99", 60.0)
    monkeypatch.setattr(storm, "TAKE_OVER", 60.0)
    monkeypatch.setattr(storm, "GRACE", 15)
    monkeypatch.setattr(clocks, "KNOWN_AFTER", 10.0)


@contextmanager
def skipped_where_lacking() -> Iterator[None]:
    """Skip the test with the reason that `Lacking` gives; with NOTIFIER_REQUIRE_ALL it fails."""
    try:
        yield
    except Lacking as lacking:
        if "NOTIFIER_REQUIRE_ALL" in os.environ:
            raise
        pytest.skip(str(lacking))
