"""The API of mailings: made, changed, listed, started and stopped."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from notifier.models import MailingStatus
from notifier.storage import gateways, installation, mailing_lifecycle, mailings
from notifier.storage.database import Pool
from notifier.storage.installation import Hold
from notifier.web.context import GatewayDefaults
from tests.storage.scenes import insert_ledger, let_a_month_pass, running
from tests.web.conftest import Api, MakeApi
from tests.web.mailing_scenes import LATER, made

FIELDS = [
    "id", "name", "text", "filter", "starts_at", "ends_at", "window", "priority", "status", "status_reason",
    "undecided", "audience", "created_at", "updated_at", "started_at", "finished_at", "archived_at",
]  # fmt: skip


async def set_status(db: Pool, mailing: dict[str, Any], status: str) -> str:
    """Put the mailing there as the scheduler would; returns its path."""
    begun = status in ("running", "paused")
    await db.execute(
        "UPDATE mailings SET status = $2::text::mailing_status, horizon = $3 WHERE id = $1",
        mailing["id"],
        status,
        0 if begun else None,
    )
    return f"/mailings/{mailing['id']}"


async def test_a_mailing_is_made_read_changed_and_deleted(api: Api) -> None:
    made = await api.post(
        "/mailings",
        {
            "name": "Sale",
            "text": "Half the price",
            "filter": {"operator_codes": ["916", "926", "916"], "tags": ["vip"]},
            "starts_at": "2100-01-01T12:00:00+03:00",
            "ends_at": "2100-01-02T00:00:00.5Z",
            "window": {"from": "21:30", "to": "09:00"},
            "priority": -3,
        },
    )
    assert made.status == 201, made.body
    assert list(made.json) == FIELDS
    path = f"/mailings/{made.json['id']}"
    assert made.headers["Location"] == f"/api/v1{path}"
    assert made.headers["ETag"] == '"1"'
    assert {**made.json, "id": 0, "created_at": 0, "updated_at": 0} == {
        "id": 0,
        "name": "Sale",
        "text": "Half the price",
        "filter": {"operator_codes": ["916", "926"], "tags": ["vip"]},
        "starts_at": "2100-01-01T09:00:00.000000Z",
        "ends_at": "2100-01-02T00:00:00.500000Z",
        "window": {"from": "21:30", "to": "09:00"},
        "priority": -3,
        "status": "scheduled",
        "status_reason": None,
        "undecided": 0,
        "audience": 0,
        "created_at": 0,
        "updated_at": 0,
        "started_at": None,
        "finished_at": None,
        "archived_at": None,
    }
    assert len(api.woken) == 1
    read = await api.get(path)
    assert (read.status, read.json, read.headers["ETag"]) == (200, made.json, '"1"')

    changes: dict[str, Any] = {"name": None, "text": "All gone", "filter": {}, "window": None, "priority": 10}
    changed = await api.patch(path, changes)
    assert changed.status == 200
    assert changed.headers["ETag"] == '"2"'
    assert {**changed.json, "updated_at": 0} == {**made.json, **changes, "updated_at": 0}
    assert len(api.woken) == 2

    assert (await api.delete(path)).status == 204
    assert len(api.woken) == 3
    for method in ("GET", "PATCH", "DELETE"):
        assert (await api.call(method, path, {} if method == "PATCH" else None)).status == 404
    for verb in ("start", "pause", "resume", "cancel"):
        assert (await api.post(f"{path}/{verb}")).status == 404


@pytest.mark.parametrize(
    ("verb", "sources", "target"),
    [
        ("start", {"draft"}, "scheduled"),
        ("pause", {"scheduled", "running"}, "paused"),
        ("resume", {"paused"}, "running"),
        ("cancel", {"draft", "scheduled", "running", "paused"}, "cancelled"),
    ],
)
async def test_actions_are_allowed_where_the_status_allows_them(
    api: Api, db: Pool, verb: str, sources: set[str], target: str
) -> None:
    for status in MailingStatus:
        path = await set_status(db, await made(api), status)
        woken = len(api.woken)
        reply = await api.post(f"{path}/{verb}")
        if status in sources:
            assert (reply.status, reply.json["status"], reply.headers["ETag"]) == (200, target, '"2"')
            assert len(api.woken) == woken + 1
        else:
            assert (reply.status, len(api.woken)) == (409, woken)
            assert (await api.get(path)).json["status"] == status


async def test_a_draft_waits_to_be_started(api: Api) -> None:
    mailing = await made(api, draft=True)
    assert mailing["status"] == "draft"
    started = await api.post(f"/mailings/{mailing['id']}/start", {})
    assert (started.status, started.json["status"]) == (200, "scheduled")


async def test_after_the_start_some_fields_are_fixed_and_after_the_end_all(api: Api, db: Pool) -> None:
    path = await set_status(db, await made(api), "running")
    fixed: list[dict[str, Any]] = [{"filter": {}}, {"starts_at": LATER["starts_at"]}]
    for change in fixed:
        assert (await api.patch(path, change)).status == 409
    free = {"name": "n", "text": "t", "ends_at": "2100-01-03T00:00:00.000000Z", "window": None, "priority": 1}
    reply = await api.patch(path, free)
    assert (reply.status, {key: reply.json[key] for key in free}) == (200, free)
    assert (await api.patch(path, {"ends_at": "2020-01-01T00:00:00Z"})).pointers() == ["/ends_at"]

    for status in ("finished", "cancelled"):
        path = await set_status(db, await made(api), status)
        assert (await api.patch(path, {"name": "n"})).status == 409


async def test_an_edit_of_an_older_version_is_refused(api: Api) -> None:
    path = f"/mailings/{(await made(api))['id']}"
    assert (await api.patch(path, {"priority": 1}, headers={"If-Match": '"1"'})).status == 200
    for method, suffix, body in (
        ("PATCH", "", {"priority": 2}),
        ("POST", "/pause", None),
        ("POST", "/cancel", None),
        ("DELETE", "", None),
    ):
        assert (await api.call(method, path + suffix, body, headers={"If-Match": '"1"'})).status == 412
    assert (await api.get(path)).json["priority"] == 1
    assert (await api.post(f"{path}/pause", headers={"If-Match": '"2"'})).status == 200


async def test_a_repeated_post_makes_one_mailing(api: Api) -> None:
    replies = await asyncio.gather(*(api.post("/mailings", LATER, headers={"Idempotency-Key": "k"}) for _ in range(5)))
    assert {reply.status for reply in replies} == {201}
    assert len({reply.headers["Location"] for reply in replies}) == 1
    assert len({reply.body for reply in replies}) == 1
    assert len((await api.get("/mailings")).json["items"]) == 1


async def test_mailings_are_listed_newest_first_page_by_page(api: Api, db: Pool) -> None:
    """Seven mailings, the odd ones cancelled, the last one deleted."""
    all_made = [await made(api, name=f"{n}") for n in range(7)]
    for mailing in all_made[1::2]:
        await set_status(db, mailing, "cancelled")
    await api.delete(f"/mailings/{all_made[-1]['id']}")

    async def listed(query: str) -> list[str]:
        names: list[str] = []
        cursor = ""
        while True:
            page = (await api.get(f"/mailings?limit=2{query}{cursor}")).json
            assert len(page["items"]) <= 2
            names += [mailing["name"] for mailing in page["items"]]
            if page["next_cursor"] is None:
                return names
            cursor = f"&cursor={page['next_cursor']}"

    assert await listed("") == ["5", "4", "3", "2", "1", "0"]
    assert await listed("&status=cancelled") == ["5", "3", "1"]
    assert await listed("&status=finished") == []
    [newest] = (await api.get("/mailings?limit=1")).json["items"]
    assert list(newest) == FIELDS
    for query, parameter in (
        ("status=done", "status"),
        ("limit=0", "limit"),
        ("cursor=x", "cursor"),
        ("page=2", "page"),
    ):
        assert (await api.get(f"/mailings?{query}")).pointers() == [parameter]


async def test_what_a_mailing_waits_for_is_said(make_api: MakeApi, db: Pool) -> None:
    api = make_api()
    mailing = await made(api)
    path = await set_status(db, mailing, "running")

    async def reason(api: Api) -> Any:
        [listed] = (await api.get("/mailings")).json["items"]
        shown = (await api.get(path)).json
        assert shown == listed
        return shown["status_reason"]

    assert await reason(api) is None
    assert await reason(make_api(pause_all=True)) == "paused_by_settings"
    copied = Hold(db, "staging")
    await installation.release(db, "production")
    assert await copied.begin()
    assert await reason(make_api(hold=copied)) == "held_as_copy"
    await gateways.pause(db, "default")
    assert await reason(api) == "gateway_paused"
    await gateways.resume(db, "default")
    await gateways.misconfigured(db, "default", "unauthorized")
    assert await reason(api) == "gateway_misconfigured"
    none = GatewayDefaults(None, 100, 0.0, 15.0, "retry")
    assert await reason(make_api(gateway=none)) == "gateway_unconfigured"
    await gateways.resume(db, "default")
    await gateways.throttle(db, "default", 60, await mailings.clock(db))
    assert await reason(api) == "gateway_throttled"
    assert await reason(make_api(pause_all=True)) == "paused_by_settings"
    await gateways.open_breaker(db, "default")
    assert await reason(api) == "gateway_unavailable"
    assert await reason(make_api(hold=copied)) == "held_as_copy"
    await set_status(db, mailing, "scheduled")
    assert await reason(api) is None  # by its start it may be over
    for status in ("draft", "paused", "cancelled"):
        await set_status(db, mailing, status)
        assert await reason(make_api(gateway=none)) is None


async def test_a_mailing_outside_its_hours_says_so(api: Api, db: Pool) -> None:
    mailing = await made(api, window={"from": "09:00", "to": "21:00"})
    path = await set_status(db, mailing, "running")
    await db.execute("UPDATE mailings SET audience = 2")
    batch = """
        INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state)
        VALUES ($1, now() + $2 * interval '1 hour', 1, 1, 1, 1, $3::text::message_state)
    """
    assert (await api.get(path)).json["status_reason"] is None
    await db.execute(batch, mailing["id"], 1, "waiting")
    assert (await api.get(path)).json["status_reason"] == "window"
    assert (await api.get("/mailings")).json["items"][0]["status_reason"] == "window"
    await gateways.pause(db, "default")
    assert (await api.get(path)).json["status_reason"] == "gateway_paused"
    await gateways.resume(db, "default")
    await db.execute("UPDATE batches SET owner = 1, replica = 1")  # something is under way
    assert (await api.get(path)).json["status_reason"] is None
    await db.execute("UPDATE batches SET owner = NULL, replica = NULL")
    await db.execute(batch, mailing["id"], -1, "waiting")  # something is due
    assert (await api.get(path)).json["status_reason"] is None
    await db.execute("UPDATE batches SET state = 'retrying', due_at = now() + interval '1 minute'")
    assert (await api.get(path)).json["status_reason"] is None


async def test_a_mailing_says_about_how_many_somebody_has_to_decide(api: Api, db: Pool) -> None:
    mailing = await made(api)
    path = await set_status(db, mailing, "running")
    await db.execute(
        "INSERT INTO counters (mailing_id, slot, state, n) "
        "VALUES ($1, 0, 'unknown', 7), ($1, 1, 'unknown', -2), ($1, 0, 'doubtful', 4), ($1, 0, 'sent', 9)",
        mailing["id"],
    )
    assert (await api.get(path)).json["undecided"] == 5
    await db.execute("UPDATE mailings SET status = 'finished', status_reason = 'completed', over_at = now()")
    shown = (await api.get(path)).json
    assert (shown["status_reason"], shown["undecided"]) == ("completed", 9)  # nobody sends those in doubt any more


async def test_what_is_no_id_is_not_found(api: Api) -> None:
    for text in ("0", "-1", "1.0", "x", "9223372036854775808", "00", "%00"):
        for path in (f"/mailings/{text}", f"/mailings/{text}/statistics", f"/mailings/{text}/messages"):
            assert (await api.get(path)).status == 404, path
        assert (await api.post(f"/mailings/{text}/start")).status == 404, text


async def test_a_mailing_is_archived_and_everything_of_it_stays_readable(api: Api, db: Pool) -> None:
    mailing_id, [message_id] = await running(db, 1)
    await db.execute("DELETE FROM batches")
    await insert_ledger(db, mailing_id, message_id, ("accepted", "sent", None))
    path = f"/mailings/{mailing_id}"
    for verb in ("archive", "unarchive"):
        refused = await api.post(f"{path}/{verb}")
        assert (refused.status, refused.json["type"]) == (409, "urn:notifier:illegal-transition")
    assert await mailing_lifecycle.close(db, mailing_id)
    assert (await api.post(f"{path}/archive", headers={"If-Match": '"9"'})).status == 412
    archived = await api.post(f"{path}/archive", headers={"If-Match": '"1"'})
    assert (archived.status, archived.headers["ETag"]) == (200, '"2"')
    assert archived.json["archived_at"] == archived.json["updated_at"]
    assert archived.json["finished_at"] < archived.json["archived_at"]
    assert (await api.post(f"{path}/archive")).json == archived.json

    async def listed(query: str) -> list[int]:
        page = (await api.get(f"/mailings{query}")).json
        lines = (await api.get(f"/statistics{query}")).json
        assert [line["id"] for line in lines["mailings"]["items"]] == [mailing["id"] for mailing in page["items"]]
        assert lines["messages"]["sent"] == 1
        return [mailing["id"] for mailing in page["items"]]

    assert await listed("") == await listed("?archived=false") == []
    assert await listed("?archived=true") == [mailing_id]
    assert (await api.get("/mailings?archived=true&status=finished")).json["items"] == [archived.json]
    assert (await api.get("/mailings?archived=true&status=cancelled")).json["items"] == []
    assert (await api.get("/mailings?archived=1")).pointers() == ["archived"]
    assert (await api.get(path)).json == archived.json
    assert (await api.get(f"{path}/statistics")).json["messages"]["sent"] == 1
    assert [message["id"] for message in (await api.get(f"{path}/messages")).json["items"]] == [message_id]
    back = await api.post(f"{path}/unarchive")
    assert (back.status, back.json["archived_at"], back.headers["ETag"]) == (200, None, '"3"')
    assert await listed("") == [mailing_id]


async def test_a_deleted_mailing_is_restored(api: Api, db: Pool) -> None:
    """It ran when it was deleted, so it comes back cancelled; with its messages, and for 30 days."""
    mailing_id, _ = await running(db, 3)
    path = f"/mailings/{mailing_id}"
    before = (await api.get(path)).json
    assert (await api.delete(path)).status == 204
    for method, suffix in (("GET", ""), ("GET", "/messages"), ("POST", "/archive"), ("DELETE", "")):
        assert (await api.call(method, path + suffix)).status == 404
    restored = await api.post(f"{path}/restore")
    assert (restored.status, restored.headers["ETag"]) == (200, '"3"')
    assert restored.json == before | {name: restored.json[name] for name in ("status", "updated_at", "finished_at")}
    assert restored.json["status"] == "cancelled"
    assert (await api.get(path)).json == (await api.post(f"{path}/restore")).json == restored.json
    assert (await api.get(f"{path}/statistics")).json["messages"]["cancelled"] == 3
    assert len((await api.get(f"{path}/messages")).json["items"]) == 3
    await api.delete(path)
    await let_a_month_pass(db)
    late = await api.post(f"{path}/restore")
    assert (late.status, late.json["detail"]) == (
        404, f"Mailing {mailing_id} was deleted too long ago; its messages are gone."
    )  # fmt: skip
    assert (await api.post("/mailings/999/restore")).status == 404
