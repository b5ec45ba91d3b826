"""A siege: an outsider without a token does what he can while a mailing is sent, directly and through nginx."""

from __future__ import annotations

import http.client
import json
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from chaos.replicas import clients
from chaos.stage import ROOT, Replica, Stage, call, free_port, has, on_stage, until
from chaos.verdict import Figures, Lacking, Row, judge, watching

FILES = 1024
"""Open files the service may have: the soft limit that systems give, here the hard one as well."""
NGINX = """
daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
    access_log off; client_header_timeout 15s;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    upstream notifier {{ server 127.0.0.1:{backend}; keepalive 32; }}
    limit_conn_zone $binary_remote_addr zone=connections:1m;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        limit_conn connections 50; limit_conn_status 429;
        location / {{
            proxy_pass http://notifier; proxy_http_version 1.1; proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $remote_addr;
        }}
    }}
}}
"""


@contextmanager
def _nginx(folder: Path, backend: int) -> Iterator[str]:
    program = has("nginx")
    if program is None:
        raise Lacking("nginx is needed: apt-get install nginx-light")
    port = free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, backend=backend, port=port))
    process = subprocess.Popen([program, "-c", str(config), "-p", str(folder), "-e", "stderr"])
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: _healthy(url))
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _healthy(url: str) -> float | None:
    """Seconds in which `/healthz` answers, or None."""
    try:
        reply = call(url, "GET", "/healthz", timeout=5)
    except (OSError, http.client.HTTPException):
        return None
    return reply.seconds if reply.status == 200 else None


@contextmanager
def _checked(*urls: str) -> Iterator[dict[str, list[float | None]]]:
    """Ask each for its health once a second, as a container's check does, as long as the block runs."""
    found: dict[str, list[float | None]] = {url: [] for url in urls}
    over = threading.Event()

    def check() -> None:
        while not over.wait(1.0):
            for url, seconds in found.items():
                seconds.append(_healthy(url))

    thread = threading.Thread(target=check, name="health")
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def _sent(stage: Stage, mailing: int) -> int:
    found: int = stage.numbers(mailing).get("sent", 0)
    return found


def _rate(stage: Stage, mailing: int, seconds: float) -> float:
    """Messages a second that are sent in so many seconds from now."""
    before, began = _sent(stage, mailing), time.monotonic()
    time.sleep(seconds)
    return (_sent(stage, mailing) - before) / (time.monotonic() - began)


def siege(
    seconds: float,
    *,
    rate: int = 500,
    p99: float = 0.3,
    share: float = 0.9,
    log_bytes: int = 1_000_000,
) -> Figures:
    """Besiege one replica with `FILES` open files for so many seconds, a third of them before without a siege.

    Broken is what is slower or fewer than said: the API's ``p99`` in seconds, the ``share`` of the sending ``rate``
    (messages a second) that is left, ``log_bytes`` a minute; a call or a health check without an answer; and whatever
    the oracle finds.
    """
    if (prlimit := shutil.which("prlimit")) is None:
        raise Lacking("prlimit is needed: apt-get install util-linux")
    with on_stage(gateway={"latency": 50}) as stage, ExitStack() as stack:
        stage.clients(round(rate * (seconds * 1.5 + 10)))
        replica = stage.replica(
            before=(prlimit, f"--nofile={FILES}:{FILES}"),
            gateway_rate=rate,
            trusted_proxies="127.0.0.1",
        )
        proxy = stack.enter_context(_nginx(stage.folder, int(replica.url.rpartition(":")[2])))
        mailing = stage.mailing(replica)
        until(lambda: _sent(stage, mailing) > rate)
        without = _rate(stage, mailing, max(5.0, seconds / 3))
        logged = replica.log.stat().st_size
        with (
            _outsider(seconds, direct=replica.url, proxy=proxy) as outsider,
            watching(stage) as watched,
            _checked(replica.url, proxy) as health,
        ):
            time.sleep(min(3.0, seconds / 5))  # until all his connections are there
            during = _rate(stage, mailing, seconds * 0.8)
            most = _connections(replica)
        told = json.loads(outsider.communicate()[0])
        growth = (replica.log.stat().st_size - logged) * 60 / seconds
        stage.done(mailing)
        figures = judge(stage, watched, audiences={mailing: clients(stage)})
    checks = [check for each in health.values() for check in each]
    slow = sum(check is None for check in checks)
    rules = {
        f"API p99 {watched.p99 * 1000:.0f} ms": watched.p99 <= p99,
        f"{watched.none} calls of a well-behaved caller without an answer": not watched.none,
        f"{during:.0f} messages/s under siege, {without:.0f} without": during >= share * without,
        f"{slow} of {len(checks)} health checks without an answer": not slow and bool(checks),
        f"{growth / 1000:.0f} KB of log a minute": growth <= log_bytes,
    }
    figures.breaches += [f"siege: {rule}" for rule, held in rules.items() if not held]
    figures.notes += [*rules, f"{most:.0f} connections at the end", _words(told)]
    return figures


def _connections(replica: Replica) -> float:
    text = str(replica.call("GET", "/metrics").body)
    line = next(line for line in text.splitlines() if line.startswith("notifier_http_connections "))
    return float(line.split()[1])


@contextmanager
def _outsider(seconds: float, **targets: str) -> Iterator[subprocess.Popen[str]]:
    arguments = [str(seconds), *(f"{name}={url}" for name, url in targets.items())]
    process = subprocess.Popen(
        [sys.executable, "-m", "chaos.outsider", *arguments], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    except BaseException:
        process.kill()
        process.wait()
        raise


def _words(told: dict[str, Any]) -> str:
    begun = sum(sum(each["begun"].values()) for each in told.values())
    answers: dict[str, int] = {}
    for each in told.values():
        for status, count in each["answers"].items():
            answers[status] = answers.get(status, 0) + count
    shown = ", ".join(f"{status} {count}" for status, count in sorted(answers.items()))
    return f"{begun} attempts of an outsider, answered {shown}"


ROWS = (Row(17, "a siege of ten minutes by an outsider", lambda: siege(600)),)
