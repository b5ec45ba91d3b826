"""The whole application on a real port, over a real database, with a small client."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

import aiohttp
import orjson
import pytest
from structlog.testing import capture_logs
from structlog.typing import EventDict
from tornado.ioloop import IOLoop
from tornado.testing import bind_unused_port

from notifier.storage.database import Pool
from notifier.storage.installation import Hold
from notifier.web.addresses import PublicUrl
from notifier.web.application import Application
from notifier.web.auth import bootstrap_token
from notifier.web.context import Context, GatewayDefaults
from notifier.web.routes import make_application
from notifier.web.server import Server

TOKEN = "a-token-of-the-tests-0123456789"


@dataclass
class Reply:
    """An answer, read to its end."""

    status: int
    headers: Any
    body: bytes

    @property
    def json(self) -> Any:
        return orjson.loads(self.body)

    def pointers(self) -> list[str]:
        """What the errors of a 422 point at: JSON pointers, or names of parameters."""
        assert self.status == 422, self.body
        return [each.get("pointer", each.get("parameter")) for each in self.json["errors"]]


@dataclass
class Api:
    """Calls the application; ``woken`` counts how often the scheduler would have been woken.

    ``headers`` go with every call.
    """

    url: str
    context: Context
    server: Server
    token: str | None = TOKEN
    headers: dict[str, str] = field(default_factory=dict)
    woken: list[None] = field(default_factory=list)
    session: aiohttp.ClientSession | None = None

    async def call(
        self,
        method: str,
        path: str,
        json: Any = None,
        *,
        data: Any = None,
        headers: dict[str, str] | None = None,
        params: Any = None,
    ) -> Reply:
        """Call ``path`` under /api/v1, or any other that begins with two slashes (``//healthz``)."""
        sent = {"Authorization": f"Bearer {self.token}"} if self.token is not None else {}
        sent |= self.headers
        if json is not None:
            data = orjson.dumps(json)
            sent["Content-Type"] = "application/json"
        if isinstance(data, bytes) and len(data) > 2**20:
            data = BytesIO(data)  # aiohttp warns of large bytes
        url = self.url + (path[1:] if path.startswith("//") else f"/api/v1{path}")
        if self.session is None:  # it cannot be made outside of a running loop
            self.session = aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar())
        async with self.session.request(
            method, url, data=data, headers={**sent, **(headers or {})}, params=params, allow_redirects=False
        ) as response:
            return Reply(response.status, response.headers, await response.read())

    async def close(self) -> None:
        if self.session is not None:
            await self.session.close()

    async def get(self, path: str, **kwargs: Any) -> Reply:
        return await self.call("GET", path, **kwargs)

    async def post(self, path: str, json: Any = None, **kwargs: Any) -> Reply:
        return await self.call("POST", path, json, **kwargs)

    async def patch(self, path: str, json: Any = None, **kwargs: Any) -> Reply:
        return await self.call("PATCH", path, json, **kwargs)

    async def delete(self, path: str, **kwargs: Any) -> Reply:
        return await self.call("DELETE", path, **kwargs)


MakeApi = Callable[..., Api]


@pytest.fixture(autouse=True)
def logs() -> Iterator[list[EventDict]]:
    """What is logged, instead of writing it: structlog's default spends a second on each traceback."""
    with capture_logs() as entries:
        yield entries


@pytest.fixture
def make_api(io_loop: IOLoop, db: Pool) -> Iterator[MakeApi]:
    """Serve an application, by default the whole one; keywords replace fields of the context."""
    apis: list[Api] = []
    servers: list[Server] = []

    def make(
        application: Callable[[Context], Application] = make_application, *, most: int = 500, **changes: Any
    ) -> Api:
        woken: list[None] = []

        async def ready() -> None:
            return None

        context = Context(
            db=db,
            hold=Hold(db, None),
            wake=lambda: woken.append(None),
            tokens=bootstrap_token(TOKEN),
            secret_key="a secret of the tests, 32 characters",
            default_timezone="UTC",
            gateway=GatewayDefaults("http://127.0.0.1:9", 100, 0.0, 15.0, "retry"),
            ready=ready,
            pause_all=False,
            version="test",
            public=PublicUrl(),
            proxies=(),
        )
        context = replace(context, **changes)

        server = Server(application(context), most=most)
        listener, port = bind_unused_port()
        server.add_sockets([listener])
        servers.append(server)
        apis.append(Api(f"http://127.0.0.1:{port}", context, server, woken=woken))
        return apis[-1]

    yield make
    for api in apis:
        io_loop.run_sync(api.close)
    for server in servers:
        server.stop()
        io_loop.run_sync(server.close_all_connections)


@pytest.fixture
def api(make_api: MakeApi) -> Api:
    """The whole application with a token of every scope."""
    return make_api()
