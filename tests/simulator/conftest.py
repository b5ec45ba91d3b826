"""The simulated gateway in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from notifier.simulator import Simulator


@pytest.fixture(scope="module")
def shared() -> Iterator[Simulator]:
    with Simulator(seed=1) as simulator:
        yield simulator


@pytest.fixture
def gateway(shared: Simulator) -> Simulator:
    shared.reset()
    return shared
