from __future__ import annotations

import json
import time
from typing import Any

from notifier.models import Client
from notifier.storage import clients
from notifier.web import schemas
from notifier.web.showing import show
from tests.web.conftest import Api

ANNA = {"phone": "+7 (916) 123-45-67", "tags": ["vip"], "timezone": "Europe/Moscow", "attributes": {"n": 1}}


async def test_a_client_is_made_read_changed_and_erased(api: Api) -> None:
    made = await api.post("/clients", ANNA)
    assert made.status == 201, made.body
    path = f"/clients/{made.json['id']}"
    assert made.headers["Location"] == f"/api/v1{path}"
    assert made.headers["ETag"] == '"1"'
    assert list(made.json) == [
        "id", "phone", "operator_code", "tags", "timezone", "attributes", "created_at", "updated_at",
    ]  # fmt: skip
    assert made.json["phone"] == "79161234567"
    assert made.json["operator_code"] == "916"

    read = await api.get(path)
    assert (read.status, read.json) == (200, made.json)

    changed = await api.patch(path, {"timezone": None, "tag": "new"})
    assert changed.status == 200
    assert changed.headers["ETag"] == '"2"'
    assert {**changed.json, "updated_at": 0} == {**made.json, "timezone": None, "tags": ["new"], "updated_at": 0}

    assert (await api.delete(path)).status == 204
    assert (await api.get(path)).status == 404
    assert (await api.delete(path)).status == 404


async def test_a_client_of_a_phone_alone(api: Api) -> None:
    made = (await api.post("/clients", {"phone": "89161234567"})).json
    assert (made["tags"], made["timezone"], made["attributes"]) == ([], None, {})


async def test_a_taken_phone_is_told_with_who_has_it(api: Api) -> None:
    anna = await clients.create(api.context.db, phone=79161234567)
    boris = await clients.create(api.context.db, phone=79161234568)
    made = await api.post("/clients", {"phone": "8 916 123 45 67"})
    moved = await api.patch(f"/clients/{boris.id}", {"phone": "+79161234567"})
    assert [(reply.status, reply.json["client_id"]) for reply in (made, moved)] == [(409, anna.id)] * 2


async def test_a_new_phone_brings_its_operator(api: Api) -> None:
    client = await clients.create(api.context.db, phone=79161234567)
    assert (await api.patch(f"/clients/{client.id}", {"phone": "79261234567"})).json["operator_code"] == "926"
    changed = await api.patch(f"/clients/{client.id}", {"phone": "79031234567", "operator_code": "916"})
    assert changed.json["operator_code"] == "916"
    assert (await api.patch(f"/clients/{client.id}", {"tags": []})).json["operator_code"] == "916"


async def test_one_person_is_one_client_in_whatever_spelling(api: Api) -> None:
    """Trunk digits, invisible characters, digits of other scripts and a spreadsheet's marks make no second client."""
    spellings = {
        "491713920012": ["+49 171 3920012", "+49 (0)171 3920012", "0049 171 3920012", "8 10 49 171 3920012"],
        "79161234567": ["79161234567", "+7 8 916 123-45-67", "\u202a+7 916 123-45-67\u202c", "＋７９１６１２３４５６７",
                        "'+79161234567", '="79161234567"', "7.9161234567E10"],
        "5491112345678": ["+54 9 11 1234 5678", "+54 11 15 1234 5678"],
    }  # fmt: skip
    for phone, written in spellings.items():
        results = (await api.post("/clients/batch", {"items": [{"phone": each} for each in written]})).json["items"]
        assert [each["status"] for each in results] == ["created"] + ["updated"] * (len(written) - 1)
        assert len({each["id"] for each in results}) == 1
        client = (await api.get(f"/clients/{results[0]['id']}")).json
        assert client["phone"] == phone
        for each in written:
            assert await listed(api, phone=each) == [client["id"]]


async def test_every_door_says_the_same_of_what_is_no_phone(api: Api) -> None:
    client = await clients.create(api.context.db, phone=79160000000)
    for phone, why in {
        "80671234567": "begins with 8 0",
        "70000000000": "cannot exist",
        "79161234567; 79031234567": "a second number, “79031234567”",
        "+7 916 12З-45-67": "“З” (U+0417, CYRILLIC CAPITAL LETTER ZE) at character 10",
        " " * 65: "has 65 characters",
    }.items():
        made = await api.post("/clients", {"phone": phone})
        changed = await api.patch(f"/clients/{client.id}", {"phone": phone})
        searched = await api.get("/clients", params={"phone": phone})
        batch = (await api.post("/clients/batch", {"items": [{"phone": phone}]})).json["items"][0]["problem"]
        assert (made.status, changed.status, searched.status, batch["status"]) == (422, 422, 422, 422)
        said = [each["errors"] for each in (made.json, changed.json, batch)]
        assert said == [[{"pointer": "/phone", "detail": said[0][0]["detail"]}]] * 3
        assert why in said[0][0]["detail"]
        assert searched.json["errors"] == [{"parameter": "phone", "detail": said[0][0]["detail"]}]


async def test_operators_of_other_countries(api: Api) -> None:
    """What the country calls its code, not just three digits."""
    made = await api.post("/clients", {"phone": "+44 7911 123456"})
    assert made.json["operator_code"] == "7911"
    assert await listed(api, operator_code="7911") == [made.json["id"]]
    kazakh = await api.post("/clients", {"phone": "8 701 123 45 67"})
    assert kazakh.json["operator_code"] == "701"


async def test_the_zone_that_was_meant_is_proposed(api: Api) -> None:
    client = await clients.create(api.context.db, phone=79160000000)
    for zone in ("Europe/moscow", "Russian Standard Time", "MSK", "UTC+3", "(UTC+03:00) Moscow"):
        said = "is no time zone: did you mean Europe/Moscow?"
        made = await api.post("/clients", {"phone": "79161234567", "timezone": zone})
        assert made.json["errors"] == [{"pointer": "/timezone", "detail": said}]
        changed = await api.patch(f"/clients/{client.id}", {"timezone": zone})
        assert changed.json["errors"] == [{"pointer": "/timezone", "detail": said}]
        searched = await api.get("/clients", params={"timezone": zone})
        assert searched.json["errors"] == [{"parameter": "timezone", "detail": said}]


BAD: list[tuple[dict[str, Any], list[str]]] = [
    ({"phone": None}, ["/phone"]),
    ({"phone": 79161234567}, ["/phone"]),
    ({"phone": "abc"}, ["/phone"]),
    ({"operator_code": "12a"}, ["/operator_code"]),
    ({"operator_code": ""}, ["/operator_code"]),
    ({"operator_code": "1" * 17}, ["/operator_code"]),
    ({"operator_code": 916}, ["/operator_code"]),
    ({"timezone": "Mars/Base"}, ["/timezone"]),
    ({"timezone": "localtime"}, ["/timezone"]),
    ({"timezone": "../../etc/passwd"}, ["/timezone"]),
    ({"timezone": "/etc/passwd"}, ["/timezone"]),
    ({"timezone": "europe/moscow"}, ["/timezone"]),
    ({"timezone": ""}, ["/timezone"]),
    ({"tags": "vip"}, ["/tags"]),
    ({"tags": None}, ["/tags"]),
    ({"tags": {"a": 1}}, ["/tags"]),
    ({"tags": ["a", 1, "", " ", "x" * 65, None]}, ["/tags/1", "/tags/2", "/tags/3", "/tags/4", "/tags/5"]),
    ({"tags": ["x"] * 51}, ["/tags"]),
    ({"tag": "a", "tags": ["b"]}, ["/tag"]),
    ({"tag": ""}, ["/tag"]),
    ({"attributes": []}, ["/attributes"]),
    ({"attributes": None}, ["/attributes"]),
    ({"attributes": {"a": "x" * 16384}}, ["/attributes"]),
    ({"id": 1}, ["/id"]),
    ({"": 1}, ["/"]),
]


async def test_bad_fields_are_pointed_at_and_change_nothing(api: Api) -> None:
    client = await clients.create(api.context.db, phone=79160000000)
    for fields, pointers in BAD:
        assert (await api.post("/clients", {"phone": "79161234567", **fields})).pointers() == pointers, fields
        assert (await api.patch(f"/clients/{client.id}", fields)).pointers() == pointers, fields
    assert await clients.page(api.context.db, limit=10) == ([client], None)


async def test_what_is_just_allowed(api: Api) -> None:
    client = {
        "phone": "79161234567",
        "tags": [f"{n:064}" for n in range(50)],
        "timezone": "Asia/Kathmandu",
        "attributes": {"é": "😀", "deep": [[[{"a": None}]]], "n": 2**63 - 1, "f": 1.5, "x": 1e300},
        "operator_code": "0" * 16,
    }
    made = await api.post("/clients", client)
    assert made.status == 201, made.body
    assert made.json | client == made.json
    assert (await api.get(made.headers["Location"].removeprefix("/api/v1"))).json == made.json


async def test_a_change_of_nothing_changes_nothing(api: Api) -> None:
    body = {"text": "Hi", "ends_at": "2100-01-01T00:00:00Z"}
    made = [await api.post("/clients", {"phone": "79161234567"}), await api.post("/mailings", body)]
    for path in ("/gateways/default", *(each.headers["Location"].removeprefix("/api/v1") for each in made)):
        before = await api.get(path)
        again = await api.patch(path, {}, headers={"If-Match": before.headers["ETag"]})
        assert (again.status, again.json, again.headers["ETag"]) == (200, before.json, before.headers["ETag"]), path
        assert (await api.patch(path, {}, headers={"If-Match": '"9"'})).status == 412


async def test_white_space_around_a_tag_is_dropped(api: Api) -> None:
    made = await api.post("/clients", {"phone": "79161234567", "tags": [" a", "a\n", "b c"]})
    assert made.json["tags"] == ["a", "b c"]
    assert len((await api.get("/clients?tag=a%20")).json["items"]) == 1
    mailing = {"text": "Hi", "ends_at": "2100-01-01T00:00:00Z", "filter": {"tags": ["a "]}}
    assert (await api.post("/mailings", mailing)).json["filter"] == {"tags": ["a"]}


async def test_control_characters_are_refused(api: Api) -> None:
    mailing = {"ends_at": "2100-01-01T00:00:00Z"}
    for text in ("\a", "a\x1b[31m", "\x7f", "\x0b"):
        assert (await api.post("/mailings", {**mailing, "text": f"Hi{text}"})).pointers() == ["/text"]
        assert (await api.post("/mailings", {**mailing, "text": "Hi", "name": f"n{text}"})).pointers() == ["/name"]
        assert (await api.post("/clients", {"phone": "79161234567", "tags": [f"t{text}"]})).pointers() == ["/tags/0"]
    kept = "Hi\tyou\r\nthere \U0001f600\u200d\u2028"
    assert (await api.post("/mailings", {**mailing, "text": kept})).json["text"] == kept


async def test_tags_said_twice_are_kept_once(api: Api) -> None:
    assert (await api.post("/clients", {"phone": "79161234567", "tags": ["b", "a", "b"]})).json["tags"] == ["b", "a"]


async def listed(api: Api, **params: Any) -> list[int]:
    """The ids of a whole list, page by page."""
    ids: list[int] = []
    while True:
        page = (await api.get("/clients", params=params)).json
        assert len(page["items"]) <= int(params.get("limit", 50))
        ids += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            return ids
        params["cursor"] = page["next_cursor"]


async def many(api: Api) -> list[Client]:
    zones = ["Europe/Moscow", None, "Asia/Omsk"]
    items: list[dict[str, Any]] = [
        {
            "phone": 79160000000 + n,
            "operator_code": str(916 + n % 2),
            "tags": ["all", f"t{n % 5}"],
            "timezone": zones[n % 3],
        }
        for n in range(60)
    ]
    await clients.upsert(api.context.db, items)
    found, _ = await clients.page(api.context.db, limit=100)
    return found


async def test_lists_are_newest_first_and_complete(api: Api) -> None:
    everybody = await many(api)
    assert await listed(api) == [client.id for client in everybody]
    assert await listed(api, limit=7) == [client.id for client in everybody]
    assert await listed(api, limit=60) == [client.id for client in everybody]
    page = (await api.get("/clients", params={"limit": 60})).json
    assert page["next_cursor"] is None


async def test_filters(api: Api) -> None:
    everybody = await many(api)

    def those(**wanted: Any) -> list[int]:
        tag = wanted.pop("tag", "all")
        return [
            client.id
            for client in everybody
            if tag in client.tags and all(getattr(client, key) == value for key, value in wanted.items())
        ]

    assert await listed(api, phone="8 (916) 000-00-07") == those(phone=79160000007)
    assert await listed(api, phone="79169999999") == []
    assert await listed(api, operator_code="916", limit=7) == those(operator_code="916")
    assert await listed(api, timezone="Asia/Omsk", limit=7) == those(timezone="Asia/Omsk")
    assert await listed(api, tag="t3", limit=5) == those(tag="t3")
    assert await listed(api, tag="none") == []
    both = {"operator_code": "917", "timezone": "Europe/Moscow"}
    assert await listed(api, limit=3, **both) == those(**both)
    assert await listed(api, limit=3, tag="t1", **both) == those(tag="t1", **both)
    assert await listed(api, phone="79160000007", tag="t1") == []


async def test_a_list_stays_whole_while_it_grows(api: Api) -> None:
    everybody = await many(api)
    first = (await api.get("/clients", params={"limit": 10})).json
    await api.post("/clients", {"phone": "79169999999"})
    rest = await listed(api, cursor=first["next_cursor"])
    assert [item["id"] for item in first["items"]] + rest == [client.id for client in everybody]


async def test_a_batch_adds_changes_and_says_what_is_wrong(api: Api) -> None:
    anna = await clients.create(api.context.db, phone=79161234567, tags=["old"], timezone="Asia/Omsk")
    items = [
        {"phone": "+7 916 123-45-67", "tags": ["vip"]},
        {"phone": "89261234567", "tag": "new"},
        {"phone": "nonsense", "tags": ["a", 1]},
        "no object",
        {"phone": "79031234567", "attributes": {"a\0": 1}},
        {"phone": "79261234567", "timezone": "Europe/Moscow"},
        None,
        {"phone": "79161234567", "unknown\ud800": 1},
    ]
    reply = await api.call("POST", "/clients/batch", data=json.dumps({"items": items}).encode())
    assert reply.status == 200, reply.body
    results = reply.json["items"]
    assert [each["index"] for each in results] == list(range(8))
    assert [each["status"] for each in results] == [
        "updated", "created", "invalid", "invalid", "invalid", "updated", "invalid", "invalid",
    ]  # fmt: skip
    assert results[0]["id"] == anna.id
    assert results[1]["id"] == results[5]["id"]
    pointers = [
        [error["pointer"] for error in each["problem"]["errors"]] for each in results if each["problem"] is not None
    ]
    assert pointers == [["/phone", "/tags/1"], [""], ["/attributes"], [""], [""]]
    assert all((each["id"] is None) == (each["problem"] is not None) for each in results)

    anna_now = await clients.get(api.context.db, anna.id)
    assert (anna_now.tags, anna_now.timezone, anna_now.version) == (["vip"], "Asia/Omsk", 2)
    other = await clients.get(api.context.db, results[1]["id"])
    assert (other.tags, other.timezone) == (["new"], "Europe/Moscow")


async def test_a_batch_of_the_wrong_kind_is_refused_whole(api: Api) -> None:
    for body, pointer in (
        ({}, "/items"),
        ({"items": None}, "/items"),
        ({"items": {}}, "/items"),
        ({"items": [{"phone": "79161234567"}] * 1001}, "/items"),
        ({"items": [], "more": 1}, "/more"),
        ([], ""),
    ):
        assert (await api.post("/clients/batch", body)).pointers() == [pointer]
    assert (await api.post("/clients/batch", {"items": []})).json == {"items": []}


async def test_a_batch_of_a_thousand_and_of_megabytes(api: Api) -> None:
    items = [{"phone": str(79160000000 + n), "attributes": {"a": "x" * 7000}} for n in range(1000)]
    reply = await api.post("/clients/batch", {"items": items})
    assert reply.status == 200, reply.body
    assert {each["status"] for each in reply.json["items"]} == {"created"}
    assert (await api.post("/clients/batch", {"items": items * 2})).status == 413


def test_a_thousand_refusals_are_not_taken_apart_again() -> None:
    """Ten faults of each of a thousand items held the loop for 150 ms when they were written."""
    fault = {"pointer": "/a", "detail": "is no field of this"}
    problem = {"type": "x", "title": "x", "status": 422, "detail": "x", "request_id": "x", "errors": [fault] * 10}
    item = {"index": 0, "status": "invalid", "id": None}

    def spent(problem: dict[str, Any] | None) -> float:
        began = time.process_time()
        show(schemas.ClientBatchOut, {"items": [item | {"problem": problem}] * 1000})
        return time.process_time() - began

    answer = {"items": [item | {"problem": problem}]}
    assert show(schemas.ClientBatchOut, answer) == answer
    assert min(spent(problem) for _ in range(5)) < 3 * min(spent(None) for _ in range(5))
