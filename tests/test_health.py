"""The health check of the image, beside a real service."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.stage import free_port
from tests.processes import KEY, SERVER, environment, started
from tests.test_app import serving


def check(place: Path, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "notifier.health"],
        check=False,
        env=environment(place, PYTHONPATH=str(SERVER.parent), **settings),
        cwd=place,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "[::1],127.0.0.1"])
async def test_it_asks_where_the_service_listens(place: Path, dsn: str, host: str) -> None:
    settings = {"PORT": str(free_port()), "HOST": host}
    assert check(place, **settings).returncode == 1
    api_only = {"ROLE": "api", "DATABASE_URL": dsn, "SECRET_KEY": KEY, "PYTHONPATH": str(SERVER.parent)}
    with started(place, *serving(), **(api_only | settings)) as one:
        await one.up()
        healthy = check(place, **settings)
        assert (healthy.returncode, healthy.stderr) == (0, "")


def test_a_port_that_nobody_knows_and_settings_that_are_wrong_are_told(place: Path) -> None:
    unknown = check(place, PORT="0")
    assert (unknown.returncode, "set PORT" in unknown.stderr) == (1, True)
    wrong = check(place, PORT="tcp://10.0.0.9:8080")
    assert (wrong.returncode, "PORT:" in wrong.stderr) == (1, True)


def test_it_reads_the_file_that_the_service_reads(place: Path) -> None:
    (place / ".env").write_text("PORT=eighty\n")
    (place / "mine").write_text("PORT=ninety\n")
    beside = check(place, PORT="", NOTIFIER_ENV_FILE="")
    assert (beside.returncode, "'eighty'" in beside.stderr) == (1, True)
    named = check(place, PORT="", NOTIFIER_ENV_FILE="mine")
    assert (named.returncode, "'ninety'" in named.stderr) == (1, True)


def test_it_imports_nothing_of_the_service() -> None:
    code = "import sys, notifier.health; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=SERVER.parent)
    heavy = r"notifier\.(app|cli|web|delivery|storage)|tornado|asyncpg|aiohttp|click|structlog"
    assert [name for name in found.stdout.split() if re.fullmatch(heavy, name)] == []


def test_the_image_uses_it() -> None:
    assert 'CMD ["python", "-m", "notifier.health"]' in (SERVER.parent / "Dockerfile").read_text()
