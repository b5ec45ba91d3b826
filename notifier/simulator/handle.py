"""The simulated gateway in a process of its own, for tests and the demo."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import weakref
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

from notifier.simulator.ledger import Entry, read_ledger

STOP_TIMEOUT = 30.0
"""Seconds for the process to end, or to answer at ``/control``."""


class Simulator:
    """A simulated gateway in a process of its own, started here and ended with this process at the latest.

    ``with Simulator(latency=50) as gateway:`` takes the command's options by keyword; the port is a free one
    and stays the same when it is stopped and started again. Without ``ledger`` the ledger lies in a folder
    that goes with the handle. Starting blocks for about 0.3 s: in a busy loop use ``asyncio.to_thread``.
    """

    def __init__(self, *, ledger: Path | None = None, port: int = 0, **options: str | int | float | Path) -> None:
        if ledger is None:
            folder = tempfile.mkdtemp(prefix="gateway-")
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            ledger = Path(folder) / "ledger.jsonl"
        self.ledger = ledger
        self.port = port
        self.url = ""
        self.process: subprocess.Popen[bytes] | None = None
        self._options = options

    def start(self) -> Simulator:
        """Start the process and wait until it listens; raises RuntimeError when it does not."""
        options = {**self._options, "port": self.port, "ledger": self.ledger}
        arguments = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
        package = Path(__file__).resolve().parents[2]
        path = os.pathsep.join(filter(None, [str(package), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "notifier.simulator", "--exit-with-parent", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": path},
            # Ctrl-C in the terminal is the parent's business.
            start_new_session=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.stop()
            raise RuntimeError("the simulated gateway did not start")
        self.url = json.loads(line)["url"]
        self.port = int(self.url.rpartition(":")[2])
        return self

    def stop(self) -> int:
        """End the process, by its id, and return its exit code; what it has written stays readable."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.terminate()
        try:
            code = process.wait(STOP_TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()
        return code

    def script(self, *rules: dict[str, Any], **settings: float) -> dict[str, Any]:
        """Replace the script by these rules and settings (``latency=…``); returns the state."""
        return self._control("POST", json.dumps({"rules": rules, **settings}).encode())

    def reset(self) -> dict[str, Any]:
        """Go back to the script it was started with; returns the state."""
        return self._control("DELETE")

    def state(self) -> dict[str, Any]:
        """Return script and counts: requests, accepted, repeated, in_flight, max_in_flight."""
        return self._control("GET")

    def entries(self) -> list[Entry]:
        """Return the ledger so far."""
        return read_ledger(self.ledger)

    def _control(self, method: str, body: bytes | None = None) -> dict[str, Any]:
        request = Request(f"{self.url}/control", body, method=method)
        with build_opener(ProxyHandler({})).open(request, timeout=STOP_TIMEOUT) as answer:
            state: dict[str, Any] = json.loads(answer.read())
        return state

    def __enter__(self) -> Simulator:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
