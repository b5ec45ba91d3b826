"""The process of the simulated gateway: how it ends, and what it says of wrong options."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.stage import PATIENCE, until
from notifier.simulator import Simulator
from tests.simulator.client import connect, request


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_requests_in_flight(number: signal.Signals) -> None:
    with Simulator() as gateway, connect(gateway) as link:
        gateway.script({"do": {"kind": "hang"}})
        link.sendall(request(1))
        until(lambda: gateway.state()["in_flight"] == 1)
        assert gateway.process is not None
        gateway.process.send_signal(number)
        assert gateway.process.wait(PATIENCE) == 0
        assert gateway.stop() == 0


def test_it_ends_with_its_parent(tmp_path: Path) -> None:
    program = (
        "from pathlib import Path; from notifier.simulator import Simulator;"
        f"print(Simulator(ledger=Path({str(tmp_path)!r}) / 'ledger').start().port, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        port = int(parent.stdout.readline())
        parent.kill()

    def gone() -> bool:
        with socket.socket() as link:
            return link.connect_ex(("127.0.0.1", port)) != 0

    until(gone)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "notifier.simulator", *arguments],
        check=False,
        capture_output=True,
        text=True,
    )


def test_a_taken_port_is_said_and_exit_2(gateway: Simulator) -> None:
    done = run("--port", str(gateway.port))
    assert done.returncode == 2
    assert f"127.0.0.1:{gateway.port}: the port is taken" in done.stderr


@pytest.mark.parametrize("option", ["--fail=2", "--latency=-1", "--latency=nan", "--rate=-1", "--port=70000"])
def test_a_wrong_option_is_exit_2(option: str) -> None:
    done = run("--port=0", option)
    assert done.returncode == 2
    assert "Error" in done.stderr


def test_a_wrong_script_or_ledger_is_exit_2(tmp_path: Path) -> None:
    broken = tmp_path / "broken"
    broken.write_text("nonsense\n")
    assert run("--port=0", f"--script={broken}").returncode == 2
    assert run("--port=0", f"--ledger={broken}").returncode == 2
    assert run("--port=0", f"--ledger={tmp_path}/none/ledger").returncode == 2
    assert broken.read_text() == "nonsense\n"


def test_a_start_that_fails_raises() -> None:
    with pytest.raises(RuntimeError, match="did not start"), Simulator(fail=5):
        pass
