"""How this copy is installed: what to call it, and where its files lie."""

from __future__ import annotations

import sys
from pathlib import Path

DISTRIBUTION = "notifier-server"
"""The name on PyPI (``notifier`` there is a stranger's); setup.cfg says the same."""

_PACKAGE = Path(__file__).resolve().parent
# setup.py puts the three folders into a wheel's package; a checkout has them beside it.
_INSTALLED = _PACKAGE / "_assets"


def assets(name: str) -> Path:
    """Return the folder ``migrations``, ``static`` or ``templates``, of a checkout or of an installed wheel."""
    return (_INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent) / name


def beside() -> Path | None:
    """Return the folder of ``server.py``; None when installed from a wheel, which has none."""
    return None if _INSTALLED.is_dir() else _PACKAGE.parent


def program() -> str:
    """Return what the user types to call it: ``server.py`` or ``notifier``."""
    return "server.py" if Path(sys.argv[0]).name == "server.py" else "notifier"
