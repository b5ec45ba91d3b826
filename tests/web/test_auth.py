"""Who may call: every route asks for a token with its scope, or is public."""

from __future__ import annotations

import re

from notifier.web.auth import PUBLIC, Caller, bootstrap_token
from notifier.web.routes import API, ROUTES
from tests.web.conftest import TOKEN, Api, MakeApi


async def test_every_route_asks_for_a_token_or_is_public(api: Api) -> None:
    api.token = None
    for route in ROUTES:
        path = "/" + re.sub(r"\{\w+\}", "1", route.path)
        for method, scope in route.access.items():
            reply = await api.call(method, path)
            if scope == PUBLIC:
                assert reply.status != 401, path
            elif path.startswith("//admin/"):  # a page leads to the log-in, a form shows it
                assert reply.status == (303 if method == "GET" else 401), path
            else:
                assert reply.status == 401, path
                assert reply.headers["WWW-Authenticate"] == 'Bearer realm="notifier"'
                assert path.startswith(f"/{API}/")


async def test_a_wrong_token_is_refused(api: Api) -> None:
    for header in ("Bearer", "Bearer ", "Basic abc", f"Basic {TOKEN}", f"Bearer {TOKEN}x", TOKEN, "Bearer ä"):
        reply = await api.get("/clients", headers={"Authorization": header})
        assert reply.status == 401, header
        assert reply.headers["WWW-Authenticate"] == 'Bearer realm="notifier", error="invalid_token"'


async def test_without_a_bootstrap_token_nobody_is_known(make_api: MakeApi) -> None:
    api = make_api(tokens=bootstrap_token(None))
    assert (await api.get("/clients")).status == 401


async def test_a_token_without_the_scope_is_refused(make_api: MakeApi) -> None:
    async def reader(digest: bytes) -> Caller:
        return Caller("reader", b"", frozenset({"clients:read"}))

    api = make_api(tokens=reader)
    assert (await api.get("/clients")).status == 200
    reply = await api.post("/clients", {"phone": "79161234567"})
    assert reply.status == 403
    assert 'scope="clients:write"' in reply.headers["WWW-Authenticate"]
