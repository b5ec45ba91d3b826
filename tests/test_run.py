"""The runner of the tests, over small suites of its own: what fails is tried again, and nothing is lost on the way."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
SETUP = """
[tool:pytest]
markers =
    alone: as in the suite itself
"""
ONLY_XDIST = {  # the other plugins took most of the time
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    "PYTEST_PLUGINS": "xdist.plugin",
}
COMMON = """
import os, time
from pathlib import Path
import pytest

def first(name):
    "Whether this is the first time that it is asked for this name."
    try:
        Path(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True
"""


def run(folder: Path, suite: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "setup.cfg").write_text(SETUP)
    (folder / "test_it.py").write_text(COMMON + suite)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV_"))}
    return subprocess.run(
        [sys.executable, "-m", "tests.run", *(arguments or ("-q",))],
        cwd=folder,
        env=kept | ONLY_XDIST | {"PYTHONPATH": str(ROOT)},
        check=False,
        capture_output=True,
        text=True,
    )


def end_of(run: subprocess.CompletedProcess[str]) -> list[str]:
    """What is said after the last phase."""
    lines = [line.strip("= ") for line in run.stdout.splitlines() if line.strip()]
    headings = ("failed", "passed only on the second try", "not as it is to be")
    return lines[next((n for n, line in enumerate(lines) if line in headings), -1) :]


def test_who_passes_on_the_second_try_is_named_and_the_run_is_green(tmp_path: Path) -> None:
    ended = run(tmp_path, """
def test_that_passes(): pass
def test_that_fails_once(): assert not first("once")
@pytest.mark.parametrize("what", ["a::b[c] d", "é"])
def test_whose_worker_dies_once(what):
    if first("dies" + what): os._exit(3)
@pytest.mark.alone
def test_that_dies_once_alone():
    if first("alone"): os._exit(0)
@pytest.fixture
def bad(): assert not first("setup")
def test_whose_fixture_fails_once(bad): pass
@pytest.fixture
def late():
    yield
    assert not first("teardown")
def test_whose_teardown_fails_once(late): pass
@pytest.mark.skip(reason="there is none")
def test_that_is_skipped(): pass
""")  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    heading, *named, last = end_of(ended)
    assert heading == "passed only on the second try"
    assert sorted(named) == [
        "test_it.py::test_that_dies_once_alone",
        "test_it.py::test_that_fails_once",
        "test_it.py::test_whose_fixture_fails_once",
        "test_it.py::test_whose_teardown_fails_once",
        "test_it.py::test_whose_worker_dies_once[\\xe9]",
        "test_it.py::test_whose_worker_dies_once[a::b[c] d]",
    ]
    assert last == "7 passed, 0 failed, 1 skipped"


def test_who_fails_twice_makes_it_red(tmp_path: Path) -> None:
    ended = run(tmp_path, """
def test_that_passes(): pass
def test_that_fails_once(): assert not first("once")
def test_that_fails_always(): assert False
@pytest.mark.alone
def test_that_dies_always(): os._exit(0)
def test_that_is_skipped_then():
    if not first("skipped"): pytest.skip("no more")
    assert False
""")  # fmt: skip
    assert ended.returncode == 1, ended.stdout
    assert end_of(ended) == [
        "failed",
        "test_it.py::test_that_dies_always",
        "test_it.py::test_that_fails_always",
        "test_it.py::test_that_is_skipped_then",
        "passed only on the second try",
        "test_it.py::test_that_fails_once",
        "2 passed, 3 failed, 0 skipped",
    ]


def test_what_is_alone_runs_when_all_others_have_ended(tmp_path: Path) -> None:
    ended = run(tmp_path, """
@pytest.mark.alone
@pytest.mark.parametrize("number", range(3))
def test_alone(number):
    assert len(list(Path().glob("beside*"))) == 8
@pytest.mark.parametrize("number", range(8))
def test_beside(number):
    time.sleep(0.1)
    first(f"beside{number}")
""")  # fmt: skip
    assert ended.returncode == 0, ended.stdout
    assert end_of(ended) == ["11 passed, 0 failed, 0 skipped"]


def test_what_cannot_be_collected_ends_it_red(tmp_path: Path) -> None:
    ended = run(tmp_path, "import nothing_of_this_name")
    assert ended.returncode == 1
    *_, why, last = end_of(ended)
    assert why.startswith("the phase `beside` broke off: ")
    assert last == "0 passed, 0 failed, 0 skipped"


def test_many_failures_are_not_chance(tmp_path: Path) -> None:
    ended = run(tmp_path, """
@pytest.mark.parametrize("number", range(21))
def test_that_fails_once(number): assert not first(str(number))
""")  # fmt: skip
    assert ended.returncode == 1
    assert end_of(ended)[-2:] == ["21 tests failed, none was tried again", "0 passed, 21 failed, 0 skipped"]


def test_a_choice_of_nothing_is_red_and_a_choice_is_handed_on(tmp_path: Path) -> None:
    suite = "def test_one(): pass\n@pytest.mark.alone\ndef test_two(): pass\ndef test_three(): pass"
    ended = run(tmp_path, suite, "-k", "nothing")
    assert ended.returncode == 1
    assert end_of(ended)[-2:] == ["no test was chosen", "0 passed, 0 failed, 0 skipped"]
    ended = run(tmp_path, suite, "-k", "one or two")
    assert ended.returncode == 0, ended.stdout
    assert end_of(ended) == ["2 passed, 0 failed, 0 skipped"]
