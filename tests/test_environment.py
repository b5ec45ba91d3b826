"""What the shell and a `.env` in the checkout say does not reach the tests."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from notifier.settings import SETTINGS

ROOT = Path(__file__).parent.parent
# Each starts something that would find a setting: a process, the application, a server.
CHOSEN = (
    "tests/test_cli.py::test_migrate",
    "tests/test_cli.py::test_config_check_shows_every_setting_without_secrets",
    "tests/test_demo.py::test_a_wrong_setting",
    "tests/web/test_system.py",
)


@pytest.mark.alone
def test_no_setting_of_the_shell_or_of_the_checkout_reaches_the_suite(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    leave = shutil.ignore_patterns(".git", ".venv*", ".data", ".*_cache", ".hypothesis", "__pycache__", "bench")
    shutil.copytree(ROOT, checkout, ignore=leave)
    wrong = {setting.name: "wrong and of no use" for setting in SETTINGS} | {"GATEWAY_RAET": "1"}
    wrong |= {"DATABASE_URL": "postgresql://nobody@127.0.0.1:1/nothing"}
    (checkout / ".env").write_text("".join(f"{name}='{value}'\n" for name, value in wrong.items()))
    shell = wrong | {
        "PGHOST": "127.0.0.1",
        "PGPORT": "1",
        "PGSSLMODE": "verify-full",
        "http_proxy": "http://127.0.0.1:1",
    }
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *CHOSEN],
        cwd=checkout,
        env=os.environ | shell,
        check=False,
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout
    assert " passed" in ended.stdout
