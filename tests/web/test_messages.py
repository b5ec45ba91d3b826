from __future__ import annotations

from typing import Any

import pytest

from notifier.models import Status
from notifier.storage.database import Pool
from tests.storage.message_scenes import (
    insert_attempts,
    insert_batch,
    insert_clients,
    insert_everything,
    insert_mailing,
    insert_slice,
    reference,
)
from tests.web.conftest import Api

FIELDS = [
    "id", "mailing_id", "client_id", "phone", "status", "reason", "attempts", "created_at", "next_attempt_at",
    "sent_at",
]  # fmt: skip


async def listed(api: Api, path: str) -> list[dict[str, Any]]:
    """All pages of a list, one after the other."""
    items: list[dict[str, Any]] = []
    cursor = ""
    for _ in range(500):
        reply = await api.get(f"{path}{'&' if '?' in path else '?'}limit=7{cursor}")
        assert reply.status == 200, reply.body
        items += reply.json["items"]
        if reply.json["next_cursor"] is None:
            return items
        cursor = f"&cursor={reply.json['next_cursor']}"
    raise AssertionError("the list has no end")


@pytest.mark.parametrize("status", ["running", "finished"])
async def test_a_mailings_messages_are_listed_by_status(api: Api, db: Pool, status: str) -> None:
    mailing_id = await insert_everything(db, status)
    expected = reference(status)
    path = f"/mailings/{mailing_id}/messages"

    everything = await listed(api, path)
    assert {message["id"]: message["status"] for message in everything} == expected
    assert all(list(message) == FIELDS for message in everything)
    for wanted in Status:
        found = await listed(api, f"{path}?status={wanted}")
        assert sorted(m["id"] for m in found) == sorted(n for n in expected if expected[n] == wanted)


async def test_a_list_refuses_what_it_does_not_know(api: Api, db: Pool) -> None:
    mailing_id = await insert_everything(db, "running")
    path = f"/mailings/{mailing_id}/messages"
    waiting = (await api.get(f"{path}?status=waiting&limit=1")).json["next_cursor"]
    assert waiting is not None

    for query, parameter in (
        ("status=done", "status"),
        ("limit=201", "limit"),
        ("cursor=%00", "cursor"),
        ("cursor=WzEsMl0", "cursor"),
        (f"cursor={waiting}", "cursor"),
        (f"status=sent&cursor={waiting}", "cursor"),
    ):
        assert (await api.get(f"{path}?{query}")).pointers() == [parameter]
    assert (await api.get(f"/mailings/{mailing_id + 1}/messages")).status == 404


async def test_a_message_is_shown_with_its_timeline(api: Api, db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    [client_id] = await insert_clients(db, 1)
    await insert_slice(db, mailing_id, 1, [client_id])
    await insert_attempts(db, mailing_id, 1, ("unavailable", "retrying"), ("accepted", "sent"))

    reply = await api.get("/messages/1")

    assert reply.status == 200
    assert list(reply.json) == [*FIELDS, "text", "timeline"]
    assert reply.json == {
        "id": 1,
        "mailing_id": mailing_id,
        "client_id": client_id,
        "phone": "79990000000",
        "status": "sent",
        "reason": None,
        "attempts": 2,
        "created_at": "2026-03-01T08:00:00.000000Z",
        "next_attempt_at": None,
        "sent_at": "2026-03-01T09:02:00.250000Z",
        "text": "Hi",
        "timeline": [
            {
                "seq": 1,
                "at": "2026-03-01T09:01:00.000000Z",
                "outcome": "unavailable",
                "status": "retrying",
                "reason": "r1",
                "detail": None,
                "status_code": None,
                "duration_ms": 250,
            },
            {
                "seq": 2,
                "at": "2026-03-01T09:02:00.000000Z",
                "outcome": "accepted",
                "status": "sent",
                "reason": None,
                "detail": None,
                "status_code": None,
                "duration_ms": 250,
            },
        ],
    }
    assert (await api.get("/messages/2")).status == 404
    assert (await api.get("/messages/x")).status == 404


@pytest.mark.parametrize(("decision", "status"), [("sent", "sent"), ("failed", "failed"), ("again", "retrying")])
async def test_an_unknown_message_is_resolved(api: Api, db: Pool, decision: str, status: str) -> None:
    mailing_id = await insert_mailing(db)
    await insert_slice(db, mailing_id, 1, await insert_clients(db, 1))
    await insert_attempts(db, mailing_id, 1, ("unknown", "unknown"))

    reply = await api.post("/messages/1/resolve", {"as": decision})

    assert (reply.status, reply.json["status"]) == (200, status), reply.body
    assert [attempt["outcome"] for attempt in reply.json["timeline"]] == ["unknown", "resolved"]
    assert reply.json == (await api.get("/messages/1")).json
    assert len(api.woken) == 1
    assert (await api.post("/messages/1/resolve", {"as": decision})).status == 409


async def test_only_unknown_messages_are_resolved(api: Api, db: Pool) -> None:
    """1 waits; 2 is unknown, and its mailing cancelled."""
    running, cancelled = await insert_mailing(db), await insert_mailing(db, "cancelled")
    clients = await insert_clients(db, 2)
    await insert_slice(db, running, 1, clients[:1])
    await insert_batch(db, running, range(1, 2), 1, "waiting")
    await insert_slice(db, cancelled, 2, clients[1:])
    await insert_attempts(db, cancelled, 2, ("unknown", "unknown"))

    assert (await api.post("/messages/1/resolve", {"as": "sent"})).status == 409
    assert (await api.post("/messages/2/resolve", {"as": "again"})).status == 409
    assert (await api.post("/messages/2/resolve", {"as": "sent"})).status == 200
    assert (await api.post("/messages/3/resolve", {"as": "sent"})).status == 404
    for body, pointer in (({}, "/as"), ({"as": "done"}, "/as"), ({"as": None}, "/as"), ({"as": "sent", "x": 1}, "/x")):
        assert (await api.post("/messages/2/resolve", body)).pointers() == [pointer]


async def test_a_clients_messages_are_listed_and_outlive_it(api: Api, db: Pool) -> None:
    [client_id, without] = await insert_clients(db, 2)
    for n in range(1, 4):
        mailing_id = await insert_mailing(db)
        await insert_slice(db, mailing_id, n, [client_id])
        await insert_batch(db, mailing_id, range(n, n + 1), 1, "waiting")

    path = f"/clients/{client_id}/messages"
    first = (await api.get(f"{path}?limit=2")).json
    second = (await api.get(f"{path}?limit=2&cursor={first['next_cursor']}")).json
    assert [message["id"] for message in first["items"] + second["items"]] == [3, 2, 1]
    assert second["next_cursor"] is None
    assert {message["phone"] for message in first["items"]} == {"79160000001"}
    assert (await api.get(f"/clients/{without}/messages")).json == {"items": [], "next_cursor": None}

    assert (await api.delete(f"/clients/{client_id}")).status == 204
    assert {message["phone"] for message in await listed(api, path)} == {None}
    assert (await api.get(f"/clients/{without + 1}/messages")).status == 404
