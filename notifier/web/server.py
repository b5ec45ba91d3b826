"""The HTTP server: how many connections it holds and for how long, and how it stops.

Tornado reads and writes HTTP/1.1. What it leaves to its user stands here, in `stream` and in `application`: connections
are counted, bounded, and closed when little moves on them; heads that cannot be read get an answer in the form of all
others; a large body is read only once its head is found good; and a server that stops answers what it was asked before
it goes.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import time
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urlsplit

import structlog
from tornado.httpserver import HTTPServer
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPInputError,
    HTTPMessageDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.ioloop import IOLoop

from notifier import telemetry
from notifier.web.application import Application
from notifier.web.context import Context
from notifier.web.safe_headers import safe_headers
from notifier.web.stream import HEAD, Stream

FIRST_HEAD = 15.0
"""Seconds for the first head of a connection, and for any other from its first byte on."""
IDLE = 75.0
"""Seconds a connection may wait for its next request; proxies keep theirs for 60."""
BODY_TIME = 120.0
"""Seconds for a body: the largest of 8 MB at 0.6 Mbit/s."""
STALLED, SLOWEST = 60.0, 500
"""Seconds over which an answer that waits for its client to read goes out at so many bytes a second, or is cut off.

The rate is twice the default of Kestrel (``MinResponseDataRate``, 240) and half of what the slowest GPRS brings (CS-1:
9.05 kbit/s). What goes out is seen in steps of about 40 KB (`UNSENT`), so that who reads 670 a second is always safe.
"""
PATIENT = 64 * 1024
"""Bytes a second from which on who reads an answer does not keep us waiting: half of them, half of the time we wait."""
UNSENT = 64 * 1024
"""Bytes not sent yet that the kernel takes of a connection (``TCP_NOTSENT_LOWAT``, tcp(7)): it takes more once
half of it is sent. Left alone, it takes megabytes, and more of them once a third is sent."""
LINGER, LINGERING, LINGER_BYTES = 2.0, 64, 1024 * 1024
"""Seconds, connections and bytes: what is read and dropped after a head was refused, so that the answer arrives."""
AT_ONCE = 16
"""Connections accepted before others get their turn: about a millisecond."""
PAUSE = 0.5
"""Seconds in which nobody is accepted after the system had no file left for one."""
EPISODE = 60.0
"""Seconds without another such thing after which it is logged again."""
SWEEP = 1.0
"""Seconds between two looks at who is too slow."""
SETTLE, LAST_WORDS = 0.1, 2.0
"""Seconds that a stop leaves at least: for bytes that are on their way, and for the calls under way."""

FILES_WANTED = 65_536
"""Open files a process asks for where the system allows more."""
FILES_DATABASE, FILES_OTHERS = 20, 64
"""Files that are never a client's: the two pools; logs, listeners, loops, an embedded database's pipes."""
CONNECTIONS_LEAST, CONNECTIONS_MOST = 32, 8192
"""A service with less room is not started; more than this are of no use (8,192 silent ones take 100 MB)."""

SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

log = structlog.get_logger("notifier.web")


# ---- how many


def raise_file_limit() -> int:
    """Raise the soft limit of open files to the hard one, at most to `FILES_WANTED`; return what it is then."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES_WANTED:
        return FILES_WANTED
    most = FILES_WANTED if hard == resource.RLIM_INFINITY else min(hard, FILES_WANTED)
    for wanted in (most, min(most, 10_240)):  # macOS refuses more than OPEN_MAX, whatever it says of the hard limit
        if wanted <= soft:
            break
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            return wanted
    return soft


def room_for_connections(files: int, gateway: int) -> int:
    """Return how many connections may be held by a process of so many files that has ``gateway`` to the gateway.

    Under `CONNECTIONS_LEAST` there is no room to serve.
    """
    return min(CONNECTIONS_MOST, files - gateway - FILES_DATABASE - FILES_OTHERS)


# ---- the server


@dataclass(slots=True)
class _Unread:
    """Since when an answer waits for its client to read, when that was looked at last, and what was sent until then."""

    since: float
    sent: int
    checked: float
    checked_sent: int


class Server(HTTPServer):
    """Tornado's server with at most ``most`` connections.

    At the limit the one that has kept us waiting longest makes room: for a head, for a body of somebody unknown, or to
    be read an answer by somebody unknown. If all are worked on, or have shown a token, the new one is closed.
    """

    def initialize(self, application: Application, *, most: int) -> None:  # type: ignore[override]
        super().initialize(
            application,
            max_header_size=HEAD,
            max_body_size=2**62,  # `Application` holds bodies back itself: too long a one gets a 413
        )
        self.conn_params.header_timeout = None  # `_sweep` sees to it: a timer for each head is a twentieth of a call
        self.most = most
        context: Context = application.settings["context"]
        self._log_limit = context.log_limit
        self.safe_headers = safe_headers(context.public)
        self._loop = cast("Any", IOLoop.current()).asyncio_loop
        self.drained_at: float | None = None
        self._streams: set[Stream] = set()
        self._waiting: dict[Stream, None] = {}  # the one that waits longest comes first
        self._unread: dict[Stream, _Unread] = {}
        self._readers: list[Stream] = []  # of these, the unknown ones; who keeps us waiting longest comes last
        self._lingering: set[asyncio.Task[None]] = set()
        self._listeners: list[socket.socket] = []
        self._timer: asyncio.TimerHandle | None = None
        self._crowded_at = self._short_at = -EPISODE

    # accepting

    def add_sockets(self, sockets: Iterable[socket.socket]) -> None:
        """Accept on sockets that listen and do not block."""
        for each in sockets:
            if each.family != socket.AF_UNIX:
                # What is accepted inherits them.
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT)
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._listeners.append(each)
        self._listen()
        self._sweep()

    def _listen(self) -> None:
        for each in self._listeners:
            self._loop.add_reader(each.fileno(), self._accept, each)

    def _accept(self, listener: socket.socket) -> bool:
        """Accept some; whether there may be more."""
        for _ in range(AT_ONCE):
            try:
                connection, address = listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return False
            except OSError as error:
                # Those of a connection that is gone already (accept(2)) come here too; a pause does them no harm.
                self._pause(error)
                return False
            self._take(connection, address)
        return True

    def _pause(self, error: OSError) -> None:
        """Leave who wants to connect in the kernel's queue for a while: tried at once, it would fail at once."""
        now = time.monotonic()
        if now - self._short_at >= EPISODE:
            short = "; raise the limit of open files" if error.errno in SHORT else ""
            log.error(f"cannot accept connections{short}", error=str(error), connections=len(self._streams))
        self._short_at = now
        for each in self._listeners:
            self._loop.remove_reader(each.fileno())
        self._loop.call_later(PAUSE, self._listen)

    def _take(self, connection: socket.socket, address: tuple[Any, ...]) -> None:
        if len(self._streams) + len(self._lingering) >= self.most:
            telemetry.HTTP_CLOSED.labels("crowded").inc()
            now = time.monotonic()
            if now - self._crowded_at >= EPISODE:
                log.warning("too many connections: who waits longest makes room", most=self.most)
            self._crowded_at = now
            longest = self._longest()
            if longest is None:
                connection.close()
                return
            longest.close()
        stream = Stream(connection, self, address[0])
        self._streams.add(stream)
        self._waiting[stream] = None
        telemetry.HTTP_CONNECTIONS.set(len(self._streams))
        self.handle_stream(stream, address)

    def _longest(self) -> Stream | None:
        """Return who keeps us waiting longest, None where nobody does."""
        silent, reader = next(iter(self._waiting), None), self._slowest_reader()
        if silent is None or reader is None:
            return silent or reader
        return silent if silent.since <= self._unread_since(reader) else reader

    def _slowest_reader(self) -> Stream | None:
        for _ in range(2):
            while self._readers:
                if self._readers[-1] in self._unread:
                    return self._readers[-1]
                self._readers.pop()
            # Put in order once for all that are accepted until the next sweep, or until none of them is left.
            unknown = (stream for stream in self._unread if not stream.is_known)
            self._readers = sorted(unknown, key=self._unread_since, reverse=True)
        return None

    def _unread_since(self, stream: Stream) -> float:
        """Return since when we wait for a reader: the later, the more it has read."""
        unread = self._unread[stream]
        return unread.since + (stream.sent - unread.sent) / PATIENT

    # what becomes of a connection

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        stream: Stream = cast("Any", server_conn).stream
        if not stream.closed():
            stream.wait()
            self._unread.pop(stream, None)
            self._waiting.pop(stream, None)
            self._waiting[stream] = None
        return _Request(super().start_request(server_conn, request_conn), stream, self)

    def is_busy(self, stream: Stream) -> None:
        """It does not keep us waiting any more: we work on what it sent."""
        self._waiting.pop(stream, None)

    def is_unread(self, stream: Stream) -> None:
        """Its answer waits for its client to read."""
        if stream not in self._unread:
            now = time.monotonic()
            self._unread[stream] = _Unread(now, stream.sent, now, stream.sent)

    def busy(self) -> set[Stream]:
        """Return the connections that do not keep us waiting."""
        return self._streams - self._waiting.keys()

    def is_closed(self, stream: Stream) -> None:
        """Forget a connection."""
        self._waiting.pop(stream, None)
        self._unread.pop(stream, None)
        self._streams.discard(stream)
        telemetry.HTTP_CONNECTIONS.set(len(self._streams))

    def refused(self, status: int, detail: str, address: str, request_id: str) -> None:
        """Note that a request could not be read."""
        telemetry.HTTP_REQUESTS.labels("other", "unreadable", str(status)).inc()
        if self._log_limit.allows():
            log.info("request refused", status=status, detail=detail, address=address, request_id=request_id)

    def linger(self, connection: socket.socket) -> None:
        """Close a connection when its client has read what we wrote: it closes then, too."""
        if len(self._lingering) >= LINGERING:
            connection.close()
            return
        task = self._loop.create_task(_linger(connection))
        self._lingering.add(task)
        task.add_done_callback(self._lingering.discard)

    def _sweep(self) -> None:
        """Close who asks nothing for too long, whose head or body does not come, and who reads an answer too slowly."""
        now = time.monotonic()
        slow: list[tuple[Stream, str]] = []
        bodies = (stream for stream in self._streams if stream.reads_body and not stream.is_answering)
        late = [stream for stream in bodies if now - stream.body_since >= BODY_TIME]
        for stream in self._waiting:
            if now - stream.since < FIRST_HEAD:
                break
            began = stream.since if stream.is_new else stream.begun
            if not stream.reads_body and began is not None and now - began >= FIRST_HEAD:
                slow.append((stream, "slow_head"))
            elif began is None and now - stream.since >= IDLE:
                late.append(stream)
        for stream, unread in self._unread.items():
            if now - unread.checked >= STALLED and stream.writing():
                if stream.sent - unread.checked_sent < SLOWEST * STALLED:
                    slow.append((stream, "stalled"))
                unread.checked, unread.checked_sent = now, stream.sent
        self._readers = []
        for stream, reason in slow:
            telemetry.HTTP_CLOSED.labels(reason).inc()
            stream.close()
        for stream in late:
            stream.close()
        self._timer = self._loop.call_later(SWEEP, self._sweep)

    # stopping

    def drain(self) -> None:
        """From now on each answer is the last of its connection, and says so."""
        if self.drained_at is None:
            self.drained_at = time.monotonic()
            self.conn_params.no_keep_alive = True

    def stop(self) -> None:
        """Accept nobody any more; who is in the queue already is taken."""
        for each in self._listeners:
            if each.fileno() >= 0:
                self._loop.remove_reader(each.fileno())
                while self._accept(each):
                    pass
                each.close()
        self._listeners = []

    async def close(self, delay: float, grace: float) -> None:
        """Stop without tearing an answer away, ``grace`` seconds after `drain` at the latest, or `LAST_WORDS` from now.

        For ``delay`` seconds after `drain` everything is answered, so that whoever sends requests here hears of the
        stop before. Then nobody is accepted, and what is under way, also a request that has come in part, is finished.
        """
        self.drain()
        assert self.drained_at is not None
        await asyncio.sleep(self.drained_at + delay - time.monotonic())
        self.stop()
        deadline = max(self.drained_at + grace, time.monotonic() + LAST_WORDS)
        await asyncio.sleep(SETTLE)
        while self._under_way() and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        if left := self._under_way():
            log.warning("stopped before all was answered", connections=left)
        if self._timer is not None:
            self._timer.cancel()
        await self.close_all_connections()
        await asyncio.gather(*self._lingering)

    def _under_way(self) -> int:
        return len(self.busy()) + sum(stream.begun is not None for stream in self._waiting)


async def _linger(connection: socket.socket) -> None:
    left = LINGER_BYTES
    with connection, suppress(OSError, TimeoutError):
        connection.shutdown(socket.SHUT_WR)
        async with asyncio.timeout(LINGER):
            while left > 0 and (data := await asyncio.get_running_loop().sock_recv(connection, 65_536)):
                left -= len(data)


class _Request(HTTPMessageDelegate):
    """A request as it comes: says how far it has come, and sees to what RFC 9112 asks of its head."""

    def __init__(self, inner: HTTPMessageDelegate, stream: Stream, server: Server) -> None:
        self.inner, self.stream, self.server = inner, stream, server

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self.stream.reads_body, self.stream.body_since = True, time.monotonic()
        line = cast("RequestStartLine", start_line)
        if line.version == "HTTP/1.0" and "Transfer-Encoding" in headers:
            raise HTTPInputError("Transfer-Encoding in HTTP/1.0")  # 6.1: proxies do not agree where its body ends
        if not line.path.startswith("/"):
            line = _in_origin_form(line, headers)
        return self.inner.headers_received(line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self.inner.data_received(chunk)

    def finish(self) -> None:
        self.server.is_busy(self.stream)
        self.stream.is_new, self.stream.is_answering = False, True
        self.inner.finish()

    def on_connection_close(self) -> None:
        self.inner.on_connection_close()


def _in_origin_form(line: RequestStartLine, headers: HTTPHeaders) -> RequestStartLine:
    """Return the line with a path alone; the absolute form's host beats the header's (RFC 9112, 3.2.2)."""
    try:
        target = urlsplit(line.path)
    except ValueError:
        raise HTTPInputError("the address cannot be read") from None
    if "#" in line.path:  # a fragment: left out here, the path would be another than a proxy's rules have seen
        raise HTTPInputError("the address has a fragment")
    if target.scheme.lower() not in ("http", "https") or not target.netloc or len(headers.get_list("Host")) != 1:
        return line
    headers["Host"] = target.netloc.rpartition("@")[2]
    query = f"?{target.query}" if target.query else ""
    return RequestStartLine(line.method, f"{target.path or '/'}{query}", line.version)
