from __future__ import annotations

from notifier.models import Status
from notifier.storage.database import Pool
from tests.storage.test_statistics import insert_counters, insert_mailing, insert_owned
from tests.web.conftest import Api

EMPTY = dict.fromkeys([status.value for status in Status], 0)


async def test_a_mailing_in_numbers(api: Api, db: Pool) -> None:
    """10 messages: 3 sent, 2 failed, 1 on its way, 4 waiting."""
    mailing_id = await insert_mailing(db, audience=10)
    await insert_counters(db, mailing_id, sent=3, failed=2)
    await insert_owned(db, mailing_id, "waiting", watermark=6, done=5)
    await db.execute("INSERT INTO failures VALUES ($1, 0, 'rejected', 2)", mailing_id)
    await db.execute("INSERT INTO series VALUES ($1, 0, '2026-03-01T09:00:10Z', 3, 2)", mailing_id)
    at = "2026-03-01T09:00:10.000000Z"
    await db.execute("UPDATE counters SET first_at = '2026-03-01T09:00:10Z', last_at = '2026-03-01T09:00:10Z'")

    reply = await api.get(f"/mailings/{mailing_id}/statistics?step=hour")

    assert reply.status == 200
    assert reply.json == {
        "audience": 10,
        "planned": True,
        "messages": {**EMPTY, "waiting": 4, "sending": 1, "sent": 3, "failed": 2},
        "failures": [{"reason": "rejected", "count": 2}],
        "rate": 0.0,
        "forecast_finish_at": None,
        "first_sent_at": at,
        "last_sent_at": at,
        "series": [{"at": "2026-03-01T09:00:00.000000Z", "sent": 3, "failed": 2}],
    }
    by_minute = await api.get(f"/mailings/{mailing_id}/statistics")
    assert by_minute.json == reply.json
    assert (await api.get(f"/mailings/{mailing_id}/statistics?step=week")).pointers() == ["step"]
    assert (await api.get(f"/mailings/{mailing_id + 1}/statistics")).status == 404


async def test_all_mailings_in_numbers(api: Api, db: Pool) -> None:
    """Three mailings of 10, one of them over, and one deleted."""
    ids = [await insert_mailing(db, status, audience=10) for status in ("running", "finished", "draft", "running")]
    for mailing_id in ids:
        await insert_counters(db, mailing_id, sent=4)
    await api.delete(f"/mailings/{ids[3]}")

    first = await api.get("/statistics?limit=2")
    second = await api.get(f"/statistics?limit=2&cursor={first.json['mailings']['next_cursor']}")

    assert list(first.json) == ["audience", "messages", "mailings"]
    for reply in (first, second):
        assert reply.json["audience"] == 30
        assert reply.json["messages"] == {**EMPTY, "sent": 12, "waiting": 12, "expired": 6}
    assert [line["id"] for line in first.json["mailings"]["items"]] == [ids[2], ids[1]]
    assert second.json["mailings"] == {
        "items": [
            {
                "id": ids[0],
                "name": "a",
                "status": "running",
                "audience": 10,
                "messages": {**EMPTY, "sent": 4, "waiting": 6},
            }
        ],
        "next_cursor": None,
    }
    for query, parameter in (("limit=x", "limit"), ("cursor=x", "cursor"), ("step=day", "step")):
        assert (await api.get(f"/statistics?{query}")).pointers() == [parameter]
