"""Processes that use an embedded PostgreSQL, and short questions to it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

root_only = pytest.mark.skipif(os.geteuid() != 0, reason="root's case")

USER = """
import sys
from pathlib import Path
from notifier import telemetry
from notifier.storage.embedded import running
telemetry.configure("warning", "json")  # to stderr, as a program of ours does
with running(Path(sys.argv[1]), fast=True) as dsn:
    print(dsn, flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_user(data_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that uses the server until its stdin is closed."""
    command = [sys.executable, "-c", USER, str(data_dir)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def dsn_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def postmaster(data_dir: Path) -> int:
    return int((data_dir / "postgres/data/postmaster.pid").read_text().split("\n", 1)[0])


def add(dsn: str, value: int) -> None:
    with psycopg.connect(dsn) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS kept (value int)")
        connection.execute("INSERT INTO kept VALUES (%s)", (value,))


def kept(dsn: str) -> list[int]:
    with psycopg.connect(dsn) as connection:
        return [value for (value,) in connection.execute("SELECT value FROM kept ORDER BY value")]


def socket_folder(data_dir: Path) -> Path:
    """Where the socket lies when the path of ``data_dir`` is too long for one."""
    return Path("/tmp") / f"notifier-{hashlib.sha256(bytes(data_dir / 'postgres')).hexdigest()[:16]}"


def is_up(dsn: str) -> bool:
    try:
        psycopg.connect(dsn).close()
    except psycopg.OperationalError:
        return False
    return True
