"""The parser of answers that the strict one refuses: what bounds it."""

from __future__ import annotations

import pytest

from notifier.delivery.lenient import LenientParser, Unreadable


def test_heads_before_the_answer_are_bounded_together() -> None:
    """A gateway that says "continue" for ever must not keep the loop."""
    parser = LenientParser(1024)
    with pytest.raises(Unreadable, match="a head of more than"):
        parser.feed(b"HTTP/1.1 100 C\r\n\r\n" * 5_000)


def test_a_few_of_them_are_passed_over() -> None:
    parser = LenientParser(1024)
    assert parser.feed(b"HTTP/1.1 100 C\r\n\r\n" * 3 + b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}")
    assert (parser.status, parser.body) == (200, b"{}")


def test_a_status_under_100_is_none() -> None:
    with pytest.raises(Unreadable, match="is no status line"):
        LenientParser(1024).feed(b"HTTP/1.1 000 X\r\n\r\nHTTP/1.1 200 OK\r\n\r\n")
