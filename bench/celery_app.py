"""What the Celery workers of `bench.celery_peer` import: one task a message, sent as a synchronous program sends it."""

from __future__ import annotations

import os
import time

import redis
import urllib3
from celery import Celery
from celery.signals import worker_ready, worker_shutdown

from notifier.process import collect_rarely

GATEWAY, SOCKET = "BENCH_GATEWAY", "BENCH_REDIS"  # what a worker finds in its environment: an address and a path
QUEUE = "celery"
READY, TIMES = "ready", "times"  # lists in Redis; of each worker: that it runs; sent, first and last second

app = Celery("bench", broker=f"redis+socket://{os.environ.get(SOCKET, '')}")
app.conf.update(
    accept_content=["json"],
    task_serializer="json",
    task_ignore_result=True,
    worker_prefetch_multiplier=64,
    worker_enable_remote_control=False,
)
_client = urllib3.PoolManager(headers={"Authorization": "Bearer token"}, timeout=15, retries=False)


class Times:
    """How many messages this process has sent; the first and the last second, by the clock of all processes."""

    sent = 0
    started = ended = 0.0


def _send(message_id: int, phone: int, text: str) -> None:
    Times.started = Times.started or time.monotonic()
    url = f"{os.environ[GATEWAY]}/v1/send/{message_id}"
    answer = _client.request("POST", url, json={"id": message_id, "phone": phone, "text": text})
    assert answer.status == 200
    assert answer.json()["code"] == 0
    Times.sent += 1
    Times.ended = time.monotonic()


send = app.task(_send, name="send")


def _ready(**_: object) -> None:
    collect_rarely()
    connect(os.environ[SOCKET]).rpush(READY, os.getpid())


def _tell(**_: object) -> None:
    connect(os.environ[SOCKET]).rpush(TIMES, f"{Times.sent} {Times.started} {Times.ended}")


def connect(socket: str) -> redis.Redis:
    """Return a client of the server that listens on the unix socket."""
    return redis.Redis(unix_socket_path=socket, decode_responses=True)


worker_ready.connect(_ready, weak=False)
worker_shutdown.connect(_tell, weak=False)
