"""What the fields of a mailing may hold, and what is said of the rest."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from tests.web.conftest import Api
from tests.web.mailing_scenes import LATER, made


async def test_little_is_required(api: Api) -> None:
    """A mailing without a start begins now; nulls say the same as nothing."""
    least: dict[str, Any] = {"text": "Hi", "ends_at": "2100-01-01T00:00:00Z"}
    nulls = {**least, "name": None, "window": None, "starts_at": None, "filter": {}, "draft": False}
    for body in (least, nulls):
        made = (await api.post("/mailings", body)).json
        assert (made["name"], made["filter"], made["window"], made["priority"]) == (None, {}, None, 0)
        started = datetime.fromisoformat(made["starts_at"])
        assert abs(datetime.now(UTC) - started) < timedelta(seconds=10)
        assert made["starts_at"] == made["created_at"]


SAID: list[tuple[dict[str, Any], str, str]] = [
    # what is refused, where, and what is said of it
    ({"window": {"from": "9:00", "to": "21:00"}}, "/window/from", "two digits for the hour"),
    ({"window": {"from": "09:00:30", "to": "21:00"}}, "/window/from", "a colon, two digits for the minute, like 09:00"),
    ({"window": {"from": "24:00", "to": "09:00"}}, "/window/from", "the day begins at 00:00"),
    ({"window": {"from": "00:00", "to": "24:00"}}, "/window/to", "a window of null is the whole day"),
    ({"ends_at": "2027-01-31T09:00:00+03:60"}, "/ends_at", "its minutes 00 to 59"),
    ({"ends_at": "2027-01-31T09:00:00+24:00"}, "/ends_at", "its hours are 00 to 23"),
    ({"ends_at": "2200-12-31T23:59:59-23:59"}, "/ends_at", "must lie in the years 1970 to 2200, in UTC"),
    ({"starts_at": "1970-01-01T00:00:00+00:01"}, "/starts_at", "must lie in the years 1970 to 2200, in UTC"),
    ({"ends_at": "9999-12-31T23:59:59-01:00"}, "/ends_at", "must lie in the years 1970 to 2200, in UTC"),
    ({"text": "\u200b\ufeff \u2060\u202e\u00ad\u2800"}, "/text", "consists of U+200B, U+FEFF, U+2060, U+202E, U+00AD"),
    ({"text": "\u2800"}, "/text", "has nothing that anybody sees: it consists of U+2800"),
    ({"name": "\ufe0f"}, "/name", "has nothing that anybody sees"),
    ({"text": "Hi {{name}}!"}, "/text", "has “{{name}}” at character 4"),
    ({"text": "Здравствуйте, {{ имя | друг }}"}, "/text", "has “{{ имя | друг }}” at character 15"),
]


async def test_what_is_said_of_times_and_texts(api: Api) -> None:
    mailing = (await api.post("/mailings", {"text": "Hi", "ends_at": "2100-01-01T00:00:00Z", "draft": True})).json
    for fields, pointer, said in SAID:
        whole = {"text": "Hi", "ends_at": "2100-01-01T00:00:00Z"} | fields
        for reply in (await api.post("/mailings", whole), await api.patch(f"/mailings/{mailing['id']}", fields)):
            assert reply.pointers() == [pointer], fields
            assert said in reply.json["errors"][0]["detail"]


async def test_a_window_may_end_with_the_day(api: Api) -> None:
    """24:00 is ISO 8601's end of a day; it is stored, and comes out, as 00:00, and that goes in again."""
    body = {"text": "Hi", "ends_at": "2100-01-01T00:00:00Z", "window": {"from": "09:00", "to": "24:00"}}
    made = (await api.post("/mailings", body)).json
    assert made["window"] == {"from": "09:00", "to": "00:00"}
    changed = await api.patch(f"/mailings/{made['id']}", {"window": made["window"]})
    assert changed.json["window"] == made["window"]


async def test_what_times_come_out_go_in_again(api: Api) -> None:
    for ends_at in ("2200-12-31T23:59:59.999999Z", "2200-12-31T12:00:00-11:59", "2100-06-30T23:59:59.123456789+14:00"):
        made = (await api.post("/mailings", {"text": "Hi", "ends_at": ends_at})).json
        changed = await api.patch(f"/mailings/{made['id']}", {"ends_at": made["ends_at"]})
        assert (changed.status, changed.json["ends_at"]) == (200, made["ends_at"])
    early = {"text": "Hi", "ends_at": "2100-01-01T00:00:00Z", "starts_at": "1969-12-31T19:00:00-05:00"}
    assert (await api.post("/mailings", early)).json["starts_at"] == "1970-01-01T00:00:00.000000Z"


async def test_braces_that_are_no_placeholder(api: Api) -> None:
    for text in ("{name}", "{{}}", "{{ }}", "a {{ b", "}} {{"):
        assert (await api.post("/mailings", {"text": text, "ends_at": "2100-01-01T00:00:00Z"})).json["text"] == text


BAD: list[tuple[dict[str, Any], str]] = [
    ({"text": None}, "/text"),
    ({"text": 5}, "/text"),
    ({"text": ""}, "/text"),
    ({"text": " \n\t"}, "/text"),
    ({"text": "x" * 10_001}, "/text"),
    ({"text": "a\0b"}, "/text"),
    ({"name": ""}, "/name"),
    ({"name": "x" * 201}, "/name"),
    ({"name": ["x"]}, "/name"),
    ({"filter": None}, "/filter"),
    ({"filter": []}, "/filter"),
    ({"filter": {"tags": []}}, "/filter/tags"),
    ({"filter": {"tags": "vip"}}, "/filter/tags"),
    ({"filter": {"tags": ["a", 5]}}, "/filter/tags/1"),
    ({"filter": {"tags": ["a"] * 1001}}, "/filter/tags"),
    ({"filter": {"operator_codes": None}}, "/filter/operator_codes"),
    ({"filter": {"operator_codes": [916]}}, "/filter/operator_codes/0"),
    ({"filter": {"operator_codes": ["x"]}}, "/filter/operator_codes/0"),
    ({"filter": {"operator_codes": [f"{n}" for n in range(1001)]}}, "/filter/operator_codes"),
    ({"filter": {"phones": ["79161234567"]}}, "/filter/phones"),
    ({"window": []}, "/window"),
    ({"window": {"from": "09:00"}}, "/window/to"),
    ({"window": {"from": "09:00", "to": "09:00"}}, "/window/to"),
    ({"window": {"from": "9:00", "to": "21:00"}}, "/window/from"),
    ({"window": {"from": "24:00", "to": "09:00"}}, "/window/from"),
    ({"window": {"from": "00:00", "to": "24:00"}}, "/window/to"),
    ({"window": {"from": "09:00", "to": "24:01"}}, "/window/to"),
    ({"window": {"from": "09:00", "to": "21:00:00"}}, "/window/to"),
    ({"window": {"from": "09:00", "to": "21:00\n"}}, "/window/to"),
    ({"window": {"from": 9, "to": "21:00"}}, "/window/from"),
    ({"window": {"from": "09:00", "to": "21:00", "zone": "UTC"}}, "/window/zone"),
    ({"priority": 11}, "/priority"),
    ({"priority": -11}, "/priority"),
    ({"priority": True}, "/priority"),
    ({"priority": "1"}, "/priority"),
    ({"priority": 1.5}, "/priority"),
    ({"priority": None}, "/priority"),
    ({"priority": 2**63}, "/priority"),
    ({"starts_at": "2100-01-01T00:00:00"}, "/starts_at"),
    ({"starts_at": "soon"}, "/starts_at"),
    ({"starts_at": 4102444800}, "/starts_at"),
    ({"ends_at": None}, "/ends_at"),
    ({"ends_at": "2100-13-01T00:00:00Z"}, "/ends_at"),
    ({"ends_at": LATER["starts_at"]}, "/ends_at"),
    ({"ends_at": "2099-12-31T00:00:00Z"}, "/ends_at"),
    ({"starts_at": "2020-01-01T00:00:00Z", "ends_at": "2020-01-02T00:00:00Z"}, "/ends_at"),
    ({"colour": "red"}, "/colour"),
    ({"status": "running"}, "/status"),
]


async def test_a_bad_mailing_is_refused_with_a_pointer_and_changes_nothing(api: Api) -> None:
    mailing = await made(api)
    path = f"/mailings/{mailing['id']}"
    for changes, pointer in BAD:
        assert (await api.post("/mailings", {**LATER, **changes})).pointers() == [pointer], changes
        assert (await api.patch(path, changes)).pointers() == [pointer], changes
    assert (await api.get("/mailings")).json["items"] == [mailing]
    assert len(api.woken) == 1


async def test_what_is_missing_is_pointed_at(api: Api) -> None:
    assert sorted((await api.post("/mailings", {"draft": 1})).pointers()) == ["/draft", "/ends_at", "/text"]
    assert (await api.patch(f"/mailings/{(await made(api))['id']}", {"draft": True})).pointers() == ["/draft"]


async def test_the_bounds_themselves_are_accepted(api: Api) -> None:
    many = [f"{n:03}" for n in range(1000)]
    mailing = await made(
        api, text="я" * 10_000, name="я" * 200, priority=10, filter={"operator_codes": many, "tags": many}
    )
    assert mailing["filter"] == {"operator_codes": many, "tags": many}
