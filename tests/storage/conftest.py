"""Data folders of an embedded PostgreSQL."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from chaos.stage import scratch
from notifier.storage.embedded import running


@pytest.fixture(scope="session")
def made() -> Iterator[Path]:
    """A data folder with a cluster in it: to copy one takes a tenth of making one."""
    folder = scratch("notifier-test-")
    with running(folder, fast=True):
        pass
    yield folder / "postgres"
    shutil.rmtree(folder)


@pytest.fixture
def data_dir(place: Path, made: Path) -> Path:
    """A data folder of this test's own, with a cluster that is not running."""
    subprocess.run(["cp", "-a", made, place], check=True)
    return place
