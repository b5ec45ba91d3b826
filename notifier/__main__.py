"""The entry point of ``server.py``, of the console script ``notifier`` and of ``python -m notifier``."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C ends it in a word also while it is loaded."""
    try:
        from notifier.cli import main as command  # here, since it takes a second

        command()
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    main()
