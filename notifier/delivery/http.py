"""One HTTP/1.1 connection with a gateway, one request at a time.

It is a protocol of asyncio's and no session: a session takes four times as much of the processor (decision 0021).
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from typing import NamedTuple, cast

from multidict import MultiMapping

from notifier.delivery.lenient import Unreadable
from notifier.delivery.reader import Reader

REST_TIMEOUT = 1.0  # seconds; a status from 300 on refuses by itself, so its body is not waited for longer


class Response(NamedTuple):
    """A status, headers (of any case), and the body as it came; None if it was too large or, from 300 on, not whole."""

    status: int
    headers: MultiMapping[str]
    body: bytes | None


class Wire(asyncio.Protocol):
    """A connection; ``on_lost`` is called once when it is gone."""

    def __init__(self, on_lost: Callable[[Wire], object]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._reader: Reader | None = None
        self._waiter: asyncio.Future[Response] | None = None
        self.ended_at: float | None = None  # the loop's time when the other side closed it while it was idle
        self._kept_alive = False  # and nothing is left of the last answer

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

        Whatever is raised, the connection is closed: TimeoutError, OSError (broken off), Unreadable (not HTTP),
        CancelledError.
        """
        if self._transport.is_closing():
            raise ConnectionResetError("closed before the request")
        self._kept_alive = False
        self._reader = reader = Reader()
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
            # They refer to this frame: kept, the cycle and all it holds would wait for the garbage collector.
            self._waiter = self._reader = None
            reader.close()

    def close(self) -> None:
        """Close the connection at once."""
        self._kept_alive = False
        self._transport.abort()

    # ---- called by the loop --------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there, TLS and all."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's own are no instances of it

    def data_received(self, data: bytes) -> None:
        """Read what came; what nobody asked for closes the connection."""
        reader = self._reader
        if self._waiter is None or self._waiter.done() or reader is None:
            self.close()
            return
        knew = reader.status
        try:
            done = reader.feed(data)
        except Unreadable as error:
            self._fail(error)
            return
        if done:
            self._kept_alive = reader.reusable
            self._finish(reader)
        elif not knew and reader.status >= 300:
            self._loop.call_later(REST_TIMEOUT, self._enough, self._waiter)

    def eof_received(self) -> None:
        """Nothing more comes: have the connection closed."""
        self._note_end()
        self._kept_alive = False

    def connection_lost(self, error: Exception | None) -> None:
        """Whatever is missing will not come; a body without a length ends here."""
        self._note_end()
        self._kept_alive = False
        self._on_lost(self)
        if self._reader is None:
            return
        if error is None and self._reader.feed_eof():
            self._finish(self._reader)
        else:
            self._fail(error or ConnectionResetError("closed before the answer was whole"))

    # --------------------------------------------------------------------------------------------------------------

    def _note_end(self) -> None:
        if self._kept_alive and self.ended_at is None:
            self.ended_at = self._loop.time()

    def _finish(self, reader: Reader) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(Response(reader.status, reader.headers, reader.body))
        if not self._kept_alive:
            self.close()

    def _fail(self, error: Exception) -> None:
        """Once a status from 300 on is known, no error changes it."""
        if self._reader is not None and self._reader.status >= 300:
            self._finish(self._reader)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(error)
        self.close()

    def _give_up(self) -> None:
        self._fail(TimeoutError("no answer in time"))

    def _enough(self, waiter: asyncio.Future[Response] | None) -> None:
        if waiter is self._waiter is not None and self._reader is not None:
            self._finish(self._reader)
