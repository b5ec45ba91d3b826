"""What every answer has in common, shown on handlers that misbehave on purpose."""

from __future__ import annotations

import asyncio
import json
import re

import aiohttp
import asyncpg
import pytest
import structlog
import tornado.web
from structlog.typing import EventDict
from yarl import URL

from notifier import errors
from notifier.errors import Problem
from notifier.storage import clients
from notifier.storage.database import create_pool
from notifier.web import schemas
from notifier.web.budgets import LogLimit
from notifier.web.handlers import Handler
from notifier.web.operations import operation
from notifier.web.routes import API
from tests.web.conftest import TOKEN, Api, MakeApi
from tests.web.serving import raises, serving

ERRORS = {
    "not_found": (errors.NotFound(), 404),
    "conflict": (errors.Conflict(), 409),
    "phone": (errors.PhoneTaken(7), 409),
    "transition": (errors.IllegalTransition(), 409),
    "stale": (errors.Stale(), 412),
    "invalid": (errors.Invalid([Problem("/text", "is odd"), Problem("limit", "is odd", parameter=True)]), 422),
    "unavailable": (errors.Unavailable(), 503),
    "refused": (ConnectionRefusedError("no"), 503),
    "restarted": (asyncpg.AdminShutdownError("terminating"), 503),
    "deadlock": (asyncpg.DeadlockDetectedError("deadlock"), 503),
    "http": (tornado.web.HTTPError(418), 418),
    "odd": (tornado.web.HTTPError(799, reason="Odd"), 799),
    "bug": (ZeroDivisionError("secret 79161234567"), 500),
}


@pytest.fixture
def faulty(make_api: MakeApi) -> Api:
    return make_api(serving(**{name: raises(error) for name, (error, _) in ERRORS.items()}))


async def test_every_error_is_a_problem(faulty: Api) -> None:
    for name, (_, status) in ERRORS.items():
        reply = await faulty.get(f"/{name}")
        assert reply.status == status, name
        assert reply.headers["Content-Type"] == "application/problem+json"
        assert reply.json["status"] == reply.status
        assert reply.json["request_id"] == reply.headers["X-Request-ID"]
        assert {"type", "title", "detail"} <= reply.json.keys()


async def test_what_the_errors_know_is_told(faulty: Api) -> None:
    assert (await faulty.get("/phone")).json["client_id"] == 7
    assert (await faulty.get("/invalid")).json["errors"] == [
        {"pointer": "/text", "detail": "is odd"},
        {"parameter": "limit", "detail": "is odd"},
    ]
    assert (await faulty.get("/refused")).headers["Retry-After"] == "2"


async def test_the_detail_says_how_many_errors_it_leaves_out(make_api: MakeApi) -> None:
    for count, ends in ((5, "/4: is odd"), (6, "/4: is odd; and 1 more"), (9, "/4: is odd; and 4 more")):
        many = errors.Invalid([Problem(f"/{each}", "is odd") for each in range(count)])
        reply = await make_api(serving(many=raises(many))).get("/many")
        assert len(reply.json["errors"]) == count
        assert reply.json["detail"].endswith(ends)


async def test_an_unforeseen_error_is_logged_and_not_told(faulty: Api, logs: list[EventDict]) -> None:
    reply = await faulty.get("/bug", headers={"X-Request-ID": "mine-1"})
    assert b"secret" not in reply.body
    (entry,) = [each for each in logs if each["event"] == "request failed"]
    assert entry["request_id"] == "mine-1"
    assert isinstance(entry["exc_info"][1], ZeroDivisionError)


class Misbehaving(Handler):
    @operation(answer=schemas.ClientOut)
    async def get(self) -> None:
        """Write half an answer, then fail."""
        self.write("half")
        self.set_header("X-Half", "1")
        raise RuntimeError

    @operation(answer=schemas.ClientOut)
    async def post(self) -> None:
        """Answer with what orjson cannot write."""
        self.write(json.dumps({"a": object()}))


async def test_nothing_of_a_half_written_answer_gets_out(make_api: MakeApi) -> None:
    api = make_api(serving(odd=Misbehaving))
    reply = await api.get("/odd")
    assert (reply.status, reply.headers.get("X-Half")) == (500, None)
    assert reply.json["status"] == 500
    assert (await api.post("/odd")).status == 500


async def test_where_there_is_nothing_and_methods_nobody_takes(api: Api) -> None:
    for path in ("/nothing", "//nothing", "//api/v2/clients", "/clients/1/x"):
        reply = await api.get(path)
        assert (reply.status, reply.headers["Content-Type"]) == (404, "application/problem+json")
    for method in ("PUT", "OPTIONS", "TRACE", "FOO"):
        reply = await api.call(method, "/clients")
        assert (reply.status, reply.headers["Allow"]) == (405, "GET, HEAD, POST"), method
    assert (await api.get("/clients/batch")).headers["Allow"] == "POST"
    assert (await api.call("HEAD", "/clients/batch")).status == 405
    # Neither is an address without a token of its own a matter of forms.
    assert (await api.post("//nothing")).status == 404
    assert (await api.post("//healthz")).status == 405


async def test_head_is_a_get_without_its_body(api: Api) -> None:
    client = await clients.create(api.context.db, phone=79161234567)
    paths = ("/clients", f"/clients/{client.id}", "//healthz", "//readyz", "//metrics", "//docs/", "//openapi.json",
             "//static/docs/docs.js", "//admin/login", "/clients/99", "/clients?limit=0")  # fmt: skip
    for path in paths:
        reply, whole = await api.call("HEAD", path), await api.get(path)
        assert (reply.status, reply.body) == (whole.status, b""), path
        for name in ("Content-Type", "ETag"):
            assert reply.headers.get(name) == whole.headers.get(name), path
    api.token = None
    assert (await api.call("HEAD", "/clients")).status == 401
    assert (await api.call("HEAD", "//admin/clients")).status == 303


async def test_a_sane_request_id_is_kept_and_any_other_replaced(api: Api) -> None:
    for given in ("a", "A-1_b.c", "x" * 64):
        reply = await api.get("//healthz", headers={"X-Request-ID": given})
        assert reply.headers["X-Request-ID"] == given
    for given in ("", " ", "a b", "x" * 65, "ä", '"'):
        reply = await api.get("//healthz", headers={"X-Request-ID": given})
        assert re.fullmatch("[0-9a-f]{32}", reply.headers["X-Request-ID"])


async def test_the_request_id_stands_in_every_line_of_the_log(make_api: MakeApi) -> None:
    class Logs(Handler):
        @operation()
        async def get(self) -> None:
            await asyncio.sleep(0)
            seen.append(structlog.contextvars.get_contextvars()["request_id"])

    seen: list[str] = []
    api = make_api(serving(logs=Logs))
    await asyncio.gather(*(api.get("/logs", headers={"X-Request-ID": name}) for name in "abc"))
    assert sorted(seen) == ["a", "b", "c"]


async def test_ids_that_are_none(api: Api) -> None:
    large = ("9223372036854775808", "1" * 400)
    for name in ("0", "-1", "+1", "01", "1.0", "abc", "١", "%00", "%20", "%FF", "null", *large):
        for method in ("GET", "PATCH", "DELETE"):
            reply = await api.call(method, f"/clients/{name}", {} if method == "PATCH" else None)
            assert reply.status == (400 if name == "%FF" else 404), name


async def test_addresses_are_taken_as_they_are_written(api: Api) -> None:
    """A slash more, or a letter percent-encoded, is another address; of the slash the answer says so."""
    reply = await api.get("/clients/")
    assert (reply.status, reply.json["type"]) == (404, "urn:notifier:not-found")
    assert "without the slash" in reply.json["detail"]
    async with aiohttp.ClientSession() as session, session.get(URL(f"{api.url}/api/v1/%63lients", encoded=True)) as raw:
        assert raw.status == 404


async def test_without_a_database_the_api_says_when_to_come_again(make_api: MakeApi) -> None:
    pool = await create_pool("postgresql://nobody@127.0.0.1:9/none", size=1, application_name="test")
    api = make_api(db=pool)
    for method, path, body in (("GET", "/clients", None), ("POST", "/clients", {"phone": "79161234567"})):
        reply = await api.call(method, path, body, headers={"Idempotency-Key": "k"})
        assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
    assert (await api.get("//healthz")).status == 200
    pool.terminate()


async def test_what_strangers_ask_is_not_logged_without_bound(make_api: MakeApi, logs: list[EventDict]) -> None:
    api = make_api(log_limit=LogLimit(rate=0.0, burst=300))
    api.token = "wrong"
    for _ in range(500):
        await api.get("/clients")
    assert 300 <= len(logs) < 450
    api.token = TOKEN
    await api.get("/clients?tag=known")
    assert logs[-1]["path"] == f"{API}/clients"


async def test_of_a_path_no_part_is_long_and_200_characters_are_logged(api: Api, logs: list[EventDict]) -> None:
    for path in (
        "static/a/" + "b" * 1025,
        "static/" + "a/" * 3_000,
        "admin/" + "a" * 9_000,
        "api/v1/gateways/" + "a" * 1025,
    ):
        assert (await api.get(f"//{path}")).status == 404
    lines = [each for each in logs if each["event"] == "request"]
    assert len(lines) == 4
    assert {len(each["path"]) for each in lines} == {200}
