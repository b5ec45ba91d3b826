"""``python -m notifier.simulator`` is ``server.py gateway``."""

from __future__ import annotations

from notifier.simulator import command

if __name__ == "__main__":
    command()
