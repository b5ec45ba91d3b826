"""A client of the simulated gateway that sees and sends each byte."""

from __future__ import annotations

import itertools
import json
import socket
from typing import Any

from chaos.stage import PATIENCE
from notifier.simulator import Entry, Simulator

PHONE = 79161234567
ids = itertools.count(1)
"""Ids that no other test of this process uses."""


def request(
    id: Any, body: Any = None, *, token: str | None = "any", close: bool = True, path: str | None = None
) -> bytes:
    if body is None:
        body = {"id": id, "phone": PHONE, "text": "hello"}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"POST {path or f'/v1/send/{id}'} HTTP/1.1", "Host: gateway", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(data)}"]
    lines += [f"Authorization: Bearer {token}"] if token is not None else []
    lines += ["Connection: close"] if close else []
    return "\r\n".join([*lines, "", ""]).encode() + data


def connect(gateway: Simulator) -> socket.socket:
    return socket.create_connection(("127.0.0.1", gateway.port), PATIENCE)


def exchange(gateway: Simulator, data: bytes) -> bytes:
    """Return everything that comes back until the gateway closes the connection."""
    with connect(gateway) as link:
        link.sendall(data)
        return b"".join(iter(lambda: link.recv(65536), b""))


def send(gateway: Simulator, id: Any, body: Any = None, **options: Any) -> tuple[int, Any]:
    """Return status and JSON of one request to send."""
    head, _, content = exchange(gateway, request(id, body, **options)).partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)


def entries_of(gateway: Simulator, id: int) -> list[Entry]:
    return [entry for entry in gateway.entries() if entry.id == id]
