"""The head of an HTTP/1.1 response as browsers and curl read it, put into the form that the parser takes.

Used only for an answer that the parser refused (docs/delivery.md). Its connection is closed afterwards, so bytes that
are read in another way than the sender meant cannot become part of another answer.
"""

from __future__ import annotations

import re

_BEGINS = b"HTTP/1."
_STATUS = re.compile(rb"HTTP/1\.[01] +([1-9]\d{2})(?: .*)?", re.DOTALL)
_TOKEN = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEAD_END = re.compile(rb"\n\r?\n")
_CONTROLS = bytes.maketrans(bytes([*range(32), 127]), b" " * 33)  # no part of a header's value


class Unreadable(Exception):
    """The bytes are no HTTP response; the words say why."""


def take_head(received: bytearray) -> bytes | None:
    """Remove the heads at the front of what was received, and return the answer's own by the book.

    None while that is incomplete; informational ones (1xx) before it are passed over. Tolerated: blanks around a
    header's name, lines that are no headers, folded lines, equal lengths, a length beside chunks (RFC 9112, 6.3: the
    chunks count), bare line feeds, control characters. Raises Unreadable.
    """
    while True:
        begins = bytes(received[:64]).lstrip(b"\r\n")[: len(_BEGINS)]
        if not _BEGINS.startswith(begins):
            raise Unreadable(f"no HTTP response begins with {bytes(received[:60]).decode('latin-1')!r}")
        found = _HEAD_END.search(received, len(received) - len(received.lstrip(b"\r\n")))
        if found is None:
            return None
        first, *lines = bytes(received[: found.start()]).strip(b"\r\n").split(b"\n")
        del received[: found.end()]
        matched = _STATUS.fullmatch(first)
        if matched is None:
            raise Unreadable(f"{first[:60].decode('latin-1')!r} is no status line")
        if matched[1] == b"101":
            raise Unreadable("a switch of protocols that was not asked for")
        if not matched[1].startswith(b"1"):
            headers = _headers(lines)
            framing = b"" if matched[1] in (b"204", b"304") else _framing(headers)
            others = [
                b"%b: %b\r\n" % (name, value.translate(_CONTROLS))
                for name, value in headers
                if name.lower() not in (b"content-length", b"transfer-encoding")
            ]
            return b"HTTP/1.1 %b \r\n%b%b\r\n" % (matched[1], framing, b"".join(others))


def _headers(lines: list[bytes]) -> list[tuple[bytes, bytes]]:
    headers: list[tuple[bytes, bytes]] = []
    follows = False  # the line before was of a header
    for line in lines:
        name, colon, value = line.partition(b":")
        if follows and line[:1] in (b" ", b"\t"):
            last, before = headers[-1]
            headers[-1] = last, before + b" " + line.strip()
        elif follows := bool(colon and _TOKEN.fullmatch(name.strip())):
            headers.append((name.strip(), value.strip()))
    return headers


def _framing(headers: list[tuple[bytes, bytes]]) -> bytes:
    """The one header that says how long the body is; none where it ends with the connection."""
    codings = b",".join(value for name, value in headers if name.lower() == b"transfer-encoding").lower()
    if codings:
        return b"Transfer-Encoding: chunked\r\n" if codings.rpartition(b",")[2].strip() == b"chunked" else b""
    lengths = {
        part.strip() for name, value in headers if name.lower() == b"content-length" for part in value.split(b",")
    }
    if not lengths:
        return b""
    length = lengths.pop()
    if lengths or not (length.isdigit() and len(length) < 16):
        raise Unreadable(f"Content-Length: {b', '.join([length, *lengths])[:60].decode('latin-1')!r}")
    return b"Content-Length: %b\r\n" % length
