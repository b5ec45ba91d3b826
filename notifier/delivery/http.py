"""One HTTP/1.1 connection with a gateway, one request at a time.

aiohttp opens the connection (names, addresses, TLS) and parses what comes back. What lies between, its session, is
not used: it takes four times as much of the processor as all of this (decision 0010).
"""

from __future__ import annotations

import asyncio
import select
from typing import NamedTuple

import aiohttp
from aiohttp.http import HttpResponseParser, RawResponseMessage
from multidict import MultiMapping

from notifier.delivery.lenient import HEAD_LIMIT, LenientParser, Unreadable

BODY_LIMIT = 64 * 1024  # bytes as they come; an answer is some dozen
REST_TIMEOUT = 1.0  # seconds; what another status than 200 means is known by it, so its words are not waited for long


class Response(NamedTuple):
    """A status, headers (of any case), and the body as it came; None if it was too large or, but for a 200, broken."""

    status: int
    headers: MultiMapping[str]
    body: bytes | None


class Wire(asyncio.Protocol):
    """A connection that aiohttp has opened and that is ours from here on."""

    def __init__(self, connection: aiohttp.connector.Connection) -> None:
        assert connection.protocol is not None
        assert connection.transport is not None
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._opener = connection.protocol
        self._transport = connection.transport
        self._parser: HttpResponseParser | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self._head: RawResponseMessage | None = None
        self._body: aiohttp.StreamReader | None = None
        self._received: list[bytes] | None = None
        self._size = 0  # of what was received
        self._lenient: LenientParser | None = None  # reads the answer since the parser refused it
        self._too_large = False
        self.ended_at: float | None = None  # the loop's time when the other side closed it while it was idle
        self._kept_alive = False  # and nothing is left of the last answer
        self._transport.set_protocol(self)

    @property
    def reusable(self) -> bool:
        """Whether another request may follow."""
        return self._kept_alive and not self._transport.is_closing()

    def is_quiet(self) -> bool:
        """Whether nothing has come that the loop did not see yet, such as the other side's end: a system call."""
        poll = select.poll()
        poll.register(self._transport.get_extra_info("socket").fileno(), select.POLLIN)
        return not poll.poll(0)

    async def request(self, data: bytes, deadline: float) -> Response:
        """Send a whole request and return its response; ``deadline`` as the loop's time.

        Whatever is raised, the connection is closed: TimeoutError, aiohttp.ClientError (broken off), Unreadable (not
        HTTP), OSError, CancelledError.
        """
        self._kept_alive = False
        # A new one each time: it keeps trailers for the headers of its next answer.
        self._parser = HttpResponseParser(
            self,  # type: ignore[arg-type]  # of a protocol it needs no more than is here
            self._loop,
            BODY_LIMIT // 2,  # at twice of which it calls `pause_reading`
            payload_exception=aiohttp.ClientPayloadError,
            read_until_eof=True,
            auto_decompress=False,
        )
        self._received, self._size = [], 0
        self._waiter = self._loop.create_future()
        timer = self._loop.call_at(deadline, self._give_up)
        try:
            self._transport.write(data)
            response: Response = await self._waiter
            return response
        except BaseException:
            self.close()
            raise
        finally:
            timer.cancel()
            # They refer to this object or frame: kept, the cycle and all it holds would wait for the garbage collector.
            self._waiter = self._parser = self._head = self._body = self._received = self._lenient = None

    def close(self) -> None:
        """Close the connection at once."""
        self._kept_alive = False
        self._transport.abort()
        self._connection.close()

    # ---- called by the parser ------------------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """The body is larger than the limit."""
        self._too_large = True

    def resume_reading(self, resume_parser: bool = True) -> None:
        """Some of the body was read; it never pauses for that."""

    # ---- called by the loop --------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """Parse what came; what nobody asked for closes the connection."""
        if self._waiter is None or self._waiter.done() or self._parser is None:
            self.close()
            return
        if self._lenient is not None:
            self._read_leniently(self._lenient, data)
            return
        assert self._received is not None
        self._received.append(data)
        self._size += len(data)
        try:
            messages, _, _ = self._parser.feed_data(data)
        except Exception:  # not HTTP, or not by the book
            self._head = self._body = None
            self._lenient = LenientParser(BODY_LIMIT)
            self._read_leniently(self._lenient, b"".join(self._received))
            return
        unasked = False
        for head, body in messages:
            if self._head is not None:
                unasked = True
            elif not 100 <= head.code < 200 or head.code == 101:
                self._head, self._body = head, body
                if head.code != 200 and not body.is_eof():
                    self._loop.call_later(REST_TIMEOUT, self._enough, self._waiter)
        if self._too_large:
            self._finish(None)
        elif self._head is None and self._size > HEAD_LIMIT:
            self._fail(Unreadable(f"a head of more than {HEAD_LIMIT} bytes"))
        elif self._head is not None and self._body is not None and self._body.is_eof():
            spent = self._head.should_close or self._head.code == 101
            self._kept_alive = not (spent or unasked or _has_begun_another(self._parser))
            self._finish(self._body.read_nowait())

    def eof_received(self) -> None:
        """Nothing more comes: have the connection closed."""
        self._note_end()
        self._kept_alive = False

    def connection_lost(self, error: Exception | None) -> None:
        """Whatever is missing will not come; a body without a length ends here."""
        self._note_end()
        self._kept_alive = False
        self._connection.close()
        self._opener.connection_lost(error)
        if self._waiter is None or self._waiter.done() or self._parser is None:
            return
        if self._lenient is not None:
            if error is None and self._lenient.feed_eof():
                self._finish(self._lenient.body)
            else:
                self._fail(error or aiohttp.ServerDisconnectedError())
            return
        try:
            self._parser.feed_eof()
        except Exception as broken:
            error = error or aiohttp.ClientPayloadError(str(broken))
        if error is None and self._body is not None and self._body.is_eof():
            self._finish(self._body.read_nowait())
        else:
            self._fail(error or aiohttp.ServerDisconnectedError())

    # --------------------------------------------------------------------------------------------------------------

    def _note_end(self) -> None:
        if self._kept_alive and self.ended_at is None:
            self.ended_at = self._loop.time()

    def _read_leniently(self, parser: LenientParser, data: bytes) -> None:
        """The parser has given up on this answer: read it as others would, and close the connection after it."""
        known = parser.status
        try:
            if parser.feed(data):
                self._finish(parser.body)
            elif not known and self._status not in (0, 200):
                self._loop.call_later(REST_TIMEOUT, self._enough, self._waiter)
        except Unreadable as error:
            self._fail(error)

    @property
    def _status(self) -> int:
        """The status of the answer; 0 until its head is read."""
        if self._lenient is not None:
            return self._lenient.status
        return 0 if self._head is None else self._head.code

    def _finish(self, body: bytes | None) -> None:
        if self._waiter is not None and not self._waiter.done():
            head = self._lenient or self._head
            assert head is not None
            self._waiter.set_result(Response(self._status, head.headers, body))
        if not self._kept_alive:
            self.close()

    def _fail(self, error: Exception) -> None:
        """Once another status than 200 is known, no error changes it."""
        if self._status not in (0, 200):
            self._finish(None)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self.close()

    def _give_up(self) -> None:
        self._fail(TimeoutError("no answer in time"))

    def _enough(self, waiter: asyncio.Future[Response] | None) -> None:
        if waiter is self._waiter is not None:
            self._finish(None)


def _has_begun_another(parser: HttpResponseParser) -> bool:
    """Whether bytes of a second head follow the answer; between two messages the end of all is no event."""
    try:
        return parser.feed_eof() is not None
    except Exception:
        return True
