"""The entry point: `python server.py --help` lists what it can do."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from notifier.cli import main  # here, since it takes a second

        main()
    except KeyboardInterrupt:
        sys.exit("stopped")
