"""Servers in processes of their own: whatever says at its start where it answers."""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOKEN = secrets.token_urlsafe(24)


@dataclass(frozen=True, slots=True)
class Served:
    """A server that answers at ``url``."""

    url: str
    pid: int


@contextmanager
def served(arguments: list[str], environment: Mapping[str, str]) -> Iterator[Served]:
    """Run Python with these arguments until the block is left; AssertionError when it does not come up."""
    with tempfile.TemporaryDirectory(prefix="notifier-bench-") as folder:
        log = Path(folder, "log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                env={"PATH": os.environ.get("PATH", os.defpath), "PYTHONPATH": str(ROOT), **environment},
                cwd=folder,
                stdout=file,
                stderr=file,
            )
        try:
            yield Served(_url(process, log), process.pid)
            assert process.poll() is None, log.read_text()[-3000:]
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _url(process: subprocess.Popen[bytes], log: Path) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
            return found[0]
        time.sleep(0.02)
    raise AssertionError(f"it does not serve: {log.read_text()[-3000:]}")


@contextmanager
def replica(dsn: str, gateway: str, **settings: str) -> Iterator[Served]:
    """Run a replica that sends to ``gateway``; ``settings`` by their names."""
    environment = {
        "NOTIFIER_ENV_FILE": os.devnull,
        "DATABASE_URL": dsn,
        "PORT": "0",
        "GATEWAY_TOKEN": "any",
        "BOOTSTRAP_TOKEN": TOKEN,
        "SECRET_KEY": TOKEN,
        # its first line with an address is the one that says where it listens
        "LOG_FORMAT": "json",
        "GATEWAY_URL": gateway,
        **settings,
    }
    with served([str(ROOT / "server.py"), "serve"], environment) as server:
        yield server
