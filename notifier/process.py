"""The process around the service: its exit codes, signals, event loop, listening sockets and garbage collection."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import signal
import socket
import sys
from collections.abc import Coroutine, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NoReturn, TypeVar

import click
import psycopg

from notifier import install
from notifier.errors import NotifierError, SettingsError
from notifier.settings import Settings
from notifier.storage import embedded

T = TypeVar("T")

BACKLOG = 1024  # connections that wait to be accepted: a moment's burst
# A terminal that is closed sends SIGHUP, Ctrl-\ SIGQUIT.
STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)


class PortTaken(NotifierError):
    """The port is taken."""


@contextmanager
def told(*, failed: int = 1, stopped: int = 1) -> Iterator[None]:
    """Errors become words on stderr: exit 2 for what must be set differently, ``failed`` for what went wrong.

    Until a loop runs, and after it, each of `STOPPING` unwinds as Ctrl-C does: the last one out stops the embedded
    PostgreSQL. The exit code then is ``stopped``: 0 where to be stopped is no failure.
    """
    _unwind_on_signals()
    try:
        yield
    except SettingsError as error:
        for line in error.errors:
            click.echo(f"error: {line}", err=True)
        click.echo(f"nothing was started; see: {install.program()} config check", err=True)
        sys.exit(2)
    except PortTaken as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(2)
    except NotifierError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(failed)
    except psycopg.Error as error:  # of the migrations
        click.echo(f"error: the database says: {str(error).strip() or type(error).__name__}", err=True)
        sys.exit(failed)
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        sys.exit(stopped)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Run ``main`` on uvloop where there is one (+18 % requests)."""
    try:
        import uvloop
    except ImportError:
        runner = asyncio.run
    else:
        runner = uvloop.run
    try:
        return runner(main)
    finally:
        _unwind_on_signals()  # a loop leaves the system's defaults behind


def stopping() -> list[signal.Signals]:
    """Return the signals that stop a process: not SIGHUP where `nohup` has it ignored."""
    return [each for each in STOPPING if signal.getsignal(each) is not signal.SIG_IGN or each is not signal.SIGHUP]


def _unwind_on_signals() -> None:
    for each in stopping():
        signal.signal(each, signal.default_int_handler)


@contextmanager
def bound(settings: Settings, remedy: str = "set HOST and PORT") -> Iterator[list[socket.socket]]:
    """Yield the sockets to serve on; nothing else is touched while the port is not ours. Raises PortTaken."""
    with ExitStack() as stack:
        sockets: list[socket.socket] = []
        hosts = settings.host.split(",")
        # A socket on :: takes IPv6 alone, on every system.
        for host in dict.fromkeys([*hosts, *(["0.0.0.0"] if "::" in hosts else [])]):
            # With PORT=0 the first address takes a free one, and the others the same.
            port = sockets[0].getsockname()[1] if sockets else settings.port
            try:
                sockets += [stack.enter_context(each) for each in _listening(host, port)]
            except OSError as error:
                reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
                raise PortTaken(f"cannot listen on {host} port {port}: {reason}; {remedy}") from error
        if not sockets:
            raise PortTaken(f"cannot listen on {settings.host}: this system has no IPv6; {remedy}")
        yield sockets


def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Yield a socket for each address of a host; IPv6 is left out where the system has none."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    for family, address in dict.fromkeys((each[0], each[4]) for each in found):
        try:
            each = socket.create_server(address, family=family, backlog=BACKLOG)
        except OSError as error:
            if family == socket.AF_INET6 and error.errno in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                continue
            raise
        each.setblocking(False)
        yield each


def end_at_once() -> NoReturn:
    """End the process as a crash would, but for the embedded PostgreSQL, which nobody else may use."""
    click.echo("ended at once", err=True)
    try:
        embedded.abandon()
    finally:
        os._exit(1)


def collect_rarely() -> None:
    """Leave what lives until the end out of every garbage collection (it took 40 % at 512 connections)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
