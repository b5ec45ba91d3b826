from __future__ import annotations

from typing import Any

from notifier.storage import gateways
from notifier.storage.database import Pool
from notifier.web.context import GatewayDefaults
from tests.web.conftest import Api, MakeApi

DEFAULT: dict[str, Any] = {
    "name": "default",
    "url": "http://127.0.0.1:9",
    "state": "running",
    "reason": None,
    "detail": None,
    "concurrency": 100,
    "rate": 0.0,
    "timeout": 15.0,
    "on_unknown": "retry",
    "paused_until": None,
    "breaker": {"state": "closed", "retry_at": None, "detail": None},
    "last_errors": [],
}


async def test_a_gateway_shows_the_settings_until_it_is_told_otherwise(api: Api) -> None:
    read = await api.get("/gateways/default")
    assert (read.status, read.json, read.headers["ETag"]) == (200, DEFAULT, '"1"')
    assert list(read.json) == list(DEFAULT)
    assert (await api.get("/gateways")).json == {"items": [DEFAULT], "next_cursor": None}

    changed = await api.patch("/gateways/default", {"concurrency": 7, "rate": 2})
    assert changed.status == 200
    assert changed.headers["ETag"] == '"2"'
    assert changed.json == {**DEFAULT, "concurrency": 7, "rate": 2.0} == (await api.get("/gateways/default")).json
    assert (await api.patch("/gateways/default", {"rate": 0.5})).json["concurrency"] == 7
    assert (await api.patch("/gateways/default", {"concurrency": None, "rate": None})).json == DEFAULT
    assert len(api.woken) == 3


BAD: list[tuple[dict[str, Any], str]] = [
    ({"concurrency": 0}, "/concurrency"),
    ({"concurrency": 10_001}, "/concurrency"),
    ({"concurrency": True}, "/concurrency"),
    ({"concurrency": 1.5}, "/concurrency"),
    ({"concurrency": "5"}, "/concurrency"),
    ({"rate": -1}, "/rate"),
    ({"rate": "5"}, "/rate"),
    ({"rate": False}, "/rate"),
    ({"rate": 1e300}, "/rate"),
    ({"rate": 1e-300}, "/rate"),
    ({"rate": [1]}, "/rate"),
    ({"url": "http://example.com"}, "/url"),
]


async def test_bad_limits_are_refused(api: Api) -> None:
    for body, pointer in BAD:
        assert (await api.patch("/gateways/default", body)).pointers() == [pointer], body
    assert (await api.get("/gateways/default")).json == DEFAULT


async def test_a_rate_that_is_no_number_is_no_json(api: Api) -> None:
    for text in (b'{"rate": NaN}', b'{"rate": Infinity}'):
        assert (await api.call("PATCH", "/gateways/default", data=text)).status == 400
    assert (await api.call("PATCH", "/gateways/default", data=b'{"rate": 1e999}')).pointers() == ["/rate"]


async def test_a_gateway_is_stopped_and_started_by_hand(api: Api, db: Pool) -> None:
    paused = await api.post("/gateways/default/pause")
    assert (paused.status, paused.json["state"], paused.json["reason"]) == (200, "paused", "operator")
    assert (await api.post("/gateways/default/resume")).json == DEFAULT

    why = "The gateway answered 401: no such token."
    await gateways.misconfigured(db, "default", "unauthorized", why)
    found = (await api.get("/gateways/default")).json
    assert (found["state"], found["reason"], found["detail"]) == ("misconfigured", "unauthorized", why)
    assert (await api.post("/gateways/default/resume")).json == DEFAULT
    assert len(api.woken) == 3


async def test_a_change_of_an_older_version_is_refused(api: Api) -> None:
    await api.post("/gateways/default/pause")
    stale = {"If-Match": '"1"'}
    assert (await api.patch("/gateways/default", {"rate": 1}, headers=stale)).status == 412
    assert (await api.post("/gateways/default/resume", headers=stale)).status == 412
    assert (await api.get("/gateways/default")).json["state"] == "paused"


async def test_the_last_errors_and_the_breaker_are_shown(api: Api, db: Pool) -> None:
    error = {"at": "2026-03-01T09:00:00.000000Z", "outcome": "unavailable", "status_code": 503, "reason": "unavailable"}
    seen = {"first_at": "2026-03-01T08:00:00.000000Z", "count": 7, "message_id": 12, "detail": "down for <b>repair</b>"}
    await gateways.note_errors(db, "default", [error | seen])
    await gateways.open_breaker(db, "default", "The gateway answered 503: down for repair.")

    found = (await api.get("/gateways/default")).json

    assert found["last_errors"] == [error | seen]
    assert found["breaker"]["state"] == "open"
    assert found["breaker"]["detail"] == "The gateway answered 503: down for repair."
    assert found["breaker"]["retry_at"].endswith("Z")


async def test_an_error_that_an_older_version_noted_is_shown_whole(api: Api, db: Pool) -> None:
    error = {"at": "2026-03-01T09:00:00.000000Z", "outcome": "unavailable", "status_code": 503, "reason": "unavailable"}
    await db.execute("UPDATE gateways SET last_errors = $1", [error])
    [found] = (await api.get("/gateways/default")).json["last_errors"]
    assert found == {**error, "first_at": error["at"], "count": 1, "message_id": None, "detail": None}


async def test_an_address_is_shown_without_credentials(make_api: MakeApi) -> None:
    api = make_api(
        gateway=GatewayDefaults("https://me:secret@sms.example.com:8443/base/tok-5ecret9", 5, 2.5, 10.0, "hold")
    )
    found = (await api.get("/gateways/default")).json
    assert found["url"] == "https://sms.example.com:8443/base/***"
    assert (found["concurrency"], found["rate"], found["timeout"], found["on_unknown"]) == (5, 2.5, 10.0, "hold")


async def test_without_an_address_it_is_unconfigured(make_api: MakeApi) -> None:
    api = make_api(gateway=GatewayDefaults(None, 100, 0.0, 15.0, "retry"))
    assert (await api.get("/gateways/default")).json == {**DEFAULT, "url": None, "state": "unconfigured"}


async def test_there_is_no_other_gateway(api: Api) -> None:
    for name in ("other", "%00", "a%2Fb", "%D1%8F"):
        assert (await api.get(f"/gateways/{name}")).status == 404, name
        assert (await api.patch(f"/gateways/{name}", {"rate": 1})).status == 404, name
        for verb in ("pause", "resume"):
            assert (await api.post(f"/gateways/{name}/{verb}")).status == 404, name


async def test_the_list_has_pages_like_any_other(api: Api, db: Pool) -> None:
    await db.execute("INSERT INTO gateways (name) VALUES ('a'), ('b')")
    first = (await api.get("/gateways?limit=2")).json
    second = (await api.get(f"/gateways?limit=2&cursor={first['next_cursor']}")).json
    assert [item["name"] for item in first["items"] + second["items"]] == ["a", "b", "default"]
    assert second["next_cursor"] is None
    assert (await api.get("/gateways?cursor=x")).pointers() == ["cursor"]
