"""A gateway that answers with the bytes of a script."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from notifier.delivery.answers import Answer
from notifier.delivery.gateway import Gateway

OK = b'HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{"code":0}'
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
FIN = b""  # in a script: no more comes


class Server:
    """Gives the first request the first script, a list of writes, and so on; a connection stays open after them."""

    def __init__(self, scripts: list[list[bytes]]) -> None:
        self.scripts = scripts
        self.requests: list[tuple[int, bytes]] = []  # number of the connection, bytes
        self.writers: list[asyncio.StreamWriter] = []
        self.open = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        number = len(self.writers)
        self.writers.append(writer)
        self.open += 1
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                self.requests.append((number, head + await reader.readexactly(length)))
                for part in self.scripts.pop(0):
                    if part == FIN:
                        writer.write_eof()
                    else:
                        writer.write(part)
                        await writer.drain()
                        await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.open -= 1
            writer.close()


@asynccontextmanager
async def serving(*scripts: list[bytes], patience: float = 60) -> AsyncIterator[tuple[Server, Gateway]]:
    """Yield a server with these scripts, and a gateway that is it."""
    server = Server(list(scripts))
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with Gateway("default", f"http://127.0.0.1:{port}/base", "secret", timeout=patience) as gateway:
        yield server, gateway
    listening.close()


async def send(gateway: Gateway) -> Answer:
    """Send one message."""
    return await gateway.send(7, 79160000000, b'"x"')
