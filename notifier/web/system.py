"""Health, metrics, the documentation and files: what needs no token."""

from __future__ import annotations

from typing import Any

import tornado.web

from notifier import install, telemetry
from notifier.web.base import Base, operation

STATIC = install.assets("static")
# Swagger UI sets styles by script and draws its icons from data: URLs.
DOCS_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)


class Health(Base):
    ANY_HOST = True

    @operation(text=True)
    async def get(self) -> None:
        """Tell that the process is alive; nobody else is asked."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.write("ok\n")


class Ready(Base):
    ANY_HOST = True

    @operation(text=True, errors=(503,))
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

    @operation(text=True)
    async def get(self) -> None:
        """Show the metrics, in Prometheus' text format."""
        self.set_header("Content-Type", telemetry.CONTENT_TYPE)
        self.write(await self.settings["exposition"].text())


class OpenAPI(Base):
    """The description of the API, made once at the start."""

    async def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.write(self.settings["openapi"])


class Docs(Base):
    """Swagger UI, from our own files."""

    async def get(self) -> None:
        self.set_header("Content-Type", "text/html; charset=utf-8")
        self.set_header("Content-Security-Policy", DOCS_CSP)
        self.write((STATIC / "docs" / "index.html").read_bytes())


class Redirect(Base):
    """Another address."""

    def initialize(self, to: str = "", **kwargs: Any) -> None:  # type: ignore[override]
        super().initialize(**kwargs)
        self.to = to

    async def get(self) -> None:
        self.redirect(self.to)


class Static(Base, tornado.web.StaticFileHandler):
    """Files of ours."""

    def initialize(self, path: str = "", **kwargs: Any) -> None:  # type: ignore[override]
        Base.initialize(self, **kwargs)
        tornado.web.StaticFileHandler.initialize(self, path)

    def set_extra_headers(self, path: str) -> None:
        self.set_header("Cache-Control", "no-cache")  # asked for anew each time, answered 304

    def compute_etag(self) -> str | None:
        return tornado.web.StaticFileHandler.compute_etag(self)

    def check_etag_header(self) -> bool:
        return tornado.web.RequestHandler.check_etag_header(self)
