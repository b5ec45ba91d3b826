"""Health, metrics, the documentation and files: what needs no token."""

from __future__ import annotations

import re
from typing import Any

import tornado.web

from notifier import telemetry
from notifier.web import files
from notifier.web.base import Base
from notifier.web.compress import takes_gzip
from notifier.web.operations import operation

# Swagger UI sets styles by script and draws its icons from data: URLs.
DOCS_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class Health(Base):
    ANY_HOST = True

    @operation("getHealth", text=True)
    async def get(self) -> None:
        """Tell that the process is alive; nobody else is asked."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.write("ok\n")


class Ready(Base):
    ANY_HOST = True

    @operation("getReadiness", text=True, errors=(503,))
    async def get(self) -> None:
        """Tell whether requests should come here: the database and its schema are there, and we are not stopping."""
        reason = await self.context.ready()
        if reason is not None:
            self.write_problem({"type": "about:blank", "title": "Not ready", "status": 503, "detail": reason})
            return
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.write("ok\n")


class Metrics(Base):
    ANY_HOST = True

    @operation("getMetrics", text=True)
    async def get(self) -> None:
        """Show the metrics, in Prometheus' text format."""
        self.set_header("Content-Type", telemetry.CONTENT_TYPE)
        self.write(await self.settings["exposition"].text())


class FromMemory(Base):
    """What is made once, and is the same for everybody."""

    @property
    def takes_gzip(self) -> bool:
        """Whether who asks takes gzip."""
        return takes_gzip(self.request.headers.get("Accept-Encoding", ""))

    def write_file(self, file: files.File) -> None:
        """Answer with a file.

        Its head is written alone: with the body Tornado would join it into a copy, one for each connection until its
        client has read all of it.
        """
        packed = file.packed if self.takes_gzip else None
        body = file.body if packed is None else packed
        self.set_header("Vary", "Accept-Encoding")
        self.set_header("Content-Type", file.type)
        self.set_header("Content-Length", len(body))
        if packed is not None:
            self.set_header("Content-Encoding", "gzip")
        self.flush()
        self.write(body)


class OpenAPI(FromMemory):
    """The description of the API, made once at the start."""

    async def get(self) -> None:
        self.write_file(self.settings["openapi"])


class Docs(Base):
    """Swagger UI, from our own files."""

    async def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", DOCS_CSP)
        self.write(files.docs())


class Redirect(Base):
    """Another address."""

    def initialize(self, to: str = "", **kwargs: Any) -> None:  # type: ignore[override]
        super().initialize(**kwargs)
        self.to = to

    async def get(self) -> None:
        self.redirect(self.to)


class Static(FromMemory):
    """Files of ours; one that is asked for with its version may be kept for ever."""

    async def get(self, path: str) -> None:
        file = files.files().get(path)
        if file is None:
            raise tornado.web.HTTPError(404)
        kept = self.get_query_argument("v", "") == file.version
        is_packed = file.packed is not None and self.takes_gzip
        self.set_header("Cache-Control", f"public, max-age={files.YEAR}, immutable" if kept else "no-cache")
        self.set_header("ETag", f'"{file.version}{"-gzip" if is_packed else ""}"')
        if file.version in re.findall(r'"([0-9a-f]+)(?:-gzip)?"', self.request.headers.get("If-None-Match", "")):
            self.set_status(304)
            self.set_header("Vary", "Accept-Encoding")
            return
        self.write_file(file)
