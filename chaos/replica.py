"""`python -m chaos.replica …`: server.py with constants changed and, on command, a death at a chosen step.

`CONSTANTS` holds a JSON object, `{"delivery.backoff.CAP": 30.0}`: module under `notifier`, name, value. `DEATH` holds
`before|after N path`: kill -9 of this process before or after call N of that function (`after 3 storage.queue.claim`).
"""

from __future__ import annotations

import functools
import importlib
import json
import os
import signal
from typing import Any

from notifier.cli import main

CONSTANTS, DEATH = "CHAOS_CONSTANTS", "CHAOS_DEATH"


def find(path: str) -> tuple[Any, str]:
    """The module or class under `notifier` that has the last name of ``path``, and that name."""
    *parents, name = path.split(".")
    place: Any = importlib.import_module("notifier")
    for parent in parents:
        if not hasattr(place, parent):
            importlib.import_module(f"{place.__name__}.{parent}")
        place = getattr(place, parent)
    if not hasattr(place, name):
        raise AttributeError(f"notifier has no {path}")
    return place, name


def change(constants: dict[str, Any]) -> None:
    """Set each constant, by its path under `notifier`."""
    for path, value in constants.items():
        setattr(*find(path), value)


def die(order: str) -> None:
    """Have this process killed at the call that ``order`` names."""
    when, number, path = order.split()
    place, name = find(path)
    function = getattr(place, name)
    calls = 0

    @functools.wraps(function)
    async def mortal(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        last = calls == int(number)
        if last and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = await function(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, name, mortal)


if __name__ == "__main__":
    change(json.loads(os.environ.get(CONSTANTS, "{}")))
    if DEATH in os.environ:
        die(os.environ[DEATH])
    main()
