"""Notifier in processes of its own, started as from a shell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple
from urllib.request import ProxyHandler, Request, build_opener

from chaos.stage import PATIENCE
from tests.conftest import poll_until

SERVER = Path(__file__).parent.parent / "server.py"
TOKEN = "a-token-of-the-tests-0123456789"
KEY = "a secret of the tests, 32 characters"


def environment(place: Path, **settings: str) -> dict[str, str]:
    """Only what is given: no setting of whoever runs the tests."""
    ours = ("DATABASE_", "GATEWAY_", "BOOTSTRAP_", "SECRET_", "COV_")
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(ours)},
        "NOTIFIER_ENV_FILE": os.devnull,
        "DATA_DIR": str(place),
        "PORT": "0",
        "LOG_FORMAT": "json",
        "DRAIN_DELAY": "0",
        "COLUMNS": "200",
        **settings,
    }


def run(place: Path, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(SERVER), *arguments],
        check=False,
        env=environment(place, **settings),
        cwd=place,
        capture_output=True,
        text=True,
    )


class Running(NamedTuple):
    process: subprocess.Popen[bytes]
    said: Callable[[], str]

    def url(self) -> str | None:
        """Where it listens, once it has said so."""
        for line in self.said().splitlines():
            if '"listening"' in line:
                return str(json.loads(line)["url"])
        assert self.process.poll() is None, self.said()
        return None

    async def up(self) -> str:
        return str(await poll_until(self.url, progress=self.said))


@contextmanager
def started(
    place: Path, name: str = "serve", *arguments: str, python: str | Path = sys.executable, **settings: str
) -> Iterator[Running]:
    said = place / f"{name}.txt"
    with said.open("wb") as file:
        process = subprocess.Popen(
            [python, *(arguments or (str(SERVER), "serve"))],
            env=environment(place, **settings),
            cwd=place,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Running(process, said.read_text)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(PATIENCE)


def get(url: str, body: bytes | None = None) -> bytes:
    """What is answered to a GET, or with ``body`` to a POST."""
    request = Request(url, body, {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"})
    with build_opener(ProxyHandler({})).open(request, timeout=PATIENCE) as answer:
        return bytes(answer.read())
