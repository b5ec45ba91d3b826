"""`python -m chaos.replica …`: server.py with constants changed and, on command, a death or losses at chosen steps.

`CONSTANTS` holds a JSON object, `{"policy.CAP": 30.0}`: module under `notifier`, name, value. `DEATH` holds
`before|after N path`: kill -9 of this process before or after call N of that function (`after 3 storage.queue.claim`);
after one that found nothing it does not count.
`LOSS` holds `seconds rounds part part …`: from the first request on, every so many seconds the task of the next part is
cancelled; a part is a loop's name, or `send` for one of the tasks that send.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import signal
import sys
from typing import Any

from notifier.cli import main

CONSTANTS, DEATH, LOSS = "CHAOS_CONSTANTS", "CHAOS_DEATH", "CHAOS_LOSS"
LOST = "a part was lost on command"


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
        if when == "before":
            calls += 1
            if calls == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
        result = await function(*args, **kwargs)
        if when == "after" and result != []:
            calls += 1
            if calls == int(number):
                os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(place, name, mortal)


def lose(order: str) -> None:
    """Have tasks of this process cancelled one after the other as ``order`` says."""
    seconds, rounds, *parts = order.split()
    place, name = find("delivery.gateway.Gateway.send")
    send = getattr(place, name)
    losing: asyncio.Task[None] | None = None

    @functools.wraps(send)
    async def begin(*args: Any, **kwargs: Any) -> Any:
        nonlocal losing
        losing = losing or asyncio.get_running_loop().create_task(_lose(float(seconds), parts * int(rounds)))
        return await send(*args, **kwargs)

    setattr(place, name, begin)


async def _lose(seconds: float, parts: list[str]) -> None:
    for part in parts:
        await asyncio.sleep(seconds)
        while (task := _task_of(part)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
        print(json.dumps({"event": LOST, "part": part}), file=sys.stderr, flush=True)


def _task_of(part: str) -> asyncio.Task[Any] | None:
    for task in asyncio.all_tasks():
        waits = getattr(task.get_coro(), "cr_await", None) is not None
        if task.get_name() == f"notifier-{part}" or (
            part == "send" and waits and getattr(task.get_coro(), "__qualname__", "") == "Sender._run"
        ):
            return task
    return None


if __name__ == "__main__":
    change(json.loads(os.environ.get(CONSTANTS, "{}")))
    if DEATH in os.environ:
        die(os.environ[DEATH])
    if LOSS in os.environ:
        lose(os.environ[LOSS])
    main()
