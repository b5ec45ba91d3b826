"""`python -m chaos.outsider SECONDS NAME=URL …`: somebody without a token who wants the service to stop, for so long.

Connections that say nothing, or half of a head, or a byte of a body a second, or do not read; long paths, wrong tokens,
wrong log-ins, heads that are none; each kind from several loopback addresses. What is closed on it is opened again. At
the end a JSON object tells how often each kind was begun, and how often each status was answered. ``NAME`` says how
much of it an address gets: `SHARES`.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import re
import resource
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import urlsplit

ADDRESSES = [f"127.0.0.{n}" for n in range(2, 12)]
SHARES = {"direct": 1.0, "proxy": 0.3}
AGAIN = 2.0
"""Seconds until a connection that was closed is opened again."""
FILES = 8_192
HOST = b"Host: x\r\n"
LONG = [b"/static/" + b"a/" * 3_900, b"/static/" + b"a" * 7_800, b"/admin/" + b"../" * 2_000, b"/" + b"a" * 7_800]
NONSENSE = [b"hello\r\n\r\n", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\r\n\r\n", b"GET /" + b"a" * 20_000]
LOGIN = b"POST /admin/login HTTP/1.1\r\n" + HOST + b"Content-Type: application/x-www-form-urlencoded\r\n"


class Kind(NamedTuple):
    """A kind of harm: so many at once, each begun again after ``every`` seconds, or `AGAIN` after it was closed."""

    many: int
    every: float | None
    do: Callable[[Outsider], Awaitable[None]]


class Outsider:
    """What is done to one address."""

    def __init__(self, url: str, share: float) -> None:
        place = urlsplit(url)
        self.host, self.port = place.hostname or "", place.port or 80
        self.share = share
        self.begun: Counter[str] = Counter()
        self.answers: Counter[str] = Counter()
        self.numbers = itertools.count()

    async def run(self) -> None:
        """Do all of it until cancelled."""
        async with asyncio.TaskGroup() as group:
            for name, kind in KINDS.items():
                for _ in range(max(1, round(kind.many * self.share))):
                    group.create_task(self._again(name, kind))

    async def _again(self, name: str, kind: Kind) -> None:
        while True:
            self.begun[name] += 1
            with suppress(OSError, asyncio.IncompleteReadError, TimeoutError, asyncio.LimitOverrunError):
                await kind.do(self)
            await asyncio.sleep(AGAIN if kind.every is None else kind.every / self.share)

    async def hold(self, sent: bytes, trickle: bytes = b"") -> None:
        """Send this, then a byte a second, until the other side closes."""
        reader, writer = await self._open()
        try:
            writer.write(sent)
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        if not await reader.read(65_536):
                            return
                writer.write(trickle)
        finally:
            writer.close()

    async def deaf(self) -> None:
        """Ask for a large file, again and again on one connection, and read nothing of it."""
        _reader, writer = await self._open(limit=1024)
        try:
            asked = b"GET /static/vendor/swagger-ui/swagger-ui-bundle.js HTTP/1.1\r\n" + HOST + b"\r\n"
            writer.write(asked * 20)
            await asyncio.sleep(90)
        finally:
            writer.close()

    async def ask(self, request: bytes) -> None:
        """Send a whole request on a connection of its own, and count the answer."""
        async with asyncio.timeout(10):
            reader, writer = await self._open()
            try:
                writer.write(request)
                line = await reader.readline()
                status = re.match(rb"HTTP/1.1 (\d+)", line)
                self.answers[status[1].decode() if status else "none"] += 1
            finally:
                writer.close()

    def next(self, of: list[bytes]) -> bytes:
        """One after the other."""
        return of[next(self.numbers) % len(of)]

    async def _open(self, limit: int = 2**16) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        address = ADDRESSES[next(self.numbers) % len(ADDRESSES)]
        async with asyncio.timeout(5):
            return await asyncio.open_connection(self.host, self.port, local_addr=(address, 0), limit=limit)


def _get(path: bytes, more: bytes = b"") -> bytes:
    return b"GET " + path + b" HTTP/1.1\r\n" + HOST + more + b"Connection: close\r\n\r\n"


async def _token(outsider: Outsider) -> None:
    number = next(outsider.numbers)
    await outsider.ask(_get(b"/api/v1/clients", b"Authorization: Bearer ntf_wrong-%020d\r\n" % number))


async def _login(outsider: Outsider) -> None:
    body = b"token=wrong-%020d" % next(outsider.numbers)
    await outsider.ask(LOGIN + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)


KINDS = {
    "idle": Kind(600, None, lambda outsider: outsider.hold(b"")),
    "half a head": Kind(500, None, lambda outsider: outsider.hold(b"GET / HTTP/1.1\r\nHo")),
    "a head by the byte": Kind(50, None, lambda outsider: outsider.hold(b"GET / HTTP/1.1\r\nX: ", b"a")),
    "a body by the byte": Kind(100, None, lambda it: it.hold(LOGIN + b"Content-Length: 60000\r\n\r\n", b"a")),
    "deaf": Kind(20, None, lambda outsider: outsider.deaf()),
    "a long path": Kind(4, 0.2, lambda outsider: outsider.ask(_get(outsider.next(LONG)))),
    "a wrong token": Kind(10, 0.2, _token),
    "a wrong log-in": Kind(2, 0.4, _login),
    "no head": Kind(2, 0.2, lambda outsider: outsider.ask(outsider.next(NONSENSE))),
}


async def main(seconds: float, targets: dict[str, str]) -> None:
    """Do harm for so long, then say what was done."""
    outsiders = {name: Outsider(url, SHARES[name]) for name, url in targets.items()}
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(outsider.run() for outsider in outsiders.values()))
    print(json.dumps({name: {"begun": each.begun, "answers": each.answers} for name, each in outsiders.items()}))


if __name__ == "__main__":
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(FILES, hard) if hard > 0 else FILES, hard))
    asyncio.run(main(float(sys.argv[1]), dict(argument.split("=", 1) for argument in sys.argv[2:])))
