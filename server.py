"""The entry point: `python server.py --help` lists what it can do."""

from __future__ import annotations

from notifier.__main__ import main

if __name__ == "__main__":
    main()
