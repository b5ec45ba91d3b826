"""What the API reads: bodies that are no JSON, too large, costly or wrong, and parameters."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator

import pytest

from notifier.web import budgets, handlers, schemas
from notifier.web.base import LARGEST_BODY
from notifier.web.handlers import Handler
from notifier.web.operations import operation
from tests.web.conftest import Api, MakeApi
from tests.web.serving import serving


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


async def test_a_parameter_where_none_is_known_is_refused(api: Api) -> None:
    assert (await api.get("/clients/1?limit=1")).pointers() == ["limit"]
    assert (await api.post("/clients?a=1", {"phone": "79161234567"})).pointers() == ["a"]


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
