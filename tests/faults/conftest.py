"""What the faults' tests do where a machine lacks what a fault is made with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from chaos.verdict import Lacking


@contextmanager
def skipped_where_lacking() -> Iterator[None]:
    """Skip the test with the reason that `Lacking` gives; with NOTIFIER_REQUIRE_ALL it fails."""
    try:
        yield
    except Lacking as lacking:
        if "NOTIFIER_REQUIRE_ALL" in os.environ:
            raise
        pytest.skip(str(lacking))
