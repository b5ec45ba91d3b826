"""Where a gateway is: its name looked up, and connections with it opened. No proxies from the environment."""

from __future__ import annotations

import asyncio
import functools
import socket
import ssl

import aiohttp
from aiohappyeyeballs import AddrInfoType, start_connection
from yarl import URL

from notifier import hosts
from notifier.delivery.http import Wire
from notifier.models import Reason

LOOKUP_LIFE = 10.0  # seconds that the addresses of a name are used before it is looked up again
NEXT_ADDRESS = 0.25  # seconds after which the next address is tried beside the one before (RFC 8305, 5)


class NotConnected(Exception):
    """There is no connection, so nothing was sent; ``reason`` is dns, refused, tls or connect_timeout."""

    def __init__(self, reason: Reason, words: str) -> None:
        super().__init__(words)
        self.reason = reason


class Endpoint:
    """Host and port of an address, and all connections that are open with it. Made inside a running loop.

    ``timeout`` is for opening a connection, in seconds: name, TCP and TLS together.
    """

    def __init__(self, url: URL, timeout: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._host, self._port = url.raw_host or "", url.port or 0
        self._name = f"{url.host_subcomponent}:{url.port}"
        self._timeout = timeout
        self._tls = _tls() if url.scheme == "https" else None
        self._resolver = aiohttp.ThreadedResolver()
        self._lookup: asyncio.Task[list[AddrInfoType] | str] | None = None
        self._lookup_until = 0.0  # by the loop's time
        self._turn = 0  # which address is the first to be tried
        self._open: set[Wire] = set()
        self.closed = False

    async def connect(self) -> Wire:
        """Open a connection; raises NotConnected."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._connect(await self._addresses())
        except TimeoutError:
            reason, words = Reason.CONNECT_TIMEOUT, f"no connection in {self._timeout:g} s"
        except ssl.SSLError as error:
            reason, words = Reason.TLS, str(error)
        except (OSError, RuntimeError) as error:  # uvloop raises either
            reason, words = Reason.REFUSED, str(error)
        raise NotConnected(reason, f"{self._name}: {words}")

    def close(self) -> None:
        """Close all connections; what is being opened then is not used."""
        self.closed = True
        for wire in self._open:
            wire.close()

    async def _connect(self, addresses: list[AddrInfoType]) -> Wire:
        while True:
            sock = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS)
            try:
                _, wire = await self._loop.create_connection(
                    lambda: Wire(self._open.discard),
                    sock=sock,
                    ssl=self._tls,
                    server_hostname=self._host.rstrip(".") if self._tls else None,
                )
            except ssl.SSLError:
                del addresses[0]  # where one of several has no good certificate, another may have
                if not addresses:
                    raise
                continue
            if self.closed:
                wire.close()
                raise ConnectionAbortedError("closed by ourselves")
            self._open.add(wire)
            return wire

    async def _addresses(self) -> list[AddrInfoType]:
        """What the name stands for: one lookup for all who ask meanwhile, and each begins with the next address."""
        if self._lookup is None or (self._lookup.done() and self._loop.time() >= self._lookup_until):
            self._lookup = self._loop.create_task(self._look_up())
        found = await asyncio.shield(self._lookup)
        if isinstance(found, str):
            raise NotConnected(Reason.DNS, f"{self._name}: {found}")
        self._turn = (self._turn + 1) % len(found)
        return found[self._turn :] + found[: self._turn]

    async def _look_up(self) -> list[AddrInfoType] | str:
        """The addresses, or why there are none: an exception would be raised once in each who waits."""
        try:
            if self._host.replace(".", "").isdigit() and hosts.parsed(self._host) is None:
                return "an IPv4 address has four numbers from 0 to 255"
            results = await self._resolver.resolve(self._host, self._port, socket.AF_UNSPEC)
        except (OSError, ValueError) as error:  # ValueError: a name that is none
            return str(error)
        self._lookup_until = self._loop.time() + LOOKUP_LIFE
        addresses: list[AddrInfoType] = [
            (each["family"], socket.SOCK_STREAM, each["proto"], "", _address(each["host"], each["port"]))
            for each in results
        ]
        return addresses or "it has no address"


def _address(host: str, port: int) -> tuple[str, int] | tuple[str, int, int, int]:
    return (host, port, 0, 0) if ":" in host else (host, port)


@functools.cache
def _tls() -> ssl.SSLContext:
    """Read the machine's certificates, once: it takes some 15 ms."""
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context
