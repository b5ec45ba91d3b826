"""Messages a second of Celery with Redis, which is what most would take: one task a message, in processes of its own.

Tried on two cores shared with other work, where the milliseconds of CPU that a message costs the workers are surer than
the messages a second:

- two workers `solo`, urllib3 (used here): 400-1,030 a second, 1.5-2.3 ms; one such worker 250-350; three 350
- one worker `prefork` with 2 processes 330-390, 2.3-2.7 ms; with 4, 350-550, 2.0-2.8 ms; two with one, 280-390, 3.3 ms
- two workers `threads` with 16: 450-640, 1.9-3.1 ms; with 4, 390, 2.6 ms; `gevent` with 64: 300-420, 2.7 ms
- with prefetch 1, 4 or 256, or acks_late: no difference beyond the noise, 1.9-2.6 ms; with `requests` 3.1-3.5 ms
- as it comes, `prefork` with 2, results in Redis, log at info, `requests.post` without a session: 180, 4.9-5.9 ms

`solo` has one request under way in each worker. It is the best only because the gateway answers at once.
A task is acknowledged when it starts: what is under way at a kill -9 is lost, what was fetched ahead comes back after
the visibility timeout (an hour). Redis writes every change to a file and syncs it once a second, so a crash of the
machine loses that much. Nothing stays of what was done.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.nginx import Missing
from bench.plain import TEXT

WORKERS = 2
OPTIONS = ["--pool", "solo", "--loglevel", "error", "--without-gossip", "--without-mingle", "--without-heartbeat"]


def celery_and_redis(url: str, messages: int) -> float:
    """Messages a second from the first request to the last answer; raises Missing without redis-server."""
    from bench import celery_app

    with ExitStack() as stack:
        socket = stack.enter_context(_redis())
        redis = stack.enter_context(celery_app.connect(socket))
        connection = stack.enter_context(celery_app.app.connection_for_write(f"redis+socket://{socket}"))
        producer = stack.enter_context(celery_app.app.amqp.Producer(connection))
        for message_id in range(1, messages + 1):
            celery_app.send.apply_async((message_id, 79_000_000_000 + message_id, TEXT), producer=producer)
        redis.rename(celery_app.QUEUE, "held")  # until both workers are there
        workers = [stack.enter_context(_worker(url, socket, n)) for n in range(WORKERS)]
        _until(lambda: redis.llen(celery_app.READY) == len(workers))
        redis.rename("held", celery_app.QUEUE)
        _until(lambda: not redis.llen(celery_app.QUEUE) and not redis.hlen("unacked"))
        for worker in workers:
            worker.terminate()  # each finishes what it has in hand, and tells its times
        _until(lambda: redis.llen(celery_app.TIMES) == len(workers))
        times = [[float(each) for each in line.split()] for line in redis.lrange(celery_app.TIMES, 0, -1)]
        sent, started, ended = zip(*times, strict=True)
        assert all(sent), "a worker did nothing"
        assert sum(sent) == messages, f"{sum(sent):.0f} of {messages} sent"
        seconds: float = max(ended) - min(started)
        return messages / seconds


@contextmanager
def _redis() -> Iterator[str]:
    """Yield the unix socket of a server that writes every change to a file and syncs it every second."""
    program = redis_server()
    with tempfile.TemporaryDirectory(prefix="notifier-bench-") as folder:
        socket = Path(folder, "redis.sock")
        options = ["--port", "0", "--unixsocket", str(socket), "--dir", folder, "--save", ""]
        options += ["--appendonly", "yes", "--appendfsync", "everysec"]
        with _running([program, *options]):
            _until(socket.exists)
            yield str(socket)


def redis_server() -> str:
    """Where the program is; raises Missing."""
    program = shutil.which("redis-server")
    if program is None:
        raise Missing("Redis is needed: apt-get install redis-server")
    return program


@contextmanager
def _worker(url: str, socket: str, n: int) -> Iterator[subprocess.Popen[bytes]]:
    from bench.celery_app import GATEWAY, SOCKET

    command = [sys.executable, "-W", "ignore", "-m", "celery", "-A", "bench.celery_app", "worker", "-n", f"{n}@"]
    with _running([*command, *OPTIONS], os.environ | {GATEWAY: url, SOCKET: socket}) as process:
        yield process


@contextmanager
def _running(command: list[str], environment: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline, "Celery or Redis has come to a stop"
        time.sleep(0.05)
