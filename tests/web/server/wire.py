"""Bare connections to a server, and handlers that are slow or answer much."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass

from chaos.stage import PATIENCE
from notifier import telemetry
from notifier.web.auth import PUBLIC
from notifier.web.base import Base
from notifier.web.routes import ROUTES, Route
from tests.web.conftest import Api


@dataclass
class Wire:
    """A bare connection: what a client sends that keeps no rules."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, path: str, *headers: str, body: bytes = b"", token: str | None = None) -> None:
        lines = [f"POST {path} HTTP/1.1", "Host: x", *headers, *([f"Authorization: Bearer {token}"] if token else [])]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)

    async def answer(self) -> int:
        """Read an answer to its end and return the status."""
        return (await self.whole())[0]

    async def whole(self) -> tuple[int, dict[str, str], bytes]:
        """Read an answer to its end: status, headers by their names in lower case, body."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        headers = {name.lower(): value for name, value in re.findall(r"(?m)^([^:\r\n]+): (.*?)\r$", head)}
        body = await self.reader.readexactly(int(headers.get("content-length", 0)))
        return int(head.split()[1]), headers, body

    async def is_closed(self) -> bool:
        """Wait until the server closes."""
        with suppress(ConnectionResetError):
            return await self.reader.read(1) == b""
        return True


@asynccontextmanager
async def wire(api: Api) -> AsyncIterator[Wire]:
    reader, writer = await asyncio.open_connection("127.0.0.1", int(api.url.rpartition(":")[2]))
    try:
        yield Wire(reader, writer)
    finally:
        writer.close()


GET = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def figure(name: str, **labels: str) -> float:
    return telemetry.REGISTRY.get_sample_value(name, labels) or 0.0


class Slow(Base):
    """Answers when it is told to."""

    release: asyncio.Event

    async def get(self) -> None:
        await Slow.release.wait()
        self.write("at last")


class Large(Base):
    async def get(self) -> None:
        self.write(b" " * 64 * 2**20)


SLOW = (*ROUTES, Route("/slow", Slow, {"GET": PUBLIC}), Route("/large", Large, {"GET": PUBLIC}))


@contextmanager
def asking(api: Api, *requests: str, token: str = "") -> Iterator[socket.socket]:
    """A client that asks, and reads what it is made to read only."""
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # before it connects: the window is never larger
        client.connect(("127.0.0.1", int(api.url.rpartition(":")[2])))
        client.setblocking(False)
        for path in requests:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        yield client


async def received(client: socket.socket, size: int) -> bytes:
    """Read so many bytes, none once the server has closed."""
    with suppress(ConnectionResetError):
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, size), PATIENCE)
    return b""
