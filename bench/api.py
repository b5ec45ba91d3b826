"""Calls a second over HTTP, beside a bare Tornado that answers a constant JSON to the same client.

The servers are processes of their own, and take turns; the client is this process: prepared requests over kept
connections, each sent when the answer before it has come.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import count, pairwise
from typing import cast
from urllib.parse import urlsplit

import uvloop

from bench import fill
from bench.served import TOKEN, replica, served
from bench.throughput import Row, a_database

CONNECTIONS = 16
SECONDS = 1.5  # of a round
ROUNDS = 3
TARGET = 0.35


class Caller(asyncio.Protocol):
    """One connection: sends what ``request()`` gives as soon as the answer to the last one is whole."""

    def __init__(self, request: Callable[[], bytes], status: bytes) -> None:
        self._request = request
        self._status = status
        self._read = b""
        self.answers = 0
        self.error = ""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is no subclass
        self._transport.write(self._request())

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, separator, body = self._read.partition(b"\r\n\r\n")
        if not separator:
            return
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        if len(body) < int(length):
            return
        if head.split(b" ", 2)[1] != self._status:
            self.error = self._read.decode()
            self._transport.close()
            return
        self._read = b""
        self.answers += 1
        self._transport.write(self._request())

    def close(self) -> None:
        self._transport.abort()


async def calls(url: str, request: Callable[[], bytes], status: bytes) -> float:
    """Answers a second; AssertionError for one of another status."""
    host, _, port = urlsplit(url).netloc.partition(":")
    loop = asyncio.get_running_loop()
    callers = [
        (await loop.create_connection(lambda: Caller(request, status), host, int(port)))[1] for _ in range(CONNECTIONS)
    ]
    started, before = time.perf_counter(), sum(caller.answers for caller in callers)
    await asyncio.sleep(SECONDS)
    answers, seconds = sum(caller.answers for caller in callers) - before, time.perf_counter() - started
    for caller in callers:
        caller.close()
    assert not any(caller.error for caller in callers), next(caller.error for caller in callers if caller.error)
    return answers / seconds


def http(method: str, path: str, body: bytes = b"") -> bytes:
    """The bytes of a request."""
    return (
        f"{method} {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {TOKEN}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        + body
    )


def requests(mailing_id: int) -> dict[str, tuple[Callable[[], bytes], bytes]]:
    """What is asked → the next request of it, and the status of a good answer."""
    numbers = count(79_100_000_000)

    def a_client() -> bytes:
        return http(
            "POST", "/api/v1/clients", b'{"phone":"+%d","tags":["vip"],"timezone":"Europe/Moscow"}' % next(numbers)
        )

    get = http("GET", f"/api/v1/mailings/{mailing_id}")
    numbers_of = http("GET", f"/api/v1/mailings/{mailing_id}/statistics")
    return {
        "create a client": (a_client, b"201"),
        "get a mailing": (lambda: get, b"200"),
        "get statistics": (lambda: numbers_of, b"200"),
    }


def rows(url: str) -> Iterator[Row]:
    """Yield the rows of the table: medians of a few rounds, each beside the bare rounds before and after it."""
    with a_database() as dsn:
        fill.clients(dsn, fill.SMALL)
        (mailing_id,) = fill.mailings(dsn, fill.SMALL, through=fill.SMALL // 2)
        with (
            replica(dsn, url, ROLE="api") as ours,
            served(["-m", "bench.constant"], {}) as constant,
        ):
            for name, (request, status) in requests(mailing_id).items():
                uvloop.run(calls(ours.url, request, status))  # connections to the database, plans
                baselines, figures = [uvloop.run(calls(constant.url, request, b"200"))], []
                for _ in range(ROUNDS):
                    figures.append(uvloop.run(calls(ours.url, request, status)))
                    baselines.append(uvloop.run(calls(constant.url, request, b"200")))
                around = [(before + after) / 2 for before, after in pairwise(baselines)]
                ratio, figure, baseline = sorted((f / b, f, b) for f, b in zip(figures, around, strict=True))[
                    ROUNDS // 2
                ]
                question = f"calls a second: {name}, of a constant"
                yield question, f"{figure:,.0f}", f"{baseline:,.0f}", f"{ratio:.2f}", f"{TARGET}", ratio >= TARGET
