"""The HTTP server of the simulated gateway: its connections, its paths, and ``/control``."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import json
import os
import signal
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import orjson

from notifier.simulator.answers import OK, Answer, json_answer
from notifier.simulator.gateway import Gateway
from notifier.simulator.request import SEND, Head, Send, parse_head
from notifier.simulator.script import Script

NOTE = "a simulation for development, tests and demo: it answers like a sending API and texts nobody"
MAX_HEAD = 64 * 1024
"""Bytes."""
MAX_BODY = 1024 * 1024
"""Bytes."""


class Connection(asyncio.Protocol):
    """One client's connection: requests are read and answered one after the other."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.transport: asyncio.Transport
        self.buffer = b""
        self.head: Head | None = None
        self.busy = False
        self.closed = False
        self.stream: Iterator[bytes] | None = None
        self.answer = OK
        self.scheduled = False
        self.paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.gateway.transports.add(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed = True
        self.stream = None
        self.gateway.transports.discard(self.transport)
        if self.busy:
            self.gateway.in_flight -= 1

    def data_received(self, data: bytes) -> None:
        self.buffer = self.buffer + data if self.buffer else data
        if not self.busy:
            self._read()
        elif len(self.buffer) > MAX_BODY:
            self.transport.pause_reading()

    def _read(self) -> None:
        """Take whole requests from the buffer until one has to be waited for."""
        while not self.busy and not self.transport.is_closing():
            if self.head is None:
                end = self.buffer.find(b"\r\n\r\n")
                if end < 0 and len(self.buffer) <= MAX_HEAD:
                    return
                try:
                    if end < 0 or end > MAX_HEAD:
                        raise ValueError("the head is too long")
                    self.head = parse_head(self.buffer[:end])
                    if self.head.length > MAX_BODY:
                        raise ValueError("the body is too long")
                except ValueError as error:
                    self._reply(json_answer(400, {"error": str(error)}), keep_alive=False)
                    return
                self.buffer = self.buffer[end + 4 :]
                if self.head.method == "POST" and self.head.target.startswith(SEND):
                    send = self.head.send = self.gateway.arrived(self.head.target, self.head.headers)
                    early = self.gateway.early(send)
                    if early is not None:
                        self._settle(send, early)
                        return
            head = self.head
            if len(self.buffer) < head.length:
                return
            body, self.buffer = self.buffer[: head.length], self.buffer[head.length :]
            if head.send is not None:
                self._settle(head.send, self.gateway.decide(head.send, head.headers, body))
            else:
                self.head = None
                self._reply(self._route(head, body), head.keep_alive)

    def _settle(self, send: Send, answer: Answer) -> None:
        gateway = self.gateway
        self.busy = True
        gateway.in_flight += 1
        gateway.max_in_flight = max(gateway.max_in_flight, gateway.in_flight)
        gateway.settle(self.play, send, answer)

    def _reply(self, answer: Answer, keep_alive: bool) -> None:
        self.transport.write(answer.data)
        if not keep_alive:
            self.transport.close()

    def _route(self, head: Head, body: bytes) -> Answer:
        """Answer what is not a request to send."""
        path = head.target.partition("?")[0]
        if path == "/" and head.method == "GET":
            return json_answer(
                200, {"simulation": True, "note": NOTE, "send": f"POST {SEND}{{id}}", "control": "/control"}
            )
        if path == "/control":
            return self._control(head.method, body)
        if path.startswith(SEND):
            return json_answer(405, {"error": "only POST"}, {"Allow": "POST"})
        return json_answer(404, {"error": "not found"})

    def _control(self, method: str, body: bytes) -> Answer:
        if not ipaddress.ip_address(self.transport.get_extra_info("peername")[0].partition("%")[0]).is_loopback:
            return json_answer(403, {"error": "from this machine only"})
        gateway = self.gateway
        if method == "POST":
            try:
                gateway.behave(Script.parse(orjson.loads(body), gateway.original))
            except ValueError as error:
                return json_answer(400, {"error": str(error)})
        elif method == "DELETE":
            gateway.behave(gateway.original)
        elif method != "GET":
            return json_answer(405, {"error": "GET, POST or DELETE"}, {"Allow": "GET, POST, DELETE"})
        return json_answer(200, gateway.state())

    def play(self, answer: Answer) -> None:
        """Send an answer that is in the ledger."""
        if self.closed:
            return
        self.answer = answer
        if answer.data:
            self.transport.write(answer.data)
        if answer.stream is None:
            self._finish()
        else:
            self.stream = answer.stream()
            self._pump()

    def _pump(self) -> None:
        # One piece a turn, none while the client does not read: bounded memory, and others get their turn.
        self.scheduled = False
        if self.stream is None or self.paused:
            return
        piece = next(self.stream, None)
        if piece is None:
            self.stream = None
            self._finish()
            return
        self.transport.write(piece)
        self._schedule()

    def _schedule(self) -> None:
        self.scheduled = True
        asyncio.get_running_loop().call_later(self.answer.pause, self._pump)

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.stream is not None and not self.scheduled:
            self._schedule()

    def _finish(self) -> None:
        then = self.answer.then
        if then == "hang":
            return
        if then == "reset":
            linger = struct.pack("ii", 1, 0)
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.transport.abort()
            return
        assert self.head is not None
        if then == "close" or not self.head.keep_alive:
            self.transport.close()
            return
        self.head = None
        self.busy = False
        self.gateway.in_flight -= 1
        if self.buffer:
            self.transport.resume_reading()
            self._read()


async def serve(gateway: Gateway, host: str, port: int, ledger: Path | None, exit_with_parent: bool) -> None:
    """Serve until the gateway is stopped; print a line of JSON with the address once it listens."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(gateway), host, port, backlog=1024)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, gateway.stop.set)
    if exit_with_parent:
        loop.add_reader(0, _watch_parent, gateway.stop)
    bound = server.sockets[0].getsockname()[1]
    url = f"http://[{host}]:{bound}" if ":" in host else f"http://{host}:{bound}"
    started = {"event": "simulated gateway started", "url": url, "pid": os.getpid(), "note": NOTE}
    print(json.dumps({**started, "ledger": None if ledger is None else str(ledger)}), flush=True)
    # What exists now stays: the collector need not walk it again for each burst of connections.
    gc.freeze()
    gc.set_threshold(50_000)
    await gateway.stop.wait()
    server.close()
    for transport in list(gateway.transports):
        transport.abort()


def _watch_parent(stop: asyncio.Event) -> None:
    if not os.read(0, 4096):
        stop.set()
