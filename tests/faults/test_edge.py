"""An outsider who wants the service to stop, at a small size; `make chaos ONLY=17` is the whole of it."""

from __future__ import annotations

from chaos import edge
from tests.faults.conftest import skipped_where_lacking


def test_a_siege_tears_no_answer_and_loses_no_message() -> None:
    with skipped_where_lacking():
        # How fast it is is judged by the long run: here others may want the same cores.
        figures = edge.siege(6, rate=200, p99=60.0, share=0.0, log_bytes=5_000_000)
        assert figures.breaches == []
        assert figures.sent == figures.messages
        assert figures.lost == figures.doubled == 0
