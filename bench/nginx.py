"""Gateways that cost next to nothing: nginx on a free port of the loopback, for as long as a benchmark runs."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

# The same in both gateways, so that they differ in the time it takes and in nothing else.
_ANSWER = """return 200 '{"code":0,"message":"OK"}';"""
_CONFIG = """
{modules}
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr error;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_requests 1000000000; keepalive_timeout 60s; default_type application/json;
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    server {{
        listen 127.0.0.1:{port} backlog=4096;
        location / {{ {way} }}
        location @answer {{ {answer} }}
    }}
}}
"""
ECHO = Path("/usr/lib/nginx/modules/ngx_http_echo_module.so")
LATENCY = 0.1  # seconds that the slow gateway takes


class Missing(Exception):
    """A program that a benchmark needs is not installed."""


def fast_gateway() -> AbstractContextManager[str]:
    """Yield the base address of an nginx that accepts everything at once; raises Missing without nginx."""
    return _gateway("", _ANSWER)


def slow_gateway() -> AbstractContextManager[str]:
    """Yield the base address of an nginx that accepts everything after LATENCY; raises Missing without its module."""
    if not ECHO.exists():
        raise Missing("a gateway that takes its time is needed: apt-get install libnginx-mod-http-echo")
    return _gateway(f"load_module {ECHO};", f"echo_sleep {LATENCY}; echo_exec @answer;")


@contextmanager
def _gateway(modules: str, way: str) -> Iterator[str]:
    program = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if program is None:
        raise Missing("nginx is needed: apt-get install nginx-light")
    with tempfile.TemporaryDirectory(prefix="notifier-bench-") as folder:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        config = Path(folder, "nginx.conf")
        config.write_text(_CONFIG.format(modules=modules, way=way, answer=_ANSWER, folder=folder, port=port))
        process = subprocess.Popen([program, "-c", str(config), "-p", folder, "-e", "stderr"])
        try:
            _wait(port, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(10)


def _wait(port: int, process: subprocess.Popen[bytes]) -> None:
    for _ in range(500):
        if process.poll() is not None:
            raise Missing(f"nginx ended with {process.returncode}")
        try:
            socket.create_connection(("127.0.0.1", port), 0.1).close()
            return
        except OSError:
            time.sleep(0.01)
    raise Missing("nginx does not answer")
