from __future__ import annotations

import asyncio
from typing import Any

import pytest

from notifier.errors import NotFound, PhoneTaken, Stale
from notifier.models import Client
from notifier.storage import clients, gateways
from notifier.storage.database import Pool, transaction

PHONE = 79161234567


async def test_create_and_get(db: Pool) -> None:
    made = await clients.create(db, phone=PHONE, tags=["a"], attributes={"n": None})
    assert (made.operator_code, made.version, made.timezone) == ("916", 1, None)
    assert await clients.get(db, made.id) == made
    with pytest.raises(NotFound):
        await clients.get(db, made.id + 1)


async def test_of_many_who_want_one_phone_one_gets_it(db: Pool) -> None:
    results = await asyncio.gather(*(clients.create(db, phone=PHONE) for _ in range(8)), return_exceptions=True)
    (winner,) = [each for each in results if isinstance(each, Client)]
    assert {each.client_id for each in results if isinstance(each, PhoneTaken)} == {winner.id}


async def test_create_while_the_phone_comes_and_goes(db: Pool) -> None:
    async def come_and_go() -> None:
        for _ in range(30):
            try:
                client = await clients.create(db, phone=PHONE)
            except PhoneTaken:
                continue
            await clients.delete(db, client.id)

    await asyncio.gather(*(come_and_go() for _ in range(4)))


async def test_edit(db: Pool) -> None:
    made = await clients.create(db, phone=PHONE, tags=["a"], timezone="Asia/Omsk", attributes={"a": 1})
    edited = await clients.edit(db, made.id, {"timezone": None})
    assert (edited.timezone, edited.tags, edited.attributes, edited.version) == (None, ["a"], {"a": 1}, 2)
    assert edited.updated_at > made.updated_at
    edited = await clients.edit(db, made.id, {"tags": [], "attributes": {}}, if_match=2)
    assert (edited.tags, edited.attributes, edited.version) == ([], {}, 3)
    with pytest.raises(Stale):
        await clients.edit(db, made.id, {"tags": ["b"]}, if_match=2)
    with pytest.raises(NotFound):
        await clients.edit(db, made.id + 1, {"tags": ["b"]}, if_match=2)


async def test_edit_to_a_taken_phone_leaves_the_callers_transaction_usable(db: Pool) -> None:
    taken = await clients.create(db, phone=PHONE)
    made = await clients.create(db, phone=PHONE + 1)
    async with transaction(db) as connection:
        with pytest.raises(PhoneTaken) as caught:
            await clients.edit(connection, made.id, {"phone": PHONE})
        assert await clients.get(connection, made.id) == made
    assert caught.value.client_id == taken.id


async def test_delete_erases_the_phone_from_the_ledger_and_keeps_the_messages(db: Pool) -> None:
    gone, other = [await clients.create(db, phone=PHONE + n) for n in range(2)]
    await db.execute("INSERT INTO messages VALUES (1, 1, $1), (2, 2, $1), (3, 1, $2)", gone.id, other.id)
    await db.execute(
        """
        INSERT INTO attempts (message_id, mailing_id, started_at, phone, outcome, state, seq)
        VALUES (1, 1, now(), $1, 'unknown', 'retrying', 1), (1, 1, now(), $1, 'accepted', 'sent', 2),
               (2, 2, now(), $1, 'rejected', 'failed', 1), (3, 1, now(), $2, 'accepted', 'sent', 1)
        """,
        gone.phone,
        other.phone,
    )
    # a gateway repeats what it was asked; its id of the message leads to the person in its own lists
    await db.execute("UPDATE attempts SET detail = 'no such person: ' || phone, reference = 'ref-' || message_id")
    with pytest.raises(Stale):
        await clients.delete(db, gone.id, if_match=9)
    await clients.delete(db, gone.id, if_match=1)
    with pytest.raises(NotFound):
        await clients.delete(db, gone.id)
    rows = [
        tuple(row)
        for row in await db.fetch("SELECT message_id, phone, detail, reference FROM attempts ORDER BY message_id, seq")
    ]
    assert rows[:3] == [(1, None, None, None), (1, None, None, None), (2, None, None, None)]
    assert rows[3] == (3, other.phone, f"no such person: {other.phone}", "ref-3")
    assert await db.fetchval("SELECT count(*) FROM messages") == 3


async def test_what_a_request_under_way_writes_after_the_erasure_is_erased_too(db: Pool) -> None:
    gone = await clients.create(db, phone=PHONE)
    await db.execute("INSERT INTO messages VALUES (1, 1, $1)", gone.id)
    await clients.delete(db, gone.id)
    await db.execute(
        """
        INSERT INTO attempts (message_id, mailing_id, started_at, phone, outcome, state, seq, detail, reference)
        VALUES (1, 1, now(), $1, 'rejected', 'failed', 1, 'no such person', 'ref-1')
        """,
        PHONE,
    )
    assert await clients.erase_again(db, 3600) == 0
    assert await clients.erase_again(db, 0) == 1
    left = await db.fetch("SELECT phone, detail, reference FROM attempts")
    assert [tuple(row) for row in left] == [(None, None, None)]
    assert await clients.erase_again(db, 0) == 0


async def test_the_last_errors_of_a_gateway_lose_the_words_about_a_person_who_is_erased(db: Pool) -> None:
    """Also those that a replica had yet to write at the time; the words about others stay."""
    gone, other = await clients.create(db, phone=PHONE), await clients.create(db, phone=PHONE + 1)
    await db.execute("INSERT INTO messages VALUES (1, 1, $1), (2, 1, $2), (3, 2, $1)", gone.id, other.id)
    error = {"first_at": "2026-01-31T09:00:00.000000Z", "count": 1, "outcome": "rejected", "reason": None}
    errors = [
        error | {"at": f"2026-01-31T09:0{9 - each}:00.000000Z", "status_code": 400 + each, "message_id": each}
        for each in (1, 2, 3)
    ]
    said = [each | {"detail": "no such person"} for each in errors]
    await gateways.note_errors(db, "default", said[:2])
    await clients.delete(db, gone.id)
    kept = [errors[0] | {"detail": None}, said[1]]
    assert (await gateways.get(db, "default")).last_errors == kept
    await gateways.note_errors(db, "default", said[2:])
    assert await clients.erase_again(db, 0) == 1
    assert (await gateways.get(db, "default")).last_errors == [*kept, errors[2] | {"detail": None}]


async def test_a_gateway_s_sentences_lose_the_words_about_a_person_who_is_erased(db: Pool) -> None:
    """Not those about somebody else."""
    gone, other = await clients.create(db, phone=PHONE), await clients.create(db, phone=PHONE + 1)
    await db.execute("INSERT INTO messages VALUES (1, 1, $1), (2, 1, $2)", gone.id, other.id)
    await db.execute(
        """
        INSERT INTO attempts (message_id, mailing_id, started_at, phone, outcome, state, seq, detail)
        VALUES (1, 1, now(), 1, 'unavailable', 'failed', 1, 'unavailable: no Ivanov here'),
               (2, 1, now(), 2, 'unavailable', 'failed', 1, 'down for repair')
        """
    )
    await gateways.misconfigured(db, "default", "rejected", "The gateway answered 400: no Ivanov here.")
    await gateways.open_breaker(db, "default", "The gateway answered 503: no Ivanov here.")
    await clients.delete(db, gone.id)
    kept = await gateways.get(db, "default")
    assert (kept.state, kept.detail, kept.breaker, kept.breaker_detail) == ("misconfigured", None, "open", None)
    await db.execute("UPDATE gateways SET breaker_detail = 'The gateway answered 503: no Petrov here.'")
    await clients.delete(db, other.id)
    assert (await gateways.get(db, "default")).breaker_detail == "The gateway answered 503: no Petrov here."


async def test_upsert_touches_only_what_changes(db: Pool) -> None:
    items: list[dict[str, Any]] = [{"phone": PHONE, "tags": ["a"], "attributes": {"a": [1, "é"]}}, {"phone": PHONE + 1}]
    first = await clients.upsert(db, items)
    assert [created for _, created in first] == [True, True]
    before = [await clients.get(db, client_id) for client_id, _ in first]
    assert await clients.upsert(db, items) == [(client_id, False) for client_id, _ in first]
    assert [await clients.get(db, client_id) for client_id, _ in first] == before

    await clients.upsert(db, [{"phone": PHONE, "timezone": "Asia/Omsk"}, {"phone": PHONE + 1, "tags": []}])
    changed = await clients.get(db, first[0][0])
    assert (changed.tags, changed.timezone, changed.attributes) == (["a"], "Asia/Omsk", {"a": [1, "é"]})
    assert changed.version == 2
    assert await clients.get(db, first[1][0]) == before[1]

    await clients.upsert(db, [{"phone": PHONE, "timezone": None, "operator_code": "1", "attributes": {}}])
    changed = await clients.get(db, first[0][0])
    assert (changed.timezone, changed.operator_code, changed.attributes) == (None, "1", {})


async def test_upsert_of_one_phone_twice_is_one_after_the_other(db: Pool) -> None:
    items: list[dict[str, Any]] = [
        {"phone": PHONE, "tags": ["a"], "timezone": "Asia/Omsk"},
        {"phone": PHONE + 1},
        {"phone": PHONE, "tags": ["b"]},
    ]
    (first, second, again) = await clients.upsert(db, items)
    assert (first[1], second[1]) == (True, True)
    assert again == (first[0], False)
    client = await clients.get(db, first[0])
    assert (client.tags, client.timezone, client.version) == (["b"], "Asia/Omsk", 1)


async def test_upsert_of_nothing(db: Pool) -> None:
    assert await clients.upsert(db, []) == []


async def test_upserts_at_once_do_not_deadlock(db: Pool) -> None:
    items = [{"phone": PHONE + n, "tags": [str(n)]} for n in range(300)]

    async def write(turn: int) -> list[tuple[int, bool]]:
        mine = [{**item, "attributes": {"turn": turn}} for item in items]
        return await clients.upsert(db, mine[::-1] if turn % 2 else mine)

    results = await asyncio.gather(*(write(turn) for turn in range(12)))
    assert sum(created for result in results for _, created in result) == 300
    assert len({client_id for result in results for client_id, _ in result}) == 300


async def test_a_rare_tag_is_found_in_one_page(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "EXAMINED", 10)
    made = await clients.upsert(
        db,
        [
            {"phone": PHONE + n, "tags": ["rare"] if n % 5 == 0 else [], "timezone": "UTC" if n % 2 else None}
            for n in range(40)
        ],
    )
    ids = [client_id for client_id, _ in made]
    page, before = await clients.page(db, tag="rare", limit=5)
    assert [client.id for client in page] == ids[::5][:2:-1]
    assert before == page[-1].id
    rest, end = await clients.page(db, tag="rare", before=before, limit=5)
    assert ([client.id for client in rest], end) == (ids[:15:5][::-1], None)
    assert [c.id for c in (await clients.page(db, tag="rare", timezone="UTC", limit=9))[0]] == ids[5::10][::-1]
    assert [c.id for c in (await clients.page(db, tag="rare", operator_code="916", limit=9))[0]] == ids[::5][::-1]
    assert await clients.page(db, tag="none", limit=5) == ([], None)


async def test_the_zones_in_use_are_listed_once(db: Pool) -> None:
    assert await clients.zones(db) == []
    zones = ["Asia/Omsk", None, "UTC", "Asia/Omsk", "Europe/Moscow"]
    await clients.upsert(db, [{"phone": PHONE + n, "timezone": zone} for n, zone in enumerate(zones)])
    assert await clients.zones(db) == ["Asia/Omsk", "Europe/Moscow", "UTC"]


async def test_a_page_looks_at_a_bounded_number_of_rows(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clients, "EXAMINED", 10)
    made = await clients.upsert(
        db, [{"phone": PHONE + n, "operator_code": "1", "timezone": "UTC" if n in (0, 17) else None} for n in range(35)]
    )
    # an operator that many have, with a zone that few have
    ids = [client_id for client_id, _ in made]
    found: list[int] = []
    pages = 0
    before: int | None = None
    while True:
        page, before = await clients.page(db, operator_code="1", timezone="UTC", before=before, limit=5)
        found += [client.id for client in page]
        pages += 1
        if before is None:
            break
    assert (found, pages) == ([ids[17], ids[0]], 4)


async def test_no_page_reads_more_the_deeper_it_lies(db: Pool) -> None:
    await db.execute(
        """
        INSERT INTO clients (phone, operator_code, tags, timezone)
        SELECT 79000000000 + n, (900 + n % 100)::text, ARRAY['t' || n % 10], 'UTC' FROM generate_series(1, 50000) n
        """
    )
    await db.execute("ANALYZE clients")
    filters: list[dict[str, Any]] = [{}, {"operator_code": "950"}, {"timezone": "UTC"}, {"tag": "t5"}]
    read = "SELECT seq_tup_read + idx_tup_fetch FROM pg_stat_xact_user_tables WHERE relname = 'clients'"
    async with db.acquire() as connection, connection.transaction():
        deep = await connection.fetchval("SELECT min(id) + 500 FROM clients")
        for chosen in filters:
            for before in (None, deep):
                for _ in range(7):  # from the sixth time on the plan is one for all values
                    start = await connection.fetchval(read)
                    await clients.page(connection, before=before, limit=50, **chosen)
                    cost = await connection.fetchval(read) - start
                    assert cost <= (clients.EXAMINED + 1000 if "tag" in chosen else 60), (chosen, before)
