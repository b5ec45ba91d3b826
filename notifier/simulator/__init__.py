"""The simulated gateway: a stand-in for the external sending API that answers like one and texts nobody.

For development, tests and the demo. It keeps the contract (``POST /v1/send/{id}``) and writes a ledger of what it was
asked and answered (`ledger`). A script says which requests get another answer (`script`, `kinds`). The HTTP server is
written by hand (`server`), because many of these answers are broken HTTP, which no library's server agrees to send.
"""

from __future__ import annotations

from notifier.simulator.cli import command
from notifier.simulator.handle import Simulator
from notifier.simulator.ledger import Entry, read_ledger

__all__ = ["Entry", "Simulator", "command", "read_ledger"]
