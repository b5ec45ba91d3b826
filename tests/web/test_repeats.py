"""Requests with an Idempotency-Key: done once, answered again as before."""

from __future__ import annotations

import asyncio

import pytest

from notifier.storage import clients, idempotency
from notifier.storage.database import Pool
from notifier.web.auth import bootstrap_token
from notifier.web.handlers import Handler
from notifier.web.operations import operation
from tests.storage.scenes import insert_ledger, running
from tests.web.conftest import Api, MakeApi
from tests.web.serving import serving


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
