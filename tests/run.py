"""Run the tests in phases, so that none fails by chance: `python -m tests.run [arguments for pytest]`.

1. ``beside``: everything that may share the machine with other tests.
2. ``alone``: what is marked so (real processes, real time), when the others are over. Most of its time such a test
   waits for processes of its own: a few run at a time.
3. ``again``: what failed in the first two, once more, one after another. Whoever passes now does not make the run red,
   but is named at the end under "passed only on the second try", with the first failure shown above.

The last line counts the tests: ``N passed, N failed, N skipped``. The exit code is 0 when nobody failed twice, every
test that was collected came to an end, and, with ``NOTIFIER_COVERAGE=1`` and without arguments, enough was covered of
what `setup.cfg` names. Measuring that takes a third more of the processor, so only `.ci/run` does it.

The same module is the plugin that pytest loads in every phase.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

MANY = (os.cpu_count() or 1) + 1
"""One more than there are cores: many tests wait for something."""
WORKERS = {
    "beside": ["-n", str(MANY)],
    "alone": ["-n", str(min(4, MANY)), "--maxschedchunk=1"],
    "again": ["-n", "1"],
}
"""For pytest-xdist. One worker, and not none, so that a test that kills its process is a failure like any other."""
MOST_AGAIN = 20
"""So many do not fail by chance: more than that are not tried again."""
COVERED = 95
"""Per cent of lines and branches."""


# The plugin.


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--phase", choices=list(WORKERS))
    parser.addoption("--results", type=Path, help="where to write what became of each test, as JSON")
    parser.addoption("--failed", type=Path, help="in the phase `again`: the names of the tests to run, as JSON")


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder(config.getoption("--results")))


@pytest.hookimpl(trylast=True)  # when every plugin has set its marks
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    phase = config.getoption("--phase")
    if phase == "again":
        names = set(json.loads(config.getoption("--failed").read_text()))
        chosen = [item.nodeid in names for item in items]
    else:
        chosen = [(item.get_closest_marker("alone") is not None) == (phase == "alone") for item in items]
    config.hook.pytest_deselected(items=[item for item, ours in zip(items, chosen, strict=True) if not ours])
    items[:] = [item for item, ours in zip(items, chosen, strict=True) if ours]


class Recorder:
    """Writes down what became of each test; with pytest-xdist, in the process that has the workers."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results: dict[str, str] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # A test has a report for its setup, its call and its teardown; one whose worker died has one of its own kind.
        if report.failed:
            self.results[report.nodeid] = "failed"
        elif report.skipped or report.when == "call":
            self.results.setdefault(report.nodeid, report.outcome)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        self.path.write_text(json.dumps({"collected": session.testscollected, "results": self.results}))


# The program.


def main(arguments: Sequence[str]) -> int:
    """Run the phases with ``arguments`` for each; the exit code."""
    judged = not arguments and os.environ.get("NOTIFIER_COVERAGE") == "1"
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory(prefix="notifier-run-") as name:
        folder = Path(name)
        for phase in ("beside", "alone"):
            coverage = ["--cov", "--cov-report=", *(["--cov-append"] if phase == "alone" else [])] if judged else []
            found, broken = _run(folder, phase, *coverage, *arguments)
            results |= found
            if broken:
                return _close(results, [f"the phase `{phase}` broke off: {broken}"])
        failed = [test for test, result in results.items() if result == "failed"]
        second: list[str] = []
        problems: list[str] = []
        if len(failed) > MOST_AGAIN:
            problems.append(f"{len(failed)} tests failed, none was tried again")
        elif failed:
            (folder / "failed.json").write_text(json.dumps(failed))
            found, broken = _run(folder, "again", f"--failed={folder / 'failed.json'}", *arguments)
            second = [test for test in failed if found.get(test) == "passed"]
            results |= dict.fromkeys(second, "passed")
            if broken:
                problems.append(f"the phase `again` broke off: {broken}")
    if not results:
        problems.append("no test was chosen")
    if judged:
        report = [sys.executable, "-m", "coverage", "report", f"--fail-under={COVERED}"]
        if subprocess.run(report, check=False).returncode:
            problems.append("the coverage is not as it is to be")
    return _close(results, problems, second)


def _run(folder: Path, phase: str, *arguments: str) -> tuple[dict[str, str], str]:
    """What became of the tests of a phase, and why it broke off, empty if it did not."""
    path = folder / f"{phase}.json"
    print(f"\n{f' {phase} ':#^80}", flush=True)
    command = [sys.executable, "-m", "pytest", "-p", "tests.run", f"--phase={phase}", f"--results={path}"]
    child = subprocess.Popen([*command, *WORKERS[phase], *arguments])
    while True:
        try:
            code = child.wait()
            break
        except KeyboardInterrupt:
            pass  # pytest has had it too, and tidies up
    if not path.exists():
        return {}, f"pytest ended with {code}"
    written = json.loads(path.read_text())
    results: dict[str, str] = written["results"]
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.NO_TESTS_COLLECTED):
        return results, f"pytest ended with {code}"
    if code == pytest.ExitCode.TESTS_FAILED and "failed" not in results.values():
        return results, "pytest failed, and no test did"
    if written["collected"] != len(results):
        return results, f"of {written['collected']} tests {len(results)} came to an end"
    return results, ""


def _close(results: dict[str, str], problems: Sequence[str], second: Sequence[str] = ()) -> int:
    """Say what is to be said at the end, and how it ended."""
    counts = Counter(results.values())
    lists = {
        "failed": sorted(test for test, result in results.items() if result == "failed"),
        "passed only on the second try": second,
        "not as it is to be": problems,
    }
    for heading, lines in lists.items():
        if lines:
            print(f"\n{f' {heading} ':=^80}", *lines, sep="\n")
    print(f"\n{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped", flush=True)
    return 1 if problems or counts["failed"] else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
