"""Messages a second with hundreds of connections to a gateway that takes its time, beside a bare aiohttp loop."""

from __future__ import annotations

from collections.abc import Iterator

from bench.nginx import LATENCY, slow_gateway
from bench.throughput import Row, bare, beside

# Connections, and messages: enough that the beginning, when everything leaves at once, is a small part.
SIZES = ((512, 20_000), (1_024, 30_000))
TARGET = 0.90


def rows(_: str) -> Iterator[Row]:
    """Yield the rows of the table."""
    with slow_gateway() as url:
        for connections, messages in SIZES:
            question = f"the same, {connections:,} connections, {LATENCY * 1000:.0f} ms an answer"
            yield beside(bare, url, question, messages, connections, TARGET)
