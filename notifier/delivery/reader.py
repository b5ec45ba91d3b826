"""One HTTP/1.1 response, read from bytes as they come (decision 0021)."""

from __future__ import annotations

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from multidict import CIMultiDict, MultiMapping

from notifier.delivery.lenient import Unreadable, take_head

HEAD_LIMIT = 32 * 1024  # bytes of status line and headers, together with the informational heads (1xx) before it
BODY_LIMIT = 64 * 1024  # bytes as they come; an answer is some dozen
_NONE: MultiMapping[str] = CIMultiDict()


class Reader:
    """Reads one response by the book; what that refuses is read once more from its first byte, as others read it.

    `feed` and `feed_eof` return whether there is nothing more to wait for. `close` it, or it stays until the garbage
    collector finds it: it and its parser refer to each other.
    """

    def __init__(self) -> None:
        self.status = 0  # until the head is read
        self.headers: MultiMapping[str] = _NONE
        self.reusable = False  # so is the connection: the response is whole and by the book, and nothing follows it
        self._fields: list[tuple[str, str]] = []
        self._parts: list[bytes] = []
        self._until_head, self._after_head = 0, 0  # bytes received until the head was read, and later
        self._body_size = 0
        self._whole = False
        self._lenient = False
        self._received = bytearray()  # from the first byte on; read leniently, what the parser has not been given
        self._parser: HttpResponseParser | None = HttpResponseParser(self)

    @property
    def body(self) -> bytes | None:
        """The body as it came; None if it is too large or not whole."""
        return b"".join(self._parts) if self._whole and self._body_size <= BODY_LIMIT else None

    def feed(self, data: bytes) -> bool:
        """Take bytes in. Raises Unreadable."""
        if self.status:
            self._after_head += len(data)
        else:
            room = HEAD_LIMIT - self._until_head
            self._until_head += len(data)
            if self._until_head > HEAD_LIMIT:
                if not self._read(data[:room]):
                    raise Unreadable(f"a head of more than {HEAD_LIMIT} bytes")
                data = data[room:]
        self._read(data)
        # what frames the chunks counts too: it may be without end
        return self._whole or max(self._body_size, self._after_head) > BODY_LIMIT

    def feed_eof(self) -> bool:
        """The connection was closed: True where that is how the response ends."""
        if self.status and not self._whole and "Content-Length" not in self.headers:
            codings = ",".join(self.headers.getall("Transfer-Encoding", ()))
            self._whole = codings.rpartition(",")[2].strip().lower() != "chunked"
        return self._whole

    def close(self) -> None:
        """Let go of the parser; what was read stays."""
        self._parser = None

    def _read(self, data: bytes) -> bool:
        """Return whether the head is known."""
        self._received += data
        try:
            if self._lenient and not self.status:
                self._read_leniently()
            elif self._parser is not None:
                self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self.reusable = False
            if self._whole:  # it is about what follows
                return True
            if self._lenient:
                raise Unreadable(str(error)) from error
            self._lenient = True
            self.status, self._body_size = 0, 0
            self._parts.clear()
            return self._read(b"")
        return self.status > 0

    def _read_leniently(self) -> None:
        head = take_head(self._received)
        if head is None:
            return
        self._fields.clear()
        self._parser = HttpResponseParser(self)
        self._parser.set_dangerous_leniencies(lenient_spaces_after_chunk_size=True)
        self._parser.feed_data(head + self._received)

    # ---- called by the parser ------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """The first byte of a head: of this response, or of one that follows it."""
        if self._whole:
            raise Unreadable("a second response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header, or a trailer: those mean nothing to us."""
        if not self.status:
            self._fields.append((name.decode("latin-1"), value.decode("latin-1")))

    def on_headers_complete(self) -> None:
        """The end of a head."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 100 or status == 101:
            raise Unreadable("no status of an answer")
        if status >= 200:
            self.headers = CIMultiDict(self._fields)
            self.status = status
        self._fields.clear()

    def on_body(self, part: bytes) -> None:
        """Some of the body."""
        self._parts.append(part)
        self._body_size += len(part)

    def on_message_complete(self) -> None:
        """The end of a response, or of an informational head."""
        assert self._parser is not None
        if self.status:
            self._whole = True
            self.reusable = not self._lenient and self._parser.should_keep_alive()
