"""A connection of the HTTP server: what Tornado leaves out of reading requests, and what is sent of answers."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
import uuid
from collections.abc import Awaitable, Mapping
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import orjson
from tornado.httputil import HTTPInputError
from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError

from notifier.web.problems import problem_of

if TYPE_CHECKING:
    from notifier.web.server import Server

HEAD = 16 * 1024
"""Bytes a request's head may have: twice what nginx lets through by default."""
CHUNKS = 256
"""Chunks that a body may have without a token that suffices; each costs about 3 µs, however small it is."""
CHUNK_LINE, TRAILERS = 4096, 8192
"""Bytes of the line that begins a chunk, with its extensions, and of the fields after the last; both are ignored."""
REFUSED_BY_TORNADO = b"HTTP/1.1 400 Bad Request\r\n\r\n"


class Stream(IOStream):
    """A connection, which knows since when its client keeps us waiting.

    Only methods that Tornado's documentation names are overridden. Beside Tornado it takes chunk extensions and
    trailers (and ignores them, RFC 9112, 7.1), answers a client that has shut its side down after its request, and
    answers heads that cannot be read.
    """

    def __init__(self, connection: socket.socket, server: Server, address: str) -> None:
        super().__init__(connection)
        self.address = address
        self.is_new = True  # no request of it was read to its end
        self.is_answering = False
        self.reads_body = False  # or has read it
        self.body_since = 0.0
        self.is_known = False  # the present request's token suffices
        self.sent = 0
        self.begun: float | None = None  # when the first byte of the present request came
        self.since = time.monotonic()
        self._server = server
        self._is_ahead = self._has_line = self._is_answered = self._is_refused = self._at_trailers = False
        self._is_between = False  # the answer is out, and the next head is not read yet
        self._line_left = HEAD  # bytes in which the request line is to end
        self._chunks = 0
        self._drops = 0

    def wait(self) -> None:
        """A request may come from now on."""
        self.since = time.monotonic()
        self.begun = self.since if self._is_ahead else None
        self.is_answering = self.reads_body = self._is_ahead = self._has_line = self._is_answered = False
        self.is_known = self._is_between = False
        self._line_left, self._chunks = HEAD, 0

    def admitted(self) -> None:
        """Whoever sends this large body may: it is not one of those that make room for others."""
        self.is_known = True
        self._server.is_busy(self)

    def drop(self, most: int) -> None:
        """Read chunks no more: drop whatever comes until the client closes, ``most`` bytes at most."""
        self._drops = most

    # reading

    def set_nodelay(self, value: bool) -> None:
        """Tornado turns it on before the last bytes of an answer, and off once they are out and before it reads on.

        Here it is always on, since an answer goes out as a whole (`Server.add_sockets`).
        """
        self._is_between = not value

    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        if self._is_between:
            # A fast client's next request: Tornado reads it in a moment. Read now, before anybody asks for it, it would
            # have Tornado stop listening and begin again, which costs more than anything else on a short call.
            return None
        count = super().read_from_fd(buf)
        if count:
            if self.is_answering:
                self._is_ahead = True
            elif self.begun is None:
                self.begun = time.monotonic()
            if not (self._has_line or self.reads_body):
                self._has_line = b"\n" in bytes(buf[: min(count, self._line_left)])
                self._line_left = max(0, self._line_left - count)
        elif count == 0 and not self.reading():
            # It has sent all it will, and may still read. Listening would tell the same for ever; the next read finds
            # the end again.
            self.io_loop.update_handler(self.fileno(), self.io_loop.WRITE if self.writing() else self.io_loop.ERROR)
            return None
        return count

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Read the line that begins a chunk; Tornado reads nothing else with this.

        Raises HTTPInputError for too many of them.
        """
        if self._drops:
            return self._drop()
        self._chunks += 1
        if self._chunks > CHUNKS and not self.is_known:
            raise HTTPInputError(f"over {CHUNKS} chunks, without a token that suffices: send fewer and larger ones")
        line = super().read_until(delimiter, CHUNK_LINE)
        if isinstance(line, asyncio.Future) and line.done() and not line.exception():
            size = self._chunk_size(line.result())
            if size is line.result():
                return line
        return self._later_chunk_size(line)

    async def _later_chunk_size(self, line: Awaitable[bytes]) -> bytes:
        return self._chunk_size(await line)

    async def _drop(self) -> bytes:
        while self._drops > 0:
            self._drops -= len(await super().read_bytes(65_536, partial=True))
            await asyncio.sleep(0)  # what has come already is read without a turn for others
        self.close()
        raise StreamClosedError

    def _chunk_size(self, line: bytes) -> bytes:
        """Take the extensions off the line; one with a bare line end is left as it is, for Tornado to refuse."""
        size = line
        if b";" in line and b"\n" not in line[:-2] and b"\r" not in line[:-2]:
            size = line.partition(b";")[0].rstrip(b" \t") + b"\r\n"
        self._at_trailers = not size.strip(b"0\r\n") and size.startswith(b"0")
        return size

    def read_bytes(self, num_bytes: int, partial: bool = False) -> Awaitable[bytes]:
        if self._at_trailers:
            self._at_trailers = False
            return self._trailers()
        return super().read_bytes(num_bytes, partial)

    async def _trailers(self) -> bytes:
        left = TRAILERS
        while True:
            line = await super().read_until(b"\r\n", left)
            left -= len(line)
            if line == b"\r\n":
                return line
            if left < 2 or b":" not in line:
                return b""  # Tornado refuses it

    # writing

    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        if data == REFUSED_BY_TORNADO:
            return self._refuse(400)
        self._is_answered = self._is_answered or data[:12] != b"HTTP/1.1 100"
        return self._write(data)

    def _write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        future = super().write(data)
        if self.writing():
            self._server.is_unread(self)
        return future

    def write_to_fd(self, data: memoryview) -> int:
        count = super().write_to_fd(data)
        self.sent += count
        return count

    def _refuse(self, status: int) -> asyncio.Future[None]:
        """Answer what cannot be read; nothing, where the request has got its answer already."""
        self._is_refused = True
        if self._is_answered:
            return super().write(b"")
        self._is_answered = True
        detail, request_id = _reason(status), uuid.uuid4().hex
        self._server.refused(status, detail, self.address, request_id)
        return self._write(_refusal(status, detail, request_id, self._server.safe_headers))

    # closing

    def close(self, exc_info: Any = False) -> None:
        if isinstance(exc_info, UnsatisfiableReadError) and not self.closed() and not self._is_refused:
            self._refuse(400 if self.reads_body else 431 if self._has_line else 414)
        super().close(exc_info)

    def close_fd(self) -> None:
        self._server.is_closed(self)
        if self._is_refused:
            # Closed with bytes unread, it would be reset, and the answer with it (RFC 9112, 9.6).
            self._server.linger(self.socket)
            self.socket = cast("socket.socket", None)
        else:
            super().close_fd()


def _reason(status: int) -> str:
    if status == 414:
        return f"The request line is too long: a head may have {HEAD // 1024} KB."
    if status == 431:
        return f"The head of the request is over {HEAD // 1024} KB."
    error = sys.exc_info()[1]
    why = str(error)[:200] if isinstance(error, HTTPInputError) else "a chunk cannot be read"
    return f"The request is not proper HTTP/1.1: {why}."


def _refusal(status: int, detail: str, request_id: str, headers: Mapping[str, str]) -> bytes:
    """Return an answer, with its head, for a request that no handler will see."""
    body = orjson.dumps({**problem_of(None, status), "detail": detail, "request_id": request_id})
    lines = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
        f"Date: {formatdate(usegmt=True)}",
        "Content-Type: application/problem+json",
        f"Content-Length: {len(body)}",
        f"X-Request-ID: {request_id}",
        *(f"{name}: {value}" for name, value in headers.items()),
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode() + body
