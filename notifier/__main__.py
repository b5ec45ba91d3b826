"""The entry point of ``server.py``, of the console script ``notifier`` and of ``python -m notifier``."""

from __future__ import annotations

import sys
from io import TextIOWrapper


def main() -> None:
    """Run the command line; Ctrl-C ends it in a word also while it is loaded."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # there may be none
            stream.reconfigure(errors="replace")  # a terminal that is not UTF-8 shows a ? for a dash
    try:
        from notifier.cli import main as command  # here, since it takes a second

        command()
    except KeyboardInterrupt:
        sys.exit("stopped")


if __name__ == "__main__":
    main()
