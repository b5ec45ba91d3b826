"""What every answer has in common, shown on handlers that misbehave on purpose."""

from __future__ import annotations

import asyncio
import base64
import gzip
import itertools
import json
import re
from collections.abc import AsyncIterator
from functools import partial
from hashlib import sha256

import aiohttp
import asyncpg
import pytest
import structlog
import tornado.web
from structlog.typing import EventDict
from yarl import URL

from notifier import errors
from notifier.errors import Problem
from notifier.storage import clients, idempotency
from notifier.storage.database import Pool, create_pool
from notifier.web import budgets, handlers, schemas
from notifier.web.application import Application
from notifier.web.auth import PUBLIC, Caller, bootstrap_token
from notifier.web.base import LARGEST_BODY
from notifier.web.handlers import Handler
from notifier.web.operations import operation, operation_of
from notifier.web.routes import API, ROUTES, Route, make_application
from tests.storage.scenes import insert_clients, insert_ledger, running
from tests.web.conftest import TOKEN, Api, MakeApi


def raises(error: BaseException) -> type[Handler]:
    class Raises(Handler):
        @operation()
        async def get(self) -> None:
            raise error

    return Raises


def serving(**handlers: type[Handler]) -> partial[Application]:
    routes = tuple(
        Route(
            f"{API}/{path}",
            handler,
            {
                verb: "clients:write"
                for verb in ("GET", "POST", "PATCH")
                if getattr(handler, verb.lower()) is not tornado.web.RequestHandler._unimplemented_method
            },
        )
        for path, handler in handlers.items()
    )
    return partial(make_application, routes=routes)


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


# ---- who may call


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


def test_a_route_that_does_not_say_who_may_call_cannot_be_made() -> None:
    handler = raises(errors.NotFound())
    with pytest.raises(ValueError, match="declares"):
        Route("/x", handler, {})
    with pytest.raises(ValueError, match="declares"):
        Route("/x", handler, {"GET": PUBLIC, "POST": PUBLIC})
    with pytest.raises(ValueError, match="no such scope"):
        Route("/x", handler, {"GET": "clients:admin"})


def test_every_verb_of_the_api_has_an_operation_and_a_docstring() -> None:
    for route in ROUTES:
        if route.path.startswith(API):
            for method in route.access:
                verb = getattr(route.handler, method.lower())
                assert operation_of(verb) is not None, (route.path, method)
                assert verb.__doc__, (route.path, method)


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


# ---- bodies


class Echo(Handler):
    @operation(body=schemas.ClientIn, answer=schemas.ClientOut)
    async def post(self) -> None:
        """Take a client and forget it."""


@pytest.fixture
def echo(make_api: MakeApi) -> Api:
    return make_api(serving(echo=Echo))


UNPARSABLE = {
    "empty": b"",
    "blank": b" \n",
    "half": b'{"phone": ',
    "not UTF-8": b'{"phone": "\xff"}',
    "UTF-16": '{"phone": "1"}'.encode("utf-16"),
    "NaN": b'{"attributes": {"a": NaN}}',
    "Infinity": b'{"attributes": {"a": -Infinity}}',
    "twice": b'{"phone": "79161234567", "phone": "79161234568"}',
    "deep lists": b"[" * 500_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "a long integer": b'{"phone": ' + b"1" * 5000 + b"}",
    "a raw control character": b'{"phone": "\x01"}',
}


async def test_what_is_no_json_is_a_400(echo: Api) -> None:
    for name, body in UNPARSABLE.items():
        reply = await echo.post("/echo", data=body)
        assert reply.status == 400, name
        assert "sys." not in reply.json["detail"], name


async def test_an_encoded_body_is_refused_as_such(echo: Api) -> None:
    body = b'{"phone": "79161234567"}'
    for kind in ("gzip", "br", "gzip, identity"):
        reply = await echo.post("/echo", data=gzip.compress(body), headers={"Content-Encoding": kind})
        assert (reply.status, reply.json["type"]) == (415, "urn:notifier:encoded")
        assert reply.headers["Accept-Encoding"] == "identity"
        assert "Content-Encoding are not taken" in reply.json["detail"]
    assert (await echo.post("/echo", data=body, headers={"Content-Encoding": "Identity"})).status == 200


FAULTS = {
    "a list": (b"[]", [""]),
    "a string": (b'"a"', [""]),
    "null": (b"null", [""]),
    "nothing": (b"{}", ["/phone"]),
    "unknown": (b'{"phone": "79161234567", "a/b~c": 1}', ["/a~1b~0c"]),
    "NUL": (b'{"phone": "79161234567", "tags": ["a", "b\\u0000"]}', ["/tags/1"]),
    "NUL in a key": (b'{"phone": "79161234567", "attributes": {"a": {"\\u0000": 1}}}', ["/attributes/a"]),
    "a lone surrogate": (b'{"phone": "79161234567", "attributes": {"a": ["\\ud800"]}}', ["/attributes/a/0"]),
    "a surrogate in a key": (b'{"\\udfff": 1}', [""]),
    "beyond int64": (b'{"phone": "79161234567", "attributes": {"a": 9223372036854775808}}', ["/attributes/a"]),
    "a huge float": (b'{"phone": "79161234567", "attributes": {"a": 1e999}}', ["/attributes/a"]),
    "nested": (b'{"attributes": ' + b'{"a":' * 40 + b"1" + b"}" * 41, ["/attributes" + "/a" * 31]),
}


async def test_faults_are_pointed_at(echo: Api) -> None:
    for name, (body, pointers) in FAULTS.items():
        assert (await echo.post("/echo", data=body)).pointers() == pointers, name


async def test_the_content_type_does_not_matter(echo: Api) -> None:
    for kind in ("application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded", "nonsense"):
        reply = await echo.post("/echo", data=b'{"phone": "79161234567"}', headers={"Content-Type": kind})
        assert reply.status == 200, kind
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    assert (await echo.post("/echo", data=b"{}", headers=form)).status == 400


async def test_at_most_a_hundred_faults_are_told(echo: Api) -> None:
    reply = await echo.post("/echo", data=b'{"tags": [' + b'"\\u0000",' * 9_000 + b"1]}")
    assert len(reply.pointers()) == 100


@pytest.mark.parametrize("chunked", [False, True])
async def test_too_large_a_body_is_a_413_and_the_connection_lives(echo: Api, chunked: bool) -> None:
    async def chunks(size: int) -> AsyncIterator[bytes]:
        for _ in range(size // 65536 + 1):
            yield b" " * 65536

    for size in (1024 * 1024 + 1, LARGEST_BODY + 1, 3 * LARGEST_BODY):
        reply = await echo.post("/echo", data=chunks(size) if chunked else b" " * size)
        assert (reply.status, reply.headers["Content-Type"]) == (413, "application/problem+json")
        assert (await echo.post("/echo", {"phone": "79161234567"})).status == 200


async def test_a_body_just_under_the_limit_is_read(echo: Api) -> None:
    body = b'{"phone": "79161234567"}'
    assert (await echo.post("/echo", data=body.ljust(1024 * 1024))).status == 200


async def test_where_no_body_is_wanted_an_empty_object_will_do(make_api: MakeApi) -> None:
    class Act(Handler):
        @operation()
        async def post(self) -> None:
            """Do something."""

    api = make_api(serving(act=Act))
    assert (await api.post("/act")).status == 200
    assert (await api.post("/act", {})).status == 200
    assert (await api.post("/act", {"a": 1})).pointers() == ["/a"]
    assert (await api.post("/act", data=b"{")).status == 400


# ---- paths, queries, conditions


async def test_ids_that_are_none(api: Api) -> None:
    large = ("9223372036854775808", "1" * 400)
    for name in ("0", "-1", "+1", "01", "1.0", "abc", "١", "%00", "%20", "%FF", "null", *large):
        for method in ("GET", "PATCH", "DELETE"):
            reply = await api.call(method, f"/clients/{name}", {} if method == "PATCH" else None)
            assert reply.status == (400 if name == "%FF" else 404), name


BAD_PARAMETERS = {
    "limit": ["0", "201", "-1", "1.0", "", "x", "1&limit=1", "%2B5", "٣"],
    "cursor": ["", "x", "W10", "WzFd%0A", "WzEsMl0", "%E4", "eyJhIjoxfQ", "A" * 1000],
    "tag": ["", "%00", "%ff", "%20", "x" * 65],
    "phone": ["1", "%2B", ""],
    "timezone": ["Mars", "localtime", "../UTC"],
    "operator_code": ["abc", "1" * 17],
    "unknown": ["1"],
}  # fmt: skip


async def test_bad_parameters_are_named(api: Api) -> None:
    for name, values in BAD_PARAMETERS.items():
        for value in values:
            reply = await api.get(f"/clients?{name}={value}")
            assert reply.pointers() == [name], (name, value)
            assert "parameter" in reply.json["errors"][0]


def forged(path: str, content: bytes) -> str:
    """A cursor of the list at ``path`` without filters, with any content and the right sums."""
    content = schemas.list_key(path, {}) + content
    return base64.urlsafe_b64encode(sha256(content).digest()[:6] + content).rstrip(b"=").decode()


async def test_a_cursor_is_of_one_list_and_its_filters(api: Api, db: Pool) -> None:
    """The size of a page may change; all else must be as it was: list, filter, and the cursor letter by letter."""
    await insert_clients(db, 5, tags=["vip"])
    mailings_of = [(await running(db, 3))[0] for _ in range(3)]
    lists = ["/clients", "/clients?tag=vip", "/clients?operator_code=916", "/mailings", "/mailings?status=running"]
    lists += [f"/mailings/{n}/messages{query}" for n in mailings_of for query in ("", "?status=waiting")]
    cursors = {}
    for path in lists:
        cursors[path] = (await api.get(path + ("&" if "?" in path else "?") + "limit=1")).json["next_cursor"]
        assert cursors[path], path
    for path, (other, cursor) in itertools.product(lists, cursors.items()):
        reply = await api.get(path + ("&" if "?" in path else "?") + f"limit=2&cursor={cursor}")
        if path == other:
            assert reply.status == 200
            assert len(reply.json["items"]) == 2
        else:
            assert reply.pointers() == ["cursor"], (path, other)
            assert "of another list, or of other filters" in reply.json["detail"]
    whole = cursors["/clients"]
    for broken in (
        whole[:-1],
        whole[:12],
        whole + "A",
        whole + "=",
        f"{whole[:-2]}{whole[-1]}{whole[-2]}",
        whole.swapcase(),
    ):
        reply = await api.get(f"/clients?cursor={broken}")
        assert reply.pointers() == ["cursor"], broken
        assert "cut or changed" in reply.json["detail"]


async def test_no_cursor_that_somebody_makes_up_is_our_fault(api: Api) -> None:
    """With the right sums: no list, too short, too long, of strings, floats, beyond 64 bits, and spelt otherwise."""
    assert (await api.get(f"/clients?cursor={forged('/api/v1/clients', b'[5]')}")).status == 200
    contents = (
        b"",
        b"[]",
        b"[1,2]",
        b'["1"]',
        b"[1e9]",
        b"[1] ",
        b"[99999999999999999999]",
        b'{"a":1}',
        b"[true]",
        b"\xff",
    )
    for content in contents:
        assert (await api.get(f"/clients?cursor={forged('/api/v1/clients', content)}")).pointers() == ["cursor"], (
            content
        )


async def test_addresses_are_taken_as_they_are_written(api: Api) -> None:
    """A slash more, or a letter percent-encoded, is another address; of the slash the answer says so."""
    reply = await api.get("/clients/")
    assert (reply.status, reply.json["type"]) == (404, "urn:notifier:not-found")
    assert "without the slash" in reply.json["detail"]
    async with aiohttp.ClientSession() as session, session.get(URL(f"{api.url}/api/v1/%63lients", encoded=True)) as raw:
        assert raw.status == 404


async def test_a_parameter_where_none_is_known_is_refused(api: Api) -> None:
    assert (await api.get("/clients/1?limit=1")).pointers() == ["limit"]
    assert (await api.post("/clients?a=1", {"phone": "79161234567"})).pointers() == ["a"]


async def test_if_match(api: Api) -> None:
    """A weak one counts: that is what a proxy that compresses answers makes of ours."""
    client = await clients.create(api.context.db, phone=79161234567)
    stale = ('"2"', 'W/"2"', '"abc"', '""', '"99999999999"')
    none = ("1", '"1', '"1", "2"', "")
    good = ('"1"', 'W/"2"', "*")  # each raises the version
    for header, status in [*((e, 412) for e in stale), *((e, 400) for e in none), *((e, 200) for e in good)]:
        reply = await api.patch(f"/clients/{client.id}", {"tags": []}, headers={"If-Match": header})
        assert reply.status == status, header


async def test_a_client_that_is_known_is_a_304(api: Api) -> None:
    """All of it changes with its version."""
    client = await clients.create(api.context.db, phone=79161234567)
    path = f"/clients/{client.id}"
    for known in ('"1"', 'W/"1"', '"7", "1"', "*"):
        for method in ("GET", "HEAD"):
            reply = await api.call(method, path, headers={"If-None-Match": known})
            assert (reply.status, reply.headers["ETag"], reply.body) == (304, '"1"', b""), known
            assert reply.headers["Vary"] == "Accept-Encoding"
    for other in ('"2"', '"11"', "1", "", 'W/"2", "x'):
        assert (await api.get(path, headers={"If-None-Match": other})).status == 200, other
    edited = await api.patch(path, {"tags": ["vip"]}, headers={"If-None-Match": '"2"'})
    assert (edited.status, edited.headers["ETag"]) == (200, '"2"')
    assert (await api.get(path, headers={"If-None-Match": '"1"'})).json == edited.json
    batch = {"items": [{"phone": "79161234567", "tags": ["new"]}]}
    assert (await api.post("/clients/batch", batch)).status == 200
    assert (await api.get(path, headers={"If-None-Match": '"2"'})).json["tags"] == ["new"]


async def test_what_changes_without_an_edit_is_never_a_304(api: Api, db: Pool) -> None:
    """A mailing that begins and ends, a gateway whose breaker opens: their version stays."""
    mailing_id, _ = await running(db, 1)
    for path in (f"/mailings/{mailing_id}", "/gateways/default"):
        first = await api.get(path)
        again = await api.get(path, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status, again.json) == (200, first.json)


# ---- repeated requests


async def test_a_key_that_is_none(api: Api) -> None:
    for key in ("", " ", "a b", "ä", "x" * 256):
        reply = await api.post("/clients", {"phone": "79161234567"}, headers={"Idempotency-Key": key})
        assert reply.status == 400, key


async def test_the_same_request_gets_the_same_answer_and_does_nothing(api: Api) -> None:
    key = {"Idempotency-Key": "k1"}
    first = await api.post("/clients", {"phone": "79161234567"}, headers=key)
    again = await api.post("/clients", {"phone": "79161234567"}, headers=key)
    assert (again.status, again.body) == (first.status, first.body)
    assert first.status == 201
    for name in ("Location", "ETag", "Content-Type"):
        assert again.headers[name] == first.headers[name]
    assert again.headers["X-Request-ID"] != first.headers["X-Request-ID"]
    other = await api.post("/clients", {"phone": "79161234568"}, headers=key)
    assert other.status == 422
    assert len((await api.get("/clients")).json["items"]) == 1


async def test_refusals_are_repeated_but_a_body_may_be_corrected(api: Api) -> None:
    client = await clients.create(api.context.db, phone=79161234567)
    taken, bad = {"Idempotency-Key": "taken"}, {"Idempotency-Key": "bad"}
    first = await api.post("/clients", {"phone": "79161234567"}, headers=taken)
    assert first.status == 409
    await clients.delete(api.context.db, client.id)
    again = await api.post("/clients", {"phone": "79161234567"}, headers=taken)
    assert (again.status, again.body, again.headers["Content-Type"]) == (409, first.body, "application/problem+json")

    assert (await api.post("/clients", {"phone": "x"}, headers=bad)).status == 422
    assert (await api.post("/clients", {"phone": "79161234567"}, headers=bad)).status == 201


async def test_keys_are_of_one_token_and_one_path(make_api: MakeApi) -> None:
    key = {"Idempotency-Key": "k"}
    api = make_api()
    assert (await api.post("/clients", {"phone": "79161234567"}, headers=key)).status == 201
    batch = {"items": [{"phone": "79161234568"}]}
    assert (await api.post("/clients/batch", batch, headers=key)).json["items"][0]["status"] == "created"
    other = make_api(tokens=bootstrap_token("another-token-0123456789"))
    other.token = "another-token-0123456789"
    assert (await other.post("/clients", {"phone": "79161234569"}, headers=key)).status == 201


class Slow(Handler):
    """Waits until it is released."""

    started: asyncio.Event
    release: asyncio.Event

    @operation(status=204)
    async def post(self) -> None:
        """Wait."""
        self.started.set()
        await self.release.wait()
        self.answer()


@pytest.fixture
def slow(make_api: MakeApi) -> Api:
    Slow.started, Slow.release = asyncio.Event(), asyncio.Event()
    return make_api(serving(slow=Slow))


async def test_while_the_first_is_under_way_the_second_is_told_so(slow: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idempotency, "WAIT", 0.2)
    key = {"Idempotency-Key": "k"}
    first = asyncio.ensure_future(slow.post("/slow", headers=key))
    await Slow.started.wait()
    assert (await slow.post("/slow", headers=key)).status == 409
    Slow.release.set()
    assert (await first).status == 204
    assert (await slow.post("/slow", headers=key)).status == 204


async def test_repeats_at_once_get_the_first_ones_answer(slow: Api) -> None:
    """While it is under way they wait for it; and none that comes later is told that it still is."""
    key = {"Idempotency-Key": "k"}
    first = asyncio.ensure_future(slow.post("/slow", headers=key))
    await Slow.started.wait()
    repeats = [asyncio.ensure_future(slow.post("/slow", headers=key)) for _ in range(5)]
    Slow.release.set()
    assert (await first).status == 204
    repeats += [asyncio.ensure_future(slow.post("/slow", headers=key)) for _ in range(32)]
    for reply in await asyncio.gather(*repeats):
        assert (reply.status, reply.headers["Idempotency-Replayed"]) == (204, "true")


async def test_what_is_kept_of_an_answer_about_a_person_does_not_outlive_the_person(api: Api, db: Pool) -> None:
    """A client is added and erased, and a message resolved: no answer with phone or name lies beside the key."""
    key = {"Idempotency-Key": "k"}
    body = {"phone": "79161234567", "attributes": {"name": "Anna"}}
    first = await api.post("/clients", body, headers=key)
    path = first.headers["Location"].removeprefix("/api/v1")
    assert (await api.patch(path, {"attributes": {"name": "Hanna"}})).status == 200
    again = await api.post("/clients", body, headers=key)
    assert (again.status, again.headers["Location"]) == (201, first.headers["Location"])
    assert (again.json["attributes"], again.headers["ETag"]) == ({"name": "Hanna"}, '"2"')
    assert again.headers["Idempotency-Replayed"] == "true"

    mailing_id, [message_id] = await running(db, 1)
    await db.execute("DELETE FROM batches")
    await insert_ledger(db, mailing_id, message_id, ("unknown", "unknown", "timeout"))
    for _ in range(2):
        resolved = await api.post(f"/messages/{message_id}/resolve", {"as": "sent"}, headers=key)
        assert (resolved.status, resolved.json["status"]) == (200, "sent")
        assert resolved.json["phone"] is not None
    await api.delete(f"/clients/{resolved.json['client_id']}")
    resolved = await api.post(f"/messages/{message_id}/resolve", {"as": "sent"}, headers=key)
    assert (resolved.status, resolved.json["phone"]) == (200, None)

    await api.delete(path)
    assert (await api.post("/clients", body, headers=key)).status == 404
    rows = str(await db.fetch("SELECT * FROM idempotency_keys"))
    assert rows.count("key=") == 2
    assert "7916" not in rows
    assert "anna" not in rows.lower()


async def test_nothing_of_the_people_in_a_batch_is_kept_beside_its_key(api: Api, db: Pool) -> None:
    """What is wrong with an item quotes from it: a phone, a key, a zone. The repeated request is told the same."""
    key = {"Idempotency-Key": "k"}
    body = {
        "items": [
            {"phone": "79161234567", "attributes": {"name": "Anna"}},
            {"phone": "79161234567; 79031234567"},
            {"phone": "+7 916 765-43-21", "attributes": {"Hanna\0": 1}},
        ]
    }
    first = await api.post("/clients/batch", body, headers=key)
    assert [each["status"] for each in first.json["items"]] == ["created", "invalid", "invalid"]
    assert "79031234567" in str(first.json)
    await api.patch(f"/clients/{first.json['items'][0]['id']}", {"tags": ["vip"]})
    again = await api.post("/clients/batch", body, headers=key)
    assert (again.status, again.headers["Idempotency-Replayed"]) == (200, "true")
    ids = [reply.headers["X-Request-ID"].encode() for reply in (first, again)]
    assert again.body == first.body.replace(*ids)
    found = (await api.get("/clients")).json["items"]
    assert [each["tags"] for each in found] == [["vip"]]  # it did nothing

    [row] = await db.fetch("SELECT * FROM idempotency_keys")
    kept = str(dict(row)).lower()
    assert not [word for word in ("7903", "7916", "anna") if word in kept], kept


async def test_after_a_failure_nothing_stands_and_the_key_is_free(make_api: MakeApi) -> None:
    class Fails(Handler):
        @operation(status=204)
        async def post(self) -> None:
            """Write, and fail the first time."""
            await clients.create(self.db, phone=79161234567)
            calls.append(None)
            if len(calls) == 1:
                raise RuntimeError
            self.answer()

    calls: list[None] = []
    api = make_api(serving(fails=Fails))
    key = {"Idempotency-Key": "k"}
    assert (await api.post("/fails", headers=key)).status == 500
    assert (await clients.page(api.context.db, limit=1))[0] == []
    assert (await api.post("/fails", headers=key)).status == 204
    assert (await api.post("/fails", headers=key)).status == 204
    assert len(calls) == 2


async def test_the_scheduler_is_woken_when_it_is_committed(make_api: MakeApi) -> None:
    class Wakes(Handler):
        @operation(status=204)
        async def post(self) -> None:
            """Write and wake."""
            await clients.create(self.db, phone=79161234567)
            self.wake()
            assert not api.woken
            self.answer()

    api = make_api(serving(wakes=Wakes))
    assert (await api.post("/wakes", headers={"Idempotency-Key": "k"})).status == 204
    assert len(api.woken) == 1


# ---- the database away


async def test_without_a_database_the_api_says_when_to_come_again(make_api: MakeApi) -> None:
    pool = await create_pool("postgresql://nobody@127.0.0.1:9/none", size=1, application_name="test")
    api = make_api(db=pool)
    for method, path, body in (("GET", "/clients", None), ("POST", "/clients", {"phone": "79161234567"})):
        reply = await api.call(method, path, body, headers={"Idempotency-Key": "k"})
        assert (reply.status, reply.headers["Retry-After"]) == (503, "2")
    assert (await api.get("//healthz")).status == 200
    pool.terminate()


# ---- bodies that cost more than their bytes


async def test_a_byte_order_mark_is_no_fault(api: Api) -> None:
    reply = await api.post("/clients", data=b'\xef\xbb\xbf{"phone": "79161234567"}')
    assert (reply.status, reply.json["phone"]) == (201, "79161234567")
    assert (await api.post("/clients", data=b"\xef\xbb\xbf")).status == 400


@pytest.mark.parametrize("part", [b"{},", b"1,", b"[],"])
async def test_a_body_of_too_many_values_is_not_parsed(api: Api, part: bytes) -> None:
    reply = await api.post("/clients/batch", data=b'{"items": [' + part * 600_000 + b"1]}")
    assert (reply.status, reply.json["type"]) == (413, "urn:notifier:too-large")
    assert "500000 commas and brackets" in reply.json["detail"]


async def test_members_are_counted_before_they_are_looked_at(api: Api) -> None:
    for items in (b"{}," * 100_000, b"1," * 1_000):
        reply = await api.post("/clients/batch", data=b'{"items": [' + items + b"1]}")
        assert reply.pointers() == ["/items"]


async def test_an_item_of_too_many_values_is_refused_by_itself(api: Api) -> None:
    items = [{"phone": "79161234567", "attributes": {"a": [1] * 10_001}}, {"phone": "79161234568"}]
    reply = await api.post("/clients/batch", {"items": items})
    first, second = reply.json["items"]
    assert (first["status"], second["status"]) == ("invalid", "created")
    assert [each["pointer"] for each in first["problem"]["errors"]] == ["/attributes/a"]
    assert "10000 values" in first["problem"]["detail"]


async def test_ten_faults_are_told_of_an_item(api: Api) -> None:
    items = [{"phone": "79161234567", **{f"key{n}": n for n in range(100)}}] * 2
    reply = await api.post("/clients/batch", {"items": items})
    assert [len(each["problem"]["errors"]) for each in reply.json["items"]] == [10, 10]


async def test_large_bodies_take_turns_and_nobody_waits_for_ever(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [{"phone": str(79161230000 + n), "attributes": {"a": "b" * 1000}} for n in range(100)]
    large = json.dumps({"items": items}).encode()
    assert len(large) > handlers.LARGE
    bodies = api.context.large_bodies
    async with bodies.turn(1):
        waiting = asyncio.ensure_future(api.post("/clients/batch", data=large))
        small = await api.post("/clients", {"phone": "79031234567"})
        assert (small.status, waiting.done()) == (201, False)
    assert (await waiting).status == 200
    monkeypatch.setattr(budgets, "TURN_WAIT", 0.1)
    async with bodies.turn(1):
        reply = await api.post("/clients/batch", data=large)
        assert (reply.status, reply.json["type"], reply.headers["Retry-After"]) == (503, "urn:notifier:busy", "2")
    monkeypatch.setattr(budgets, "TURN_WAIT", 60.0)
    async with bodies.turn(budgets.TURN_BYTES - 1000):
        assert (await api.post("/clients/batch", data=large)).status == 503
    assert (await api.post("/clients/batch", data=large)).status == 200
