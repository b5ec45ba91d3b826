"""One response from bytes: what is read, what is refused, and when the connection may be used again."""

from __future__ import annotations

import pytest

from notifier.delivery.lenient import Unreadable
from notifier.delivery.reader import BODY_LIMIT, HEAD_LIMIT, Reader

BY_THE_BOOK = {
    "a length": b"HTTP/1.1 200 OK\r\nX-A: b\r\nX-Empty:\r\nContent-Length: 2\r\n\r\n{}",
    "chunks": b"HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n1\r\n}\r\n0\r\nX-A: c\r\n\r\n",
    "after informational heads": b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 103 E\r\nX-A: c\r\n\r\n"
    b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 2\r\n\r\n{}",
}
ODD = {
    "a blank before a colon": b"HTTP/1.1 200 OK\r\nX-A : b\r\nContent-Length: 2\r\n\r\n{}",
    "a control character": b"HTTP/1.1 200 OK\r\nX-A:\x01b\r\nContent-Length: 2\r\n\r\n{}",
    "equal lengths": b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 2, 2\r\nContent-Length: 2\r\n\r\n{}",
    "a length beside chunks": b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 9\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2\r\n{}\r\n0\r\n\r\n",
    "blanks after a chunk's size": b"HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"2  \r\n{}\r\n0  \r\n\r\n",
    "bare line feeds": b"HTTP/1.1 100 C\n\nHTTP/1.1 200 OK\nX-A: b\nContent-Length: 2\n\n{}",
    "empty lines before it": b"\r\n\nHTTP/1.1 200 OK\nX-A: b\nContent-Length: 2\n\n{}",
}
UNTIL_ITS_END = {
    "no length": b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\n{}",
    "another coding": b"HTTP/1.1 200 OK\r\nX-A: b\r\nTransfer-Encoding: identity\r\n\r\n{}",
    "an odd head": b"HTTP/1.1 200 OK\r\nX-A: b\r\nContent-Length: 9\r\nTransfer-Encoding: gzip\r\nodd\r\n\r\n{}",
}


def read(data: bytes, step: int = 1_000_000) -> tuple[Reader, int]:
    """Feed it in steps until it is whole; the reader, and how many bytes it did not want."""
    reader = Reader()
    for begin in range(0, len(data), step):
        if reader.feed(data[begin : begin + step]):
            return reader, max(0, len(data) - begin - step)
    assert reader.feed_eof()
    return reader, 0


@pytest.mark.parametrize("step", [1, 2, 7, 1_000])
@pytest.mark.parametrize("name", [*BY_THE_BOOK, *ODD, *UNTIL_ITS_END])
def test_it_is_the_same_in_whatever_pieces_it_comes(name: str, step: int) -> None:
    reader, left = read({**BY_THE_BOOK, **ODD, **UNTIL_ITS_END}[name], step)
    assert (reader.status, reader.headers.getall("x-a"), reader.body, left) == (200, ["b"], b"{}", 0)
    assert reader.reusable is (name in BY_THE_BOOK)


@pytest.mark.parametrize("end", [b"\r\n", b" \r\nX-A : b\r\n"], ids=["by the book", "odd"])
@pytest.mark.parametrize("step", [1_000, 1_000_000])
def test_a_head_may_have_so_many_bytes_and_no_more(end: bytes, step: int) -> None:
    rest = b"\r\nContent-Length: 2" + end + b"\r\n"
    head = b"HTTP/1.1 200 OK\r\nX-Long: "
    most = head + b"x" * (HEAD_LIMIT - len(head) - len(rest)) + rest
    assert read(most + b"{}", step)[0].body == b"{}"
    with pytest.raises(Unreadable, match="a head of more than 32768 bytes"):
        read(most.replace(b"x", b"xx", 1) + b"{}", step)


@pytest.mark.parametrize("head", [b"HTTP/1.1 100 C\r\n\r\n", b"HTTP/1.1 100 C\r\nX-A : b\r\n\r\n"])
def test_heads_before_the_answer_are_bounded_together(head: bytes) -> None:
    """A gateway that says "continue" for ever must not keep the loop."""
    with pytest.raises(Unreadable, match="a head of more than"):
        read(head * 5_000 + BY_THE_BOOK["a length"])


def test_what_frames_the_body_is_bounded_too() -> None:
    begin = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1"
    reader, left = read(begin + b";x" * BODY_LIMIT, 1_000)
    assert reader.body is None
    assert left > BODY_LIMIT // 2


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_a_status_without_a_body_needs_no_length_that_means_something(status: bytes) -> None:
    reader, _ = read(b"HTTP/1.1 " + status + b"\r\nContent-Length: ten\r\n\r\n")
    assert (reader.status, reader.body) == (int(status[:3]), b"")


@pytest.mark.parametrize("status", [b"000", b"099", b"000 X", b"1", b"20", b"2000", b"abc"])
def test_a_status_under_100_or_of_other_than_three_digits_is_none(status: bytes) -> None:
    with pytest.raises(Unreadable, match="is no status line"):
        read(b"HTTP/1.1 " + status + b"\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no HTTP response begins with 'SSH-2.0-OpenSSH_9.2"),
        (b"HTTP/1.1 100 C\r\n\r\n{}", "no HTTP response begins with '{}'"),
        (b"HTTP/1.1 101 S\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n", "a switch of protocols"),
        (b"HTTP/1.1 101 S\r\n\r\n", "a switch of protocols"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}", "Content-Length: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: \x012\r\n\r\n{}", "Content-Length: "),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -2\r\n\r\n{}", "Content-Length: '-2'"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "chunk size"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, words: str) -> None:
    with pytest.raises(Unreadable, match=words):
        read(data)


@pytest.mark.parametrize("follows", [b"H", b"HTTP/1.1 200 OK\r\n\r\n", b"{}", b"\x00"])
def test_a_connection_on_which_more_came_is_not_used_again(follows: bytes) -> None:
    reader, _ = read(BY_THE_BOOK["a length"] + follows)
    assert (reader.body, reader.reusable) == (b"{}", False)
