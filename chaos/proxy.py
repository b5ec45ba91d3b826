"""A proxy between a replica and PostgreSQL that fails on command.

It follows protocol 3 ("Frontend/Backend Protocol" in PostgreSQL's manual) far enough to know which statement an
Execute or a Query runs, and where the answer to it ends.
"""

from __future__ import annotations

import asyncio
import functools
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Concatenate, ParamSpec, TypeVar
from urllib.parse import urlsplit

import uvloop
from psycopg.conninfo import conninfo_to_dict

CHUNK = 64 * 1024
HEAD = struct.Struct("!cI")  # a message's kind, and its length without the kind
STARTUP = struct.Struct("!II")  # the first message has no kind: its length, and a version or one of these
SSL_REQUEST, GSSENC_REQUEST = 80877103, 80877104
RST_ON_CLOSE = struct.pack("ii", 1, 0)

P = ParamSpec("P")
T = TypeVar("T")


def _in_loop(method: Callable[Concatenate[Proxy, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[Proxy, P], T]:
    """Let any thread call ``method``, which runs in the proxy's own loop, and wait until it is done."""

    @functools.wraps(method)
    def call(self: Proxy, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return asyncio.run_coroutine_threadsafe(method(self, *args, **kwargs), self.loop).result()

    return call


@dataclass(slots=True)
class Fault:
    """What befalls the next ``times`` statements whose text contains ``match``."""

    match: bytes
    times: int
    reaches_server: bool


class Cut(OSError):
    """This connection is to be reset."""


class Proxy:
    """Stands in for the server of ``target``, a ``postgresql://`` address of one host, from ``with`` on.

    ``dsn`` is the address to use instead: TCP without TLS. A method returns when what it says holds. ``cuts`` counts
    the connections that ``cut`` reset, ``lost`` and ``dropped`` count statements. Behind a unix socket the server
    sees an ordinary end where the client sees RST. Leaving raises an ExceptionGroup if the proxy itself went wrong.
    """

    def __init__(self, target: str) -> None:
        self._address = _address_of(target)
        self._target = urlsplit(target)
        self.cuts = self.lost = self.dropped = 0
        self.armed: list[Fault] = []
        self.delay = 0.0
        self.flowing = asyncio.Event()
        self.flowing.set()
        self._refusing = False
        self._accept_at: asyncio.TimerHandle | None = None
        self._links: dict[asyncio.Task[None], Link] = {}
        self._errors: list[BaseException] = []

    def __enter__(self) -> Proxy:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        user, at, _ = self._target.netloc.rpartition("@")
        host = f"127.0.0.1:{self._listener.getsockname()[1]}"
        options = [option for option in self._target.query.split("&") if option.split("=")[0] not in ("host", "port")]
        self.dsn = self._target._replace(netloc=f"{user}{at}{host}", query="&".join(options)).geturl()
        self.loop = uvloop.new_event_loop()
        self.loop.add_reader(self._listener, self._take_client)
        self._thread = threading.Thread(target=self.loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()
        if self._errors:
            raise BaseExceptionGroup("the proxy went wrong", self._errors)

    @_in_loop
    async def lead_to(self, target: str) -> None:
        """Lead whoever connects from now on to another server; connections that are there stay where they are."""
        self._address = _address_of(target)

    @_in_loop
    async def cut(self) -> int:
        """Reset all connections, and return how many."""
        cut = await self._end_links()
        self.cuts += cut
        return cut

    @_in_loop
    async def refuse(self, seconds: float | None = None) -> None:
        """Reset whoever connects, for ``seconds`` or until ``accept``; connections that are there stay."""
        self._set_refusing(True)
        if seconds is not None:
            self._accept_at = self.loop.call_later(seconds, self._set_refusing, False)

    @_in_loop
    async def accept(self) -> None:
        self._set_refusing(False)

    @_in_loop
    async def stall(self) -> None:
        """Hold everything back, in both directions, until ``flow``: a network that hangs, and then delivers."""
        self.flowing.clear()

    @_in_loop
    async def flow(self) -> None:
        self.flowing.set()

    @_in_loop
    async def slow(self, seconds: float) -> None:
        """Hold each chunk from the server back for ``seconds``, one after another; 0 ends it."""
        self.delay = seconds

    @_in_loop
    async def lose_answer(self, match: str, times: int = 1) -> None:
        """Reset the connection of a statement that contains ``match`` when the server has carried it out.

        Nothing of the answer passes; so not for COPY FROM, where the client must be told to send its data.
        """
        self.armed.append(Fault(match.encode(), times, reaches_server=True))

    @_in_loop
    async def drop_statement(self, match: str, times: int = 1) -> None:
        """Reset the connection of a statement that contains ``match`` before the server is told to run it."""
        self.armed.append(Fault(match.encode(), times, reaches_server=False))

    @_in_loop
    async def _close(self) -> None:
        self.loop.remove_reader(self._listener)
        self._listener.close()
        await self._end_links()

    async def _end_links(self) -> int:
        tasks = tuple(self._links)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return len(tasks)

    def _set_refusing(self, refusing: bool) -> None:
        if self._accept_at is not None:
            self._accept_at.cancel()
        self._accept_at, self._refusing = None, refusing

    def _take_client(self) -> None:
        client, _ = self._listener.accept()
        if self._refusing:
            _reset(client)
        else:
            link = Link(self, client, self._address)
            task = self.loop.create_task(link.run())
            self._links[task] = link
            task.add_done_callback(self._forget)

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._links.pop(task).reset()  # not by the task: one that is cancelled before its first step never runs
        if not task.cancelled() and (error := task.exception()):
            self._errors.append(error)


class Link:
    """A client's connection, and the one to the server that goes with it."""

    def __init__(self, proxy: Proxy, client: socket.socket, address: Any) -> None:
        self.proxy, self.client, self.address = proxy, client, address
        self.server = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        self.started = False
        self.unread = bytearray()  # from the client; a message goes on when it has come whole
        self.statements: dict[bytes, bytes] = {}  # name → text
        self.portals: dict[bytes, bytes] = {}  # name → text of its statement
        self.head, self.body_left = b"", 0  # the server's current message: a head cut short, or bytes still to come
        self.due, self.come = 1, 0  # ReadyForQuery messages; the first ends the startup
        self.lose_at: int | None = None  # the ReadyForQuery that ends the answer to be lost

    async def run(self) -> None:
        try:
            for end in (self.client, self.server):
                end.setblocking(False)
                if end.family != socket.AF_UNIX:
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self.proxy.loop.sock_connect(self.server, self.address)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self.pump(self.client, self.server, self.read_client))
                pumps.create_task(self.pump(self.server, self.client, self.read_server))
            self.client.close()  # both sides said goodbye: no reset
        except* OSError:
            pass

    def reset(self) -> None:
        _reset(self.client)
        _reset(self.server)

    async def pump(self, source: socket.socket, sink: socket.socket, read: Callable[[bytes], bytes]) -> None:
        proxy = self.proxy
        while True:
            data = await proxy.loop.sock_recv(source, CHUNK)
            if proxy.delay and source is self.server:
                await asyncio.sleep(proxy.delay)
            await proxy.flowing.wait()
            if not data:
                break
            await proxy.loop.sock_sendall(sink, read(data))
        sink.shutdown(socket.SHUT_WR)  # the other direction may have a last word to pass

    def read_client(self, data: bytes) -> bytes:
        """Return the messages that are whole with ``data``; raises Cut when one of them is to be dropped."""
        self.unread += data
        at = 0
        while not self.started and len(self.unread) >= STARTUP.size:
            length, code = STARTUP.unpack_from(self.unread)
            if code in (SSL_REQUEST, GSSENC_REQUEST):
                self.client.send(b"N")  # in the place of the server, whose yes would hide from us what follows
                del self.unread[:length]
            elif length <= len(self.unread):
                self.started, at = True, length
            else:
                break
        while self.started and at + HEAD.size <= len(self.unread):
            kind, length = HEAD.unpack_from(self.unread, at)
            end = at + 1 + length
            if end > len(self.unread):
                break
            if kind in b"PBCEQSF":
                self.read_message(kind, bytes(self.unread[at + HEAD.size : end]))
            at = end
        whole = bytes(self.unread[:at])
        del self.unread[:at]
        return whole

    def read_message(self, kind: bytes, body: bytes) -> None:
        match kind:
            case b"P":  # Parse
                name, text, _ = body.split(b"\0", 2)
                self.statements[name] = text
            case b"B":  # Bind
                portal, name, _ = body.split(b"\0", 2)
                self.portals[portal] = self.statements.get(name, b"")
            case b"C":  # Close, of a statement or a portal
                (self.statements if body[:1] == b"S" else self.portals).pop(body[1:-1], None)
            case b"E" if self.proxy.armed:  # Execute
                self.strike(self.portals.get(body.split(b"\0", 1)[0], b""))
            case b"Q" if self.proxy.armed:  # Query
                self.strike(body)
        self.due += kind in b"QSF"  # Query, Sync, FunctionCall: the answer ends with ReadyForQuery

    def strike(self, text: bytes) -> None:
        """Begin the first fault that is armed for ``text``; raises Cut if the server must not see it."""
        armed = self.proxy.armed
        fault = next((fault for fault in armed if fault.match in text), None)
        if fault is None or self.lose_at is not None:
            return
        fault.times -= 1
        if fault.times <= 0:
            armed.remove(fault)
        if not fault.reaches_server:
            self.proxy.dropped += 1
            raise Cut
        self.lose_at = self.due + 1

    def read_server(self, data: bytes) -> bytes:
        """Return what of ``data`` is for the client; raises Cut when the answer to be lost is complete."""
        answer, at = self.head + data, self.body_left
        while at + HEAD.size <= len(answer):
            kind, length = HEAD.unpack_from(answer, at)
            self.come += kind == b"Z"  # ReadyForQuery
            at += 1 + length
        self.head, self.body_left = answer[at:], max(0, at - len(answer))
        if self.lose_at is None:
            return data
        if self.come >= self.lose_at:
            self.proxy.lost += 1
            raise Cut
        return b""


def _address_of(target: str) -> Any:
    given = conninfo_to_dict(target)
    host, port = str(given.get("host") or "localhost"), str(given.get("port") or 5432)
    if "," in host:
        raise ValueError("a proxy has one target, and this address names several hosts")
    return f"{host}/.s.PGSQL.{port}" if host.startswith("/") else socket.getaddrinfo(host, port, socket.AF_INET)[0][4]


def _reset(end: socket.socket) -> None:
    """Close ``end`` with RST if it is open."""
    if end.fileno() >= 0:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST_ON_CLOSE)
        end.close()
