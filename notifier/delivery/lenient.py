"""One HTTP/1.1 response as browsers and curl read it, for what the strict parser refuses (docs/delivery.md).

It is slower than the parser of `http.py`, and is fed only when that one gave up. The connection is closed afterwards,
so bytes that are read in another way than the sender meant cannot become part of another answer.
"""

from __future__ import annotations

import re

from multidict import CIMultiDict

HEAD_LIMIT = 32 * 1024  # bytes of status line and headers

_BEGINS = b"HTTP/1."
_STATUS = re.compile(rb"HTTP/1\.[01] +([1-9]\d{2})(?: .*)?", re.DOTALL)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEAD_END = re.compile(rb"\r?\n\r?\n")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,8}")


class Unreadable(Exception):
    """The bytes are no HTTP response; the words say why."""


class LenientParser:
    """Reads one response from bytes as they come; `feed` and `feed_eof` say whether it is whole.

    Tolerated: blanks around a header's name, lines in the head that are no headers, folded lines, equal lengths,
    a length beside chunks (RFC 9112, 6.3: the chunks count), bare line feeds, and whatever follows the response.
    """

    def __init__(self, body_limit: int) -> None:
        self.status = 0  # until the head is read
        self.headers: CIMultiDict[str] = CIMultiDict()
        self.body: bytes | None = b""
        self._limit = body_limit
        self._buffer = bytearray()
        self._searched = 0
        self._before = 0  # bytes of the heads that came before the answer's (1xx)
        self._length: int | None = None  # None: until the connection is closed
        self._chunked = False
        self._chunk = 0  # bytes that the present chunk still lacks, with its line end
        self._unpacked = bytearray()

    def feed(self, data: bytes) -> bool:
        """Take bytes in; True when the response is whole. Raises Unreadable."""
        self._buffer += data
        while not self.status:
            if not self._read_head():
                return False
        return self._read_chunks() if self._chunked else self._read_body()

    def feed_eof(self) -> bool:
        """The connection was closed: True where that is how the response ends."""
        if self.status and not self._chunked and self._length is None:
            self.body = bytes(self._buffer)
            return True
        return False

    def _read_head(self) -> bool:
        found = _HEAD_END.search(self._buffer, max(0, self._searched - 3))
        self._searched = len(self._buffer)
        if self._before + (found.start() if found else self._searched) > HEAD_LIMIT:
            raise Unreadable(f"a head of more than {HEAD_LIMIT} bytes")
        begins = bytes(self._buffer[:64]).lstrip(b"\r\n")[: len(_BEGINS)]
        if not _BEGINS.startswith(begins):
            raise Unreadable(f"no HTTP response begins with {bytes(self._buffer[:60]).decode('latin-1')!r}")
        if found is None:
            return False
        first, *lines = bytes(self._buffer[: found.start()]).lstrip().split(b"\n")
        self._before += found.end()
        del self._buffer[: found.end()]
        self._searched = 0
        matched = _STATUS.fullmatch(first)
        if matched is None:
            raise Unreadable(f"{first[:60].decode('latin-1')!r} is no status line")
        status = int(matched[1])
        if status == 101:
            raise Unreadable("a switch of protocols that was not asked for")
        if 100 <= status < 200:
            return True  # the answer follows
        self.headers = _headers(lines)
        self._frame(status)
        self.status = status
        return True

    def _frame(self, status: int) -> None:
        codings = ",".join(self.headers.getall("Transfer-Encoding", ())).lower()
        if status in (204, 304):
            self._length = 0
        elif codings:
            self._chunked = codings.rpartition(",")[2].strip() == "chunked"
        elif lengths := {
            each.strip() for value in self.headers.getall("Content-Length", ()) for each in value.split(",")
        }:
            length = lengths.pop()
            if lengths or not (length.isascii() and length.isdecimal() and len(length) < 16):
                raise Unreadable(f"Content-Length: {', '.join([length, *lengths])[:60]!r}")
            self._length = int(length)

    def _read_body(self) -> bool:
        if (len(self._buffer) if self._length is None else self._length) > self._limit:
            self.body = None
            return True
        if self._length is None or len(self._buffer) < self._length:
            return False
        self.body = bytes(self._buffer[: self._length])
        return True

    def _read_chunks(self) -> bool:
        position = 0
        while True:
            if self._chunk > 2:
                piece = self._buffer[position : position + self._chunk - 2]
                self._unpacked += piece
                self._chunk -= len(piece)
                position += len(piece)
                if len(self._unpacked) > self._limit:
                    self.body = None
                    return True
            if self._chunk > 2:
                break
            if self._chunk and bytes(self._buffer[position : position + 1]) not in (b"", b"\r", b"\n"):
                raise Unreadable("a chunk that is longer than it says")
            line_end = self._buffer.find(b"\n", position)
            if line_end < 0:
                break
            line = bytes(self._buffer[position:line_end]).rstrip(b"\r")
            position = line_end + 1
            if self._chunk:  # that was its line end
                self._chunk = 0
                continue
            size = line.partition(b";")[0].strip()
            if not _CHUNK_SIZE.fullmatch(size):
                raise Unreadable(f"{line[:60].decode('latin-1')!r} is no size of a chunk")
            if not int(size, 16):  # trailers mean nothing to us
                self.body = bytes(self._unpacked)
                return True
            self._chunk = int(size, 16) + 2
        del self._buffer[:position]
        if len(self._buffer) > self._limit:
            raise Unreadable("a chunk's size without an end")
        return False


def _headers(lines: list[bytes]) -> CIMultiDict[str]:
    headers: CIMultiDict[str] = CIMultiDict()
    last: str | None = None
    for line in lines:
        if line[:1] in (b" ", b"\t") and last is not None:
            values = headers.popall(last)
            for value in (*values[:-1], f"{values[-1]} {line.strip().decode('latin-1')}"):
                headers.add(last, value)
            continue
        name, colon, rest = line.partition(b":")
        last = name.strip().decode("latin-1") if colon and _TOKEN.fullmatch(name.strip()) else None
        if last is not None:
            headers.add(last, rest.strip().decode("latin-1"))
    return headers
