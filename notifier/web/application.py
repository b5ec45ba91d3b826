"""The application: which handler answers, and which large bodies are read before it does."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, cast

import tornado.web
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerRequest,
    RequestStartLine,
    ResponseStartLine,
)

from notifier.web.base import LARGEST_BODY, SMALL_BODY, Base
from notifier.web.context import Context
from notifier.web.problems import TooLarge

DROPPED_MAX = 8 * LARGEST_BODY
"""Bytes of a refused body that are read and dropped; from there on the connection is closed instead."""


class Application(tornado.web.Application):
    """Tornado's application, which reads a large body only once its head is found good."""

    def find_handler(self, request: HTTPServerRequest, **kwargs: Any) -> Any:
        """Return what answers; within, no path has the public prefix."""
        context: Context = self.settings["context"]
        if context.public.prefix and request.uri is not None:
            request.uri = context.public.inside(request.uri)
            request.path = request.uri.partition("?")[0]
        return super().find_handler(request, **kwargs)

    def get_handler_delegate(  # type: ignore[override]
        self,
        request: HTTPServerRequest,
        target_class: type[Base],
        target_kwargs: dict[str, Any] | None = None,
        path_args: list[bytes] | None = None,
        path_kwargs: dict[str, bytes] | None = None,
    ) -> HTTPMessageDelegate:
        given = {**(target_kwargs or {}), "refused": None}
        inner = super().get_handler_delegate(request, target_class, given, path_args, path_kwargs)
        return _Guard(inner, request, partial(target_class, self, request), given)

    def log_request(self, handler: tornado.web.RequestHandler) -> None:
        """Log an answer that is given; who has shown a token may take the time that its answer needs to be read."""
        if cast("Base", handler).caller is not None:
            cast("Any", handler.request.connection).stream.is_known = True
        super().log_request(handler)


class _Guard(HTTPMessageDelegate):
    """Has a large body's head looked at first; a body that is refused is answered at once, read and dropped.

    Were the connection closed on it instead, the answer would be torn away with it (RFC 9112, 9.6).
    """

    def __init__(
        self,
        inner: HTTPMessageDelegate,
        request: HTTPServerRequest,
        handler: Callable[..., Base],
        given: dict[str, Any],
    ) -> None:
        self.inner, self.request, self.handler, self.given = inner, request, handler, given
        self.most = self.room = SMALL_BODY
        self.lingering: _Lingering | None = None

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        self.inner.headers_received(start_line, headers)
        length = headers.get("Content-Length", "")
        # What is no number Tornado refuses itself.
        known = int(length) if re.fullmatch("[0-9]{1,18}", length) else None
        if "Transfer-Encoding" in headers or (length and known is None) or (known or 0) > SMALL_BODY:
            return self._admit(known, headers)
        return None

    async def _admit(self, length: int | None, headers: HTTPHeaders) -> None:
        try:
            self.most = self.room = await self.handler(**self.given).admit(length)
            if self.most > SMALL_BODY:  # a token suffices for it
                cast("Any", self.request.connection).stream.admitted()
        except Exception as error:  # the handler proper tells it
            self._refuse(error)
            if headers.pop("Expect", "").lower() == "100-continue":
                self._read()  # there need not come a body, and a next request must not be taken for one

    def _refuse(self, error: Exception) -> None:
        self.given["refused"] = error
        self.room = DROPPED_MAX
        self.lingering = _Lingering(self.request.connection)
        self.request.connection = cast("HTTPConnection", self.lingering)
        if "Transfer-Encoding" in self.request.headers:
            self.lingering.is_last = True
            self.lingering.stream.drop(DROPPED_MAX)
        self.request.headers.pop("Content-Type", None)  # nobody is to parse what there is of the body
        self.inner.finish()

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        self.room -= len(chunk)
        if self.lingering is None:
            if self.room >= 0:
                return self.inner.data_received(chunk)
            self._refuse(TooLarge(self.most))
        elif self.room < 0:
            self._read()
        return None

    def finish(self) -> None:
        if self.lingering is None:
            self.inner.finish()
        else:
            self._read()

    def _read(self) -> None:
        assert self.lingering is not None
        self.lingering.read()

    def on_connection_close(self) -> None:
        self.inner.on_connection_close()


class _Lingering:
    """A connection on which an answer is finished only when the request is read, too: Tornado would close it.

    ``is_last``: nobody looks for the request's end, and the client is told to close.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.is_last = False
        self.is_answered = self.is_read = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def write_headers(
        self, start_line: ResponseStartLine, headers: HTTPHeaders, chunk: bytes | None = None
    ) -> asyncio.Future[None]:
        if self.is_last:
            headers["Connection"] = "close"
        return cast("asyncio.Future[None]", self.inner.write_headers(start_line, headers, chunk))

    def finish(self) -> None:
        self.is_answered = True
        if self.is_read:
            self.inner.finish()

    def read(self) -> None:
        if self.is_answered and not self.is_read:
            self.inner.finish()
        self.is_read = True
