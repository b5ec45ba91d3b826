"""The API's latency while the engine of the same process sends flat out, beside that of the same process when idle."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from itertools import count

import aiohttp
import uvloop

from bench import fill
from bench.served import TOKEN, replica
from bench.throughput import CONNECTIONS, Row, a_database
from bench.timing import p99
from bench.waiting import sent
from notifier.storage import mailings
from notifier.storage.database import create_pool

WAITING = 200_000
RATE = 50  # calls a second: a mailing, its statistics and a new client in turn
SECONDS = 12
WARM_UP = 2_000  # messages that are sent before the calls
TARGET = 0.100  # seconds

PHONES = count(79_100_000_000)


async def call(api: aiohttp.ClientSession, mailing: int) -> list[float]:
    """Seconds of each of the calls, sorted, from the moment when it was to be made, however late it was."""
    loop = asyncio.get_running_loop()

    async def one(number: int, due: float) -> float:
        await asyncio.sleep(due - loop.time())
        if number % 3 == 2:
            request = api.post("clients", json={"phone": f"+{next(PHONES)}", "tags": ["new"]})
        else:
            request = api.get(f"mailings/{mailing}" + "/statistics" * (number % 3))
        async with request as response:
            await response.read()
        return loop.time() - due

    begin = loop.time() + 0.5
    calls = (one(number, begin + number / RATE) for number in range(RATE * SECONDS))
    return sorted(await asyncio.gather(*calls))


async def measure(url: str, dsn: str) -> tuple[list[float], list[float], float]:
    """The latencies while idle and while busy, and how many messages a second were sent meanwhile."""
    fill.clients(dsn, WAITING)
    (mailing,) = fill.mailings(dsn, WAITING)
    loop = asyncio.get_running_loop()
    async with await create_pool(dsn, size=1, application_name="bench") as db:
        await mailings.act(db, mailing, "pause")
        with replica(dsn, url, GATEWAY_CONCURRENCY=str(CONNECTIONS)) as server:
            async with aiohttp.ClientSession(
                f"{server.url}/api/v1/", headers={"Authorization": f"Bearer {TOKEN}"}, raise_for_status=True
            ) as api:
                idle = await call(api, mailing)
                await mailings.act(db, mailing, "resume")
                while await sent(db) < WARM_UP:
                    await asyncio.sleep(0.1)
                before, started = await sent(db), loop.time()
                busy = await call(api, mailing)
                after, seconds = await sent(db), loop.time() - started
                assert after < WAITING, "all was sent too soon"
        return idle, busy, (after - before) / seconds


def rows(url: str) -> Iterator[Row]:
    """Yield the row of the table."""
    with a_database() as dsn:
        idle, busy, pace = uvloop.run(measure(url, dsn))
    question = f"p99 of {RATE} API calls a second while {pace:,.0f} messages are sent, of an idle one"
    figure, baseline = (f"{p99(times) * 1000:.0f} ms" for times in (busy, idle))
    yield question, figure, baseline, f"{p99(busy) / p99(idle):.1f}", f"{TARGET * 1000:.0f} ms", p99(busy) <= TARGET
