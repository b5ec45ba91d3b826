"""The queue: each scene states its batches, then what a verb makes of them; the books are counted again after it."""

from __future__ import annotations

import asyncio
import itertools
import json
from datetime import time, timedelta
from typing import Any

import asyncpg
import pytest

from chaos.stage import PATIENCE
from notifier.errors import Stale
from notifier.models import MailingStatus, MessageState, Window
from notifier.storage import ledger, mailings, queue, statistics
from notifier.storage.database import Db, Pool, transaction
from notifier.storage.queue import BatchReport
from tests.storage.scenes import (
    AT,
    LATER,
    ME,
    PEER,
    adopt_all,
    batches_of,
    claim_one,
    insert_batch,
    insert_ledger,
    insert_mailing,
    insert_messages,
    ledger_errors,
    ledger_of,
    let_a_month_pass,
    marked,
    record_one,
    report,
    result,
    running,
    set_status,
    soon,
    waiting_for_a_lock,
    while_held,
    without,
)

# ---- claim --------------------------------------------------------------------------------------------------------


async def test_a_claimed_batch_is_ours_and_says_what_it_holds(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)

    (batch,) = await queue.claim(db, ME, after=0)

    assert (batch.mailing_id, batch.ids, batch.seq, batch.state) == (
        mailing_id,
        range(ids[0], ids[0] + 3),
        1,
        "waiting",
    )
    assert (batch.watermark, batch.done, batch.foreign_rows) == (0, 0, 0)
    assert batch.send_settings == await queue.send_settings(db, mailing_id)
    (row,) = await batches_of(db, mailing_id)
    assert (row["owner"], row["replica"]) == (batch.owner, ME)
    assert await queue.claim(db, PEER, after=0) == []
    assert not await ledger_errors(db)


async def test_every_claim_draws_a_new_number(db: Pool) -> None:
    await running(db, 2, 2)
    first = await claim_one(db)
    second = await claim_one(db)
    assert first.owner != second.owner
    assert first.id != second.id


async def test_a_list_is_claimed_in_its_order(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 5)
    for id_ in ids[::2]:
        await insert_ledger(db, mailing_id, id_, ("unknown", "doubtful", "timeout"))
    await insert_batch(db, mailing_id, ids[::2], seq=2, state="doubtful")
    await insert_batch(db, mailing_id, [ids[1], ids[3]], due_in=10)

    batch = await claim_one(db)

    assert (batch.ids, batch.seq, batch.state) == (ids[::2], 2, MessageState.DOUBTFUL)
    assert not await ledger_errors(db)


async def test_only_running_mailings_are_claimed_from(db: Pool) -> None:
    for status in ("draft", "scheduled", "paused", "finished", "cancelled"):
        await running(db, 2, status=status)
        assert await queue.claim(db, ME, after=0) == []


async def test_neither_the_ended_nor_the_not_yet_due_is_claimed(db: Pool) -> None:
    ended = await insert_mailing(db, ends_in=-1)
    await insert_batch(db, ended, range(*_bounds(await insert_messages(db, ended, 2))))
    early = await insert_mailing(db)
    await insert_batch(db, early, range(*_bounds(await insert_messages(db, early, 2))), due_in=60)
    assert await queue.claim(db, ME, after=0) == []


def _bounds(ids: list[int]) -> tuple[int, int]:
    return ids[0], ids[-1] + 1


async def test_two_replicas_pass_each_other_without_waiting(db: Pool) -> None:
    await running(db, 2, 2)
    async with db.acquire() as one, db.acquire() as other, one.transaction():
        (mine,) = await queue.claim(one, ME, after=0)
        (theirs,) = await asyncio.wait_for(queue.claim(other, PEER, after=0), PATIENCE)
        assert await queue.claim(other, PEER, after=0) == []
    assert mine.id != theirs.id


async def test_higher_priority_goes_first(db: Pool) -> None:
    await running(db, 2)
    urgent, _ = await running(db, 2, 2, priority=5)
    await running(db, 2, priority=-5)
    claimed = [await claim_one(db) for _ in range(4)]
    assert [batch.mailing_id for batch in claimed][:2] == [urgent, urgent]
    assert claimed[3].mailing_id == max(batch.mailing_id for batch in claimed)


async def test_mailings_take_turns_and_those_in_hand_are_left_out(db: Pool) -> None:
    a, b, c = [(await running(db, 1, 1, 1))[0] for _ in range(3)]
    turns, last = [], a
    for _ in range(5):
        (batch,) = await queue.claim(db, ME, after=last)
        turns.append(last := batch.mailing_id)
    assert turns == [b, c, a, b, c]
    (batch,) = await queue.claim(db, ME, after=0, busy=[a, b])
    assert batch.mailing_id == c
    assert await queue.claim(db, ME, after=0, busy=[a, b, c]) == []


async def test_retries_can_be_asked_for(db: Pool) -> None:
    mailing_id, ids = await running(db, 2, 1)
    await insert_ledger(db, mailing_id, ids[0], ("unavailable", "retrying", "refused"))
    await db.execute("DELETE FROM batches WHERE first_id = $1", ids[0])
    await insert_batch(db, mailing_id, [ids[0]], seq=2, state="retrying")
    await insert_batch(db, mailing_id, [ids[1]], due_in=-100)

    (retry,) = await queue.claim(db, ME, after=0, retries=True, limit=8)
    assert (retry.seq, list(retry.ids)) == (2, [ids[0]])
    assert await queue.claim(db, ME, after=0, retries=True) == []

    (oldest,) = await queue.claim(db, ME, after=0)
    assert list(oldest.ids) == [ids[1]]
    assert not await ledger_errors(db)


async def test_up_to_limit_batches_come_at_once_the_earliest_due_first(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 4)
    for id_, due_in in zip(ids, (-1, -4, -3, -2), strict=True):
        await insert_batch(db, mailing_id, range(id_, id_ + 1), due_in=due_in)
    claimed = await queue.claim(db, ME, after=0, limit=3)
    assert sorted(batch.ids[0] for batch in claimed) == ids[1:]


@pytest.mark.parametrize("retries", [False, True])
async def test_without_skip_locked_a_claim_waits_for_the_other(db: Pool, retries: bool) -> None:
    mailing_id, ids = await running(db, 2)
    if retries:
        for id_ in ids:
            await insert_ledger(db, mailing_id, id_, ("unavailable", "retrying", "dns"))
        await db.execute("UPDATE batches SET seq = 2, state = 'retrying'")

    async def claim(conn: Db) -> list[queue.Claimed]:
        return await queue.claim(conn, ME, after=0, retries=retries)

    # it would have waited, and then got nothing for it
    assert await while_held(db, claim, claim, replace={"FOR UPDATE SKIP LOCKED": "FOR UPDATE"}) == []


async def test_without_the_lock_two_replicas_claim_one_batch(db: Pool) -> None:
    await running(db, 2)
    claimed: list[queue.Claimed] = []

    async def claim(conn: Db) -> None:
        claimed.extend(await queue.claim(conn, ME, after=0))

    await while_held(db, claim, claim, replace={"FOR UPDATE SKIP LOCKED": ""})
    assert len(claimed) == 2
    assert claimed[0].id == claimed[1].id


async def _plan(db: Db, sql: str, *args: object) -> dict[str, Any]:
    async with transaction(db) as conn:
        (row,) = await conn.fetch("EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) " + sql, *args)
    (plan,) = json.loads(row[0])
    found: dict[str, Any] = plan["Plan"]
    return found


CLAIM = "int, bigint, bigint[], bigint"


async def _usual_plan(db: Pool, types: str, sql: str, *args: object) -> dict[str, Any]:
    """The plan from the sixth execution on, when the server has seen that none for certain values is better."""
    literals = ", ".join("'{" + ",".join(map(str, arg)) + "}'" if isinstance(arg, list) else str(arg) for arg in args)
    async with db.acquire() as conn, conn.transaction():
        await conn.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await conn.execute(f"PREPARE usual ({types}) AS {sql}")
        found = await _plan(conn, f"EXECUTE usual ({literals})")
        await conn.execute("DEALLOCATE usual")
    return found


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", ()) for node in _nodes(child))]


def _scans(plan: dict[str, Any], *relations: str) -> list[dict[str, Any]]:
    found = [node for node in _nodes(plan) if "Relation Name" in node and node["Node Type"] != "ModifyTable"]
    return [node for node in found if not relations or node["Relation Name"] in relations]


class _Listening:
    """Remembers the last statement and its arguments, and says it to the database."""

    def __init__(self, db: Db) -> None:
        self._db = db
        self.said: tuple[Any, ...] = ()

    async def fetch(self, *said: Any) -> Any:
        self.said = said
        return await self._db.fetch(*said)


async def _many_batches(db: Pool, mailings_: int, each: int) -> list[int]:
    found = [await insert_mailing(db) for _ in range(mailings_)]
    await db.execute(
        """
        INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state, owner, replica)
        SELECT m, now() - n * interval '1 ms', first, first + 9, 10, 1 + (n % 10 = 0)::int, 'waiting',
               CASE WHEN n % 100 = 0 THEN n END, CASE WHEN n % 100 = 0 THEN 1 END
        FROM unnest($1::bigint[]) m, generate_series(1, $2) n,
             LATERAL (SELECT (m * $2::bigint + n) * 10) f (first)
        """,
        found,
        each,
    )
    clients = await db.fetchval(
        """
        WITH c AS (
            INSERT INTO clients (phone, operator_code) SELECT 79160000000 + n, '916' FROM generate_series(1, 20000) n
            RETURNING id
        ), g AS (INSERT INTO messages SELECT $1::bigint * $2::bigint * 10 + id, $1, id FROM c)
        SELECT max(id) FROM c
        """,
        found[0],
        each,
    )
    assert clients >= 20_000
    await db.execute(
        """
        INSERT INTO attempts (message_id, mailing_id, started_at, outcome, state, seq)
        SELECT id, mailing_id, now(), 'accepted', 'sent', 1 FROM messages
        """
    )
    await db.execute("ANALYZE")
    return found


async def test_claim_load_and_record_cost_the_same_however_long_the_queue_is(db: Pool) -> None:
    """20,000 batches of forty mailings: every verb reaches its rows by an index and touches a few pages.

    The claim also by a plan that was made for any values, for which a join with all batches looks cheap.
    """
    first, *_ = await _many_batches(db, 40, 500)
    heard = _Listening(db)
    (batch,) = await queue.claim(heard, ME, after=0)  # type: ignore[arg-type]
    plans = [await _plan(db, *heard.said), await _usual_plan(db, CLAIM, *heard.said)]
    for plan in plans:
        assert {node["Index Name"] for node in _scans(plan, "batches")} == {"batches_due", "batches_pkey"}
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 60

    await queue.claim(heard, ME, after=0, retries=True)  # type: ignore[arg-type]
    plans = [await _plan(db, *heard.said), await _usual_plan(db, CLAIM, *heard.said)]
    for plan in plans:
        assert {node["Index Name"] for node in _scans(plan, "batches")} == {"batches_due_retries", "batches_pkey"}
        assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 60

    ids = [row["id"] for row in await db.fetch("SELECT id FROM messages ORDER BY id LIMIT 100")]
    await queue.load(heard, ids, [1] * 100)  # type: ignore[arg-type]
    plan = await _usual_plan(db, "bigint[], smallint[]", *heard.said)
    assert {node["Index Name"] for node in _scans(plan)} == {"messages_pkey", "clients_pkey", "attempts_pkey"}
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 1_200

    await record_one(heard, report(batch, 5))  # type: ignore[arg-type]
    batch = await claim_one(db)
    await queue.record(heard, ME, [report(batch, 5)], [])  # type: ignore[arg-type]
    plan = await _plan(db, *heard.said)
    assert {node["Index Name"] for node in _scans(plan, "batches", "attempts")} <= {"batches_pkey", "attempts_pkey"}
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100

    assert first


async def test_the_next_due_time_is_that_of_running_mailings(db: Pool) -> None:
    assert await queue.seconds_to_next(db) is None
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 3)
    await insert_batch(db, mailing_id, range(ids[0], ids[0] + 1), due_in=60)
    await insert_batch(db, mailing_id, range(ids[1], ids[1] + 1), due_in=30)
    await insert_batch(db, mailing_id, range(ids[2], ids[2] + 1), due_in=-5, replica=ME)
    seconds = await queue.seconds_to_next(db)
    assert seconds is not None
    assert 25 < seconds <= 30
    await set_status(db, mailing_id, "paused")
    assert await queue.seconds_to_next(db) is None
    await running(db, 1)
    assert await queue.seconds_to_next(db) == 0.0


# ---- load ---------------------------------------------------------------------------------------------------------


async def test_load_gives_one_row_per_id_in_the_order_asked_for(db: Pool) -> None:
    mailing_id, ids = await running(db, 4)
    await db.execute("UPDATE clients SET timezone = 'Asia/Omsk' WHERE phone % 2 = 0")
    await db.execute("DELETE FROM clients WHERE id = (SELECT client_id FROM messages WHERE id = $1)", ids[2])

    rows = await queue.load(db, [ids[3], ids[0], ids[2], 999_999], [1, 1, 1, 1])

    assert [row.id for row in rows] == [ids[3], ids[0], ids[2], 999_999]
    assert [row.phone is None for row in rows] == [False, False, True, True]
    assert {row.timezone for row in rows[:2]} == {"Asia/Omsk", None}
    assert not any(row.recorded or row.counted or row.declined or row.in_doubt for row in rows)
    assert mailing_id


async def test_load_tells_the_history_of_each(db: Pool) -> None:
    mailing_id, ids = await running(db, 2)
    await insert_ledger(
        db,
        mailing_id,
        ids[0],
        ("throttled", "retrying", "throttled"),
        ("declined", "retrying", "declined"),
        ("unavailable", "retrying", "refused"),
        ("unavailable", "retrying", "outage"),
        ("unknown", "doubtful", "timeout"),
        ("interrupted", "doubtful", "interrupted"),
        ("misconfigured", "doubtful", "unauthorized"),
        ("not_started", "doubtful", "paused"),
    )
    for seq, recorded in ((8, True), (9, False)):
        loaded, other = await queue.load(db, ids, [seq, 1])
        assert loaded[3:] == (recorded, 4, 1, 2, False)
        assert other[3:] == (False, 0, 0, 0, False)


async def test_load_tells_who_was_let_go_since_the_last_doubt_and_who_was_declined_for_our_sake(db: Pool) -> None:
    mailing_id, ids = await running(db, 2)
    doubt, again = ("unknown", "unknown", "timeout"), ("resolved", "doubtful", "operator")
    declined = ("declined", "doubtful", "account_refused")
    await insert_ledger(db, mailing_id, ids[0], doubt, again, declined)
    await insert_ledger(db, mailing_id, ids[1], doubt, again, ("unknown", "doubtful", "timeout"))
    let_go, in_doubt_anew = await queue.load(db, ids, [4, 4])
    assert let_go[4:] == (2, 0, 1, True)
    assert in_doubt_anew[4:] == (2, 0, 2, False)


async def test_without_left_joins_a_deleted_client_hides_a_message(db: Pool) -> None:
    _, ids = await running(db, 2)
    await db.execute("DELETE FROM clients WHERE id = (SELECT client_id FROM messages WHERE id = $1)", ids[0])
    async with without(db, {"LEFT JOIN clients": "JOIN clients"}) as changed:
        with pytest.raises(AssertionError, match="2 ids asked for, 1 rows"):
            await queue.load(changed, ids, [1, 1])


# ---- sort again ---------------------------------------------------------------------------------------------------


async def test_ids_outside_their_window_go_into_batches_by_their_time(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 6, watermark=2)
    soon_, later = soon(60), soon(120)

    assert await queue.reschedule(
        db, batch, [ids[0], ids[1], ids[4]], [(ids[2], later), (ids[3], soon_), (ids[5], later)], version=1
    )

    rows = await batches_of(db, mailing_id)
    assert [(row["members"], row["due_at"], row["owner"], row["watermark"]) for row in rows] == [
        ([ids[0], ids[1], ids[4]], batch.due_at, batch.owner, 2),
        ([ids[2], ids[5]], later, None, 0),
        ([ids[3]], soon_, None, 0),
    ]
    assert {(row["seq"], row["state"]) for row in rows} == {(1, "waiting")}
    assert not await ledger_errors(db)
    done = await record_one(db, report(batch, 3, old_watermark=2), result(batch, ids[0]), result(batch, ids[1]))
    assert (done.watermark, done.finished) == (3, False)
    assert (await record_one(db, report(batch), result(batch, ids[4]))).finished
    assert not await ledger_errors(db)


async def test_a_batch_that_is_sorted_away_wholly_is_gone(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    due = soon()
    assert await queue.reschedule(db, batch, [], [(id_, due) for id_ in ids], version=1)
    (row,) = await batches_of(db, mailing_id)
    assert (row["members"], row["due_at"], row["owner"]) == (ids, due, None)
    assert not await ledger_errors(db)


async def test_a_list_keeps_its_number_and_standing_when_sorted(db: Pool) -> None:
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 3)
    for id_ in ids:
        await insert_ledger(db, mailing_id, id_, ("unknown", "doubtful", "timeout"))
    await insert_batch(db, mailing_id, list(ids), seq=2, state="doubtful")
    batch = await claim_one(db)
    assert await queue.reschedule(db, batch, ids[:2], [(ids[2], soon())], version=1)
    rows = await batches_of(db, mailing_id)
    assert [(row["members"], row["seq"], row["state"]) for row in rows] == [
        (ids[:2], 2, "doubtful"),
        (ids[2:], 2, "doubtful"),
    ]
    assert not await ledger_errors(db)


async def test_who_lost_the_batch_sorts_nothing(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    await adopt_all(db, PEER)
    before = await batches_of(db, mailing_id)
    assert not await queue.reschedule(db, batch, ids[:1], [(id_, soon()) for id_ in ids[1:]], version=1)
    assert await batches_of(db, mailing_id) == before


async def test_without_the_owner_sorting_again_takes_messages_twice(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    (theirs,) = await adopt_all(db, PEER)
    assert (await record_one(db, report(theirs, 3), replica=PEER)).watermark == 3
    async with without(db, {"b.id = $1 AND b.owner = $2": "b.id = $1 AND $2::bigint > 0"}) as changed:
        with pytest.raises(asyncpg.CheckViolationError):  # luckily: the watermark lies beyond what is left
            await queue.reschedule(changed, batch, ids[:1], [(id_, LATER) for id_ in ids[1:]], version=1)
        await queue.reschedule(changed, batch, ids, [(ids[0], LATER)], version=1)
    assert sorted(row["members"] for row in await batches_of(db, mailing_id)) == [ids[:1], ids]
    assert "in another batch" in str(await ledger_errors(db))


async def test_who_knows_another_window_sorts_nothing(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    await mailings.edit(db, mailing_id, {"window": Window(time(9), time(21))})
    before = await batches_of(db, mailing_id)
    with pytest.raises(Stale):
        await queue.reschedule(db, batch, ids[:1], [(id_, soon()) for id_ in ids[1:]], version=1)
    assert await batches_of(db, mailing_id) == before


async def test_an_edit_of_the_window_reaches_what_is_being_sorted(db: Pool) -> None:
    """The edit waits for the sorting and makes due what it added, instead of missing what it does not see yet."""
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    await while_held(
        db,
        lambda conn: queue.reschedule(conn, batch, ids[:1], [(id_, LATER) for id_ in ids[1:]], version=1),
        lambda conn: mailings.edit(conn, mailing_id, {"window": Window(time(9), time(21))}),
    )
    rows = await batches_of(db, mailing_id)
    assert [(row["members"], row["owner"] is None, row["due_at"] == LATER) for row in rows] == [
        (ids[:1], False, False),
        (ids[1:], True, False),
    ]


async def test_without_the_lock_an_edit_of_the_window_misses_what_is_being_sorted(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    batch = await claim_one(db)
    async with without(db, {"AND version = $8 FOR SHARE": "AND $8::int > 0"}) as changed, changed.transaction():
        await queue.reschedule(changed, batch, ids[:1], [(id_, LATER) for id_ in ids[1:]], version=1)
        await mailings.edit(db, mailing_id, {"window": Window(time(9), time(21))})
    assert [row["due_at"] == LATER for row in await batches_of(db, mailing_id)] == [False, True]


# ---- record: the watermark ----------------------------------------------------------------------------------------


async def test_the_mark_is_granted_and_shown_as_sending(db: Pool) -> None:
    mailing_id, _ = await running(db, 5)
    batch = await claim_one(db)

    recorded = await record_one(db, report(batch, 3))

    assert (recorded.batch_id, recorded.owned, recorded.watermark, recorded.finished) == (batch.id, True, 3, False)
    assert (recorded.foreign_rows, recorded.written, recorded.status, recorded.version) == (
        0,
        0,
        MailingStatus.RUNNING,
        1,
    )
    assert recorded.now < recorded.ends_at
    assert (await statistics.of_mailing(db, mailing_id)).messages["sending"] == 3  # type: ignore[index]
    assert not await ledger_errors(db)


# what forbids it, and the part of the statement that says so
GRANTS = {
    "paused": "m.status = 'running' AND",
    "cancelled": "m.status = 'running' AND",
    "ended": "m.ends_at > now() AND",
    "released": "NOT g.release AND",
    "moved": "AND b.watermark = g.old_watermark",
    "late": "AND b.foreign_rows = g.foreign_rows",
}


async def _forbidden(db: Db, why: str) -> tuple[list[int], queue.Claimed, BatchReport]:
    """A batch of four with the first id marked, and a report that asks for one more although something forbids it."""
    mailing_id, ids, batch = await marked(db, 4, watermark=1)
    asks = report(batch, 2, old_watermark=1)
    if why in ("paused", "cancelled"):
        await mailings.act(db, mailing_id, {"paused": "pause", "cancelled": "cancel"}[why])
    elif why == "ended":
        await db.execute("UPDATE mailings SET ends_at = now() - interval '1 ms'")
    elif why == "released":
        asks = asks._replace(release=True)
    elif why == "moved":
        asks = asks._replace(old_watermark=0)
    elif why == "late":
        assert await ledger.append_late(db, PEER, result(0, ids[1]))
    return ids, batch, asks


@pytest.mark.parametrize("why", GRANTS)
async def test_no_mark_is_granted_when(db: Pool, why: str) -> None:
    ids, batch, asks = await _forbidden(db, why)
    recorded = await record_one(db, asks, result(batch, ids[0]))
    assert recorded.watermark == 1
    assert recorded.written == 1  # results are recorded all the same
    assert await ledger_of(db, ids[0]) == [(1, "accepted", "sent", None)]
    assert not await ledger_errors(db)


@pytest.mark.parametrize("why", ["paused", "cancelled", "ended"])
async def test_without_a_look_at_the_mailing_a_mark_is_granted_after_the_word(
    db: Pool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave_out(monkeypatch, GRANTS[why])
    _, _, asks = await _forbidden(db, why)
    assert (await record_one(db, asks)).watermark == 2  # one more may be started


async def test_without_a_look_at_late_rows_an_accepted_message_is_sent_again(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave_out(monkeypatch, GRANTS["late"])
    _, _, asks = await _forbidden(db, "late")
    assert (await record_one(db, asks)).watermark == 2
    assert "0 done, 1 rows up to the watermark" in str(await ledger_errors(db))


async def test_without_the_old_mark_what_was_skipped_is_counted_twice(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The acknowledgement of the first record is lost; the second asks for more."""
    _leave_out(monkeypatch, GRANTS["moved"])
    _, ids = await running(db, 5)
    assert await ledger.append_late(db, PEER, result(0, ids[0]))
    batch = await claim_one(db)
    for watermark in (2, 3):
        await record_one(db, report(batch, watermark, skipped=1))
    assert "2 done, 1 rows" in str(await ledger_errors(db))


async def test_a_mark_asked_for_again_after_a_lost_acknowledgement_is_the_committed_one(db: Pool) -> None:
    _, ids = await running(db, 5)
    assert await ledger.append_late(db, PEER, result(0, ids[0]))
    batch = await claim_one(db)
    assert batch.foreign_rows == 1
    for watermark in (2, 3):
        recorded = await record_one(db, report(batch, watermark, skipped=1))
        assert recorded.watermark == 2
        assert not await ledger_errors(db)


def _leave_out(monkeypatch: pytest.MonkeyPatch, old: str, new: str = "") -> None:
    assert old in queue._RECORD
    monkeypatch.setattr(queue, "_RECORD", queue._RECORD.replace(old, new))


# ---- record: results ----------------------------------------------------------------------------------------------


async def test_results_are_counted_and_what_goes_on_is_grouped(db: Pool) -> None:
    """Retry batches are grouped by (due, seq, state); every transition out of waiting is in one flush."""
    mailing_id, ids, batch = await marked(db, 10, watermark=10)
    soon_, later = soon(60), soon(120)
    recorded = await record_one(
        db,
        report(batch),
        result(batch, ids[0]),
        result(batch, ids[1], "rejected", "failed", reason="rejected"),
        result(batch, ids[2], "declined", "failed"),
        result(batch, ids[3], "unavailable", "retrying", reason="dns", due_at=soon_),
        result(batch, ids[4], "unavailable", "retrying", reason="dns", due_at=later),
        result(batch, ids[5], "throttled", "retrying", reason="throttled", due_at=soon_),
        result(batch, ids[6], "unknown", "doubtful", reason="timeout", due_at=soon_),
        result(batch, ids[7], "unknown", "unknown", reason="timeout"),
        result(batch, ids[8], "suppressed", "suppressed", reason="client_deleted"),
        result(batch, ids[9], "not_started", "waiting", reason="window", due_at=soon_),
    )

    assert (recorded.written, recorded.finished) == (10, True)
    rows = await batches_of(db, mailing_id)
    assert sorted((row["members"], row["due_at"], row["seq"], row["state"]) for row in rows) == [
        ([ids[3], ids[5]], soon_, 2, "retrying"),
        ([ids[4]], later, 2, "retrying"),
        ([ids[6]], soon_, 2, "doubtful"),
        ([ids[9]], soon_, 2, "waiting"),
    ]
    found = await statistics.of_mailing(db, mailing_id)
    assert {(failure.reason, failure.count) for failure in found.failures} == {("rejected", 1), ("unknown", 1)}
    assert {status.value: n for status, n in found.messages.items() if n} == {
        "waiting": 1,
        "retrying": 4,
        "sent": 1,
        "failed": 2,
        "suppressed": 1,
        "unknown": 1,
    }
    assert not await ledger_errors(db)


STANDINGS = [s.value for s in MessageState if s not in ("delivered", "undelivered")]


async def test_every_step_moves_the_counters(db: Pool) -> None:
    for before, after in itertools.product(("waiting", "retrying", "doubtful"), STANDINGS):
        outcomes = {"waiting": "not_started", "retrying": "unavailable", "doubtful": "unknown"}
        mailing_id = await insert_mailing(db)
        (id_,) = await insert_messages(db, mailing_id, 1)
        await insert_ledger(db, mailing_id, id_, (outcomes[before], before, "paused"))
        await insert_batch(db, mailing_id, [id_], seq=2, state=before)
        batch = await claim_one(db)
        await record_one(db, report(batch, 1))
        assert not await ledger_errors(db)

        goes_on = LATER if after in outcomes else None
        outcome = outcomes.get(after, {"sent": "accepted", "failed": "rejected"}.get(after, after))
        await record_one(db, report(batch), result(batch, id_, outcome, after, reason="reset", due_at=goes_on))

        assert not await ledger_errors(db)
        assert (await ledger_of(db, id_))[-1] == (2, outcome, after, "reset")


async def test_results_come_in_any_order_and_finish_the_batch(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 3, watermark=3)
    assert (await record_one(db, report(batch), result(batch, ids[2]))).finished is False
    assert not await ledger_errors(db)
    assert (await record_one(db, report(batch), result(batch, ids[0]), result(batch, ids[1]))).finished is True
    assert await batches_of(db, mailing_id) == []
    assert not await ledger_errors(db)


async def test_results_and_a_new_mark_go_together(db: Pool) -> None:
    _, ids, batch = await marked(db, 5, watermark=2)
    recorded = await record_one(db, report(batch, 4, old_watermark=2), result(batch, ids[0]), result(batch, ids[1]))
    assert (recorded.watermark, recorded.written) == (4, 2)
    assert not await ledger_errors(db)


async def test_batches_of_several_mailings_are_recorded_at_once(db: Pool) -> None:
    works = []
    for _ in range(3):
        await running(db, 2)
        works.append(await claim_one(db))
    recorded = await queue.record(db, ME, [report(batch, 2) for batch in works], [])
    assert [(row.batch_id, row.watermark) for row in recorded] == [(batch.id, 2) for batch in works]
    reports = [report(batch, 2, old_watermark=2) for batch in works]
    results = [result(batch, id_) for batch in works for id_ in batch.ids]
    recorded = await queue.record(db, ME, reports, results)
    assert all(row.finished and row.written == 2 for row in recorded)
    assert not await ledger_errors(db)


async def test_the_same_record_again_changes_nothing(db: Pool) -> None:
    """The acknowledgement was lost: watermark, rows, retry batches and counters are there once."""
    mailing_id, ids, batch = await marked(db, 6, watermark=3)
    words = (
        report(batch, 5, old_watermark=3),
        result(batch, ids[0]),
        result(batch, ids[1], "unavailable", "retrying", reason="dns", due_at=LATER),
        result(batch, ids[2], "rejected", "failed", reason="rejected"),
    )
    first = await record_one(db, *words)
    before = await batches_of(db, mailing_id)
    again = await record_one(db, *words)
    assert (first.written, again.written, again.watermark) == (3, 0, 5)
    after = await batches_of(db, mailing_id)
    assert before == after
    assert not await ledger_errors(db)
    keys = [(id_, 1, AT) for id_ in ids]
    assert await ledger.mine(db, ME, keys) == set(keys[:3])


async def test_the_same_release_again_changes_nothing(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 6, watermark=3)
    words = (report(batch, 3, old_watermark=3, release=True), result(batch, ids[0]))
    for _ in range(2):
        await record_one(db, *words)
        assert [row["members"] for row in await batches_of(db, mailing_id)] == [ids[:3], ids[3:]]
        assert not await ledger_errors(db)


async def test_without_not_exists_a_replay_refuses_everything(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one row there already, no other result of the flush could ever be recorded."""
    skip = "WHERE NOT EXISTS (SELECT FROM attempts a WHERE a.message_id = r.message_id AND a.seq = f.seq)"
    _leave_out(monkeypatch, skip)
    _, ids, batch = await marked(db, 3, watermark=3)
    await record_one(db, report(batch), result(batch, ids[0]))
    for _ in range(2):
        with pytest.raises(asyncpg.UniqueViolationError):
            await record_one(db, report(batch), result(batch, ids[0]), result(batch, ids[1]))
    assert await ledger_of(db, ids[1]) == []


async def test_without_counting_from_rows_really_written_a_replay_counts_twice(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = "(SELECT r.message_id, f.seq FROM result r JOIN fence f ON f.id = r.batch_id)"
    _leave_out(monkeypatch, "FROM written w JOIN", f"FROM {given} w JOIN")
    _, ids, batch = await marked(db, 4, watermark=3)
    await record_one(db, report(batch), result(batch, ids[0]))
    assert not await ledger_errors(db)
    await record_one(db, report(batch), result(batch, ids[0]))
    assert "counters {'sent': 2}, counted {'sent': 1}" in str(await ledger_errors(db))


async def test_two_numbers_of_one_message_in_one_record_are_told_apart(db: Pool) -> None:
    """A late row moved the message on into another batch of ours while its old request was still under way."""
    mailing_id, ids, old = await marked(db, 2, watermark=2)
    late = result(0, ids[0], "unavailable", "retrying", reason="reset", due_at=soon(-1))
    assert await ledger.append_late(db, PEER, late)
    new = await claim_one(db)
    assert (new.seq, list(new.ids)) == (2, [ids[0]])
    await record_one(db, report(new, 1))

    await queue.record(
        db,
        ME,
        [report(old), report(new)],
        [result(old, ids[0], "rejected", "failed", reason="rejected"), result(new, ids[0])],
    )

    assert [row[2] for row in await ledger_of(db, ids[0])] == ["retrying", "sent"]
    assert not await ledger_errors(db)
    assert mailing_id


REFUSED: list[dict[str, Any]] = [
    {"detail": "a\x00b"},
    {"detail": "\ud800"},
    {"status_code": 40_000},
    {"duration_ms": 2**31},
]


async def test_a_refused_value_raises_and_writes_nothing(db: Pool) -> None:
    for refused in REFUSED:
        mailing_id, ids, batch = await marked(db, 3, watermark=2)
        before = await batches_of(db, mailing_id)
        with pytest.raises((asyncpg.PostgresError, ValueError)):
            await record_one(
                db, report(batch, 3, old_watermark=2), result(batch, ids[0]), result(batch, ids[1], **refused)
            )
        assert await batches_of(db, mailing_id) == before
        assert await ledger_of(db, ids[0]) == []
        assert not await ledger_errors(db)


async def test_another_row_that_comes_in_between_raises_and_the_second_try_passes(db: Pool) -> None:
    """The record waits for the batch that somebody writes a late row for; its snapshot is older than that row."""
    mailing_id, ids, batch = await marked(db, 3, watermark=2)
    words = (report(batch, 3, old_watermark=2), result(batch, ids[0]), result(batch, ids[1]))
    with pytest.raises(asyncpg.UniqueViolationError):
        await while_held(
            db,
            lambda conn: ledger.append_late(conn, PEER, result(0, ids[0], "rejected", "failed", reason="rejected")),
            lambda conn: record_one(conn, *words),
        )
    assert not await ledger_errors(db)
    assert await ledger_of(db, ids[1]) == []

    recorded = await record_one(db, *words)

    assert (recorded.written, recorded.foreign_rows, recorded.watermark) == (
        1,
        1,
        2,
    )  # load again before asking for a watermark
    assert await ledger_of(db, ids[0]) == [(1, "rejected", "failed", "late")]
    assert not await ledger_errors(db)
    assert mailing_id


async def test_ids_that_have_their_row_are_skipped_and_the_batch_still_ends(db: Pool) -> None:
    mailing_id, ids = await running(db, 3)
    for id_ in ids[:2]:
        assert await ledger.append_late(db, PEER, result(0, id_))
    batch = await claim_one(db)
    loaded = await queue.load(db, batch.ids, [1, 1, 1])
    assert [message.recorded for message in loaded] == [True, True, False]
    recorded = await record_one(db, report(batch, 3, skipped=2))
    assert (recorded.watermark, recorded.finished) == (3, False)
    assert not await ledger_errors(db)
    assert (await record_one(db, report(batch, 3, old_watermark=3), result(batch, ids[2]))).finished
    assert not await ledger_errors(db)
    assert await batches_of(db, mailing_id) == []


async def test_a_batch_with_nothing_left_to_do_ends_with_its_mark(db: Pool) -> None:
    mailing_id, ids = await running(db, 1)
    assert await ledger.append_late(db, PEER, result(0, ids[0]))
    batch = await claim_one(db)
    assert (await record_one(db, report(batch, 1, skipped=1))).finished
    assert await batches_of(db, mailing_id) == []
    assert not await ledger_errors(db)


# ---- record: the fence --------------------------------------------------------------------------------------------


async def test_who_lost_the_batch_writes_nothing(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    await adopt_all(db, PEER)  # nobody is registered
    before = await batches_of(db, mailing_id)

    recorded = await record_one(db, report(batch, 4, old_watermark=2), result(batch, ids[0], "rejected", "failed"))

    assert not recorded.owned
    assert await batches_of(db, mailing_id) == before
    assert await ledger_of(db, ids[0]) == []
    assert not await ledger_errors(db)


async def test_who_lost_one_of_two_batches_records_the_other(db: Pool) -> None:
    _, _, lost = await marked(db, 2, watermark=2)
    await adopt_all(db, PEER)
    _, ids, kept = await marked(db, 2, watermark=2)
    first, second = await queue.record(
        db,
        ME,
        [report(lost, 2, old_watermark=2), report(kept, 2, old_watermark=2)],
        [result(lost, lost.ids[0]), result(kept, ids[0])],
    )
    assert (first.owned, second.owned, second.written) == (False, True, 1)
    assert not await ledger_errors(db)


async def test_a_take_over_settles_what_is_in_doubt_and_gives_back_the_rest(db: Pool) -> None:
    mailing_id, ids, _ = await marked(db, 4, watermark=2)
    (reclaimed,) = await adopt_all(db, PEER)
    await record_one(db, *_interrupted(reclaimed), replica=PEER)
    rows = await batches_of(db, mailing_id)
    assert [(row["members"], row["seq"], row["owner"]) for row in rows] == [(ids[2:], 1, None), (ids[:2], 2, None)]
    assert not await ledger_errors(db)


def _interrupted(reclaimed: queue.Claimed) -> Any:
    rows = [
        result(reclaimed, id_, "interrupted", "doubtful", reason="interrupted", due_at=LATER)
        for id_ in reclaimed.ids[: reclaimed.watermark]
    ]
    return report(reclaimed, release=True), *rows


async def test_without_the_fence_a_lost_owner_starts_what_nobody_settles(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    _leave_out(monkeypatch, " AND b.owner = g.owner")
    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    (reclaimed,) = await adopt_all(db, PEER)
    assert (await record_one(db, report(batch, 4, old_watermark=2))).watermark == 4
    await record_one(db, *_interrupted(reclaimed), replica=PEER)
    rows = await batches_of(db, mailing_id)
    assert rows[0]["members"] == ids  # three and four are in doubt, and nobody's business
    assert (rows[0]["watermark"], rows[0]["done"]) == (4, 2)


# ---- record: release ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_list", [False, True])
async def test_a_release_splits_at_the_mark(db: Pool, as_list: bool) -> None:
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 6)
    members = [ids[0], ids[2], ids[3], ids[5]] if as_list else range(ids[0], ids[0] + 6)
    for id_ in set(ids) - set(members):
        await insert_batch(db, mailing_id, [id_], due_in=60)
    await insert_batch(db, mailing_id, members)
    batch = await claim_one(db)
    await record_one(db, report(batch, 2))

    recorded = await record_one(db, report(batch, 2, old_watermark=2, release=True), result(batch, members[0]))

    assert (recorded.watermark, recorded.finished) == (2, False)
    rows = [row for row in await batches_of(db, mailing_id) if row["due_at"] == batch.due_at]
    assert [(row["members"], row["owner"], row["watermark"], row["done"]) for row in rows] == [
        (list(members[:2]), batch.owner, 2, 1),
        (list(members[2:]), None, 0, 0),
    ]
    assert rows[1]["size"] == len(members) - 2
    assert (rows[1]["ids"] is None) is not as_list
    assert not await ledger_errors(db)
    (tail,) = await queue.claim(db, PEER, after=0)
    assert list(tail.ids) == list(members[2:])
    not_started = result(batch, members[1], "not_started", "waiting", reason="released", due_at=batch.due_at)
    assert (await record_one(db, report(batch, 2, old_watermark=2, release=True), not_started)).finished
    assert not await ledger_errors(db)


async def test_a_release_before_any_mark_gives_everything_back(db: Pool) -> None:
    mailing_id, ids = await running(db, 4)
    batch = await claim_one(db)
    assert (await record_one(db, report(batch, release=True))).finished
    (row,) = await batches_of(db, mailing_id)
    assert (row["members"], row["owner"], row["due_at"]) == (ids, None, batch.due_at)
    assert row["id"] != batch.id
    assert not await ledger_errors(db)


async def test_a_release_with_everything_marked_leaves_no_tail(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    await record_one(db, report(batch, 2, old_watermark=2, release=True))
    assert [row["members"] for row in await batches_of(db, mailing_id)] == [ids]
    assert not await ledger_errors(db)


async def test_pause_is_heard_with_the_next_record_and_released(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    await mailings.act(db, mailing_id, "pause")
    recorded = await record_one(db, report(batch, 4, old_watermark=2), result(batch, ids[0]))
    assert (recorded.status, recorded.version, recorded.watermark) == (MailingStatus.PAUSED, 2, 2)
    not_started = result(batch, ids[1], "not_started", "waiting", reason="paused", due_at=batch.due_at)
    assert (await record_one(db, report(batch, 2, old_watermark=2, release=True), not_started)).finished
    assert sorted((row["members"], row["seq"]) for row in await batches_of(db, mailing_id)) == [
        ([ids[1]], 2),
        (ids[2:], 1),
    ]
    assert not await ledger_errors(db)


async def test_without_the_tail_a_release_loses_messages(db: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    _leave_out(monkeypatch, "FROM fence WHERE release AND watermark < size", "FROM fence WHERE false")
    _, _, batch = await marked(db, 4, watermark=2)
    await record_one(db, report(batch, 2, old_watermark=2, release=True))
    assert "should write 1, would write None" in str(await ledger_errors(db))


async def test_without_a_ledger_row_for_the_marked_a_release_hides_what_may_have_been_sent(
    db: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were the marked given back too, a message whose request is under way would be sent by the next owner as well."""
    _leave_out(
        monkeypatch,
        "CASE WHEN f.release THEN f.watermark ELSE f.size END",
        "CASE WHEN f.release THEN f.done ELSE f.size END",
    )
    for part in ("coalesce(ids[watermark + 1], first_id + watermark)", "size - watermark,", "ids[watermark + 1:]"):
        _leave_out(monkeypatch, part, part.replace("watermark", "done"))
    _leave_out(monkeypatch, "release AND watermark < size", "release AND done < size")
    mailing_id, ids, batch = await marked(db, 4, watermark=2)
    await record_one(db, report(batch, 2, old_watermark=2, release=True))
    (theirs,) = await queue.claim(db, PEER, after=0)
    assert list(theirs.ids) == ids
    assert (await record_one(db, report(theirs, 2), replica=PEER)).watermark == 2
    assert await ledger_of(db, ids[0]) == []  # and nothing says that it happened twice
    assert mailing_id


# ---- reclaim --------------------------------------------------------------------------------------------------------


async def _owned_by(db: Db, replica: int, **batch: Any) -> int:
    mailing_id, ids = await running(db)
    ids = await insert_messages(db, mailing_id, 2)
    return await insert_batch(db, mailing_id, range(*_bounds(ids)), replica=replica, **batch)


async def test_only_what_is_as_it_was_seen_is_taken_over(db: Pool) -> None:
    """Finished, given back, or gone on with meanwhile: not taken."""
    taken, finished, released, marked_on, recorded = [await _owned_by(db, 99) for _ in range(5)]
    seen = await queue.owned(db)
    assert [(batch.id, batch.replica, batch.over) for batch in seen] == [
        (batch_id, 99, False) for batch_id in (taken, finished, released, marked_on, recorded)
    ]
    await db.execute("DELETE FROM batches WHERE id = $1", finished)
    await db.execute("UPDATE batches SET owner = NULL, replica = NULL WHERE id = $1", released)
    await db.execute("UPDATE batches SET watermark = watermark + 1 WHERE id = $1", marked_on)
    await db.execute("UPDATE batches SET watermark = watermark + 1, done = done + 1 WHERE id = $1", recorded)
    (reclaimed,) = await queue.reclaim(db, ME, seen)
    assert reclaimed.id == taken
    assert await queue.reclaim(db, PEER, seen) == []


async def test_two_who_take_over_at_once_do_not_wait_for_each_other(db: Pool) -> None:
    batches = [await _owned_by(db, 99) for _ in range(3)]
    async with db.acquire() as first, db.acquire() as second, first.transaction():
        some = await adopt_all(first, ME)
        rest = await asyncio.wait_for(adopt_all(second, PEER), PATIENCE)
    assert sorted(batch.id for batch in some) == batches
    assert rest == []


async def test_without_skip_locked_a_second_taker_waits(db: Pool) -> None:
    await _owned_by(db, 99)
    reclaimed = await while_held(
        db,
        lambda conn: adopt_all(conn, ME),
        lambda conn: adopt_all(conn, PEER),
        replace={" SKIP LOCKED": ""},
    )
    assert reclaimed == []


async def test_an_owner_who_records_while_it_is_taken_over_loses(db: Pool) -> None:
    """The record waits for the take-over's lock, and finds another owner behind it."""
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    recorded = await while_held(
        db,
        lambda conn: adopt_all(conn, PEER),
        lambda conn: record_one(conn, report(batch), result(batch, ids[0])),
    )
    assert not recorded.owned
    assert not await ledger_errors(db)
    assert mailing_id


async def test_a_take_over_passes_an_owner_who_is_recording(db: Pool) -> None:
    _, ids, batch = await marked(db, 2, watermark=2)
    async with db.acquire() as conn, conn.transaction():
        await record_one(conn, report(batch), result(batch, ids[0]))
        assert await adopt_all(db, PEER) == []
    assert not await ledger_errors(db)


async def test_two_records_of_one_mailing_wait_for_each_other_in_one_order(db: Pool) -> None:
    """Two replicas of one slot count into the same rows: the second waits, nobody is chosen as a victim."""
    await running(db, 2, 2)
    works = [await claim_one(db), await claim_one(db, PEER)]
    for batch in works:
        await record_one(db, report(batch, 2))

    def write(batch: queue.Claimed) -> Any:
        rows = [result(batch, batch.ids[0]), result(batch, batch.ids[1], "rejected", "failed", reason="rejected")]
        return lambda conn: record_one(conn, report(batch, 2, old_watermark=2), *rows)

    recorded = await while_held(db, write(works[0]), write(works[1]))
    assert recorded.written == 2
    assert not await ledger_errors(db)


async def test_a_purged_mailing_leaves_its_old_owner_nothing_to_write(db: Pool) -> None:
    mailing_id, ids, batch = await marked(db, 2, watermark=2)
    await mailings.delete(db, mailing_id)
    await record_one(db, report(batch), *(result(batch, id_) for id_ in ids))
    await let_a_month_pass(db)
    while await mailings.purge(db):
        pass
    assert not (await record_one(db, report(batch), result(batch, ids[0]))).owned
    assert not await ledger_errors(db)


async def test_the_due_time_of_a_batch_given_back_is_the_old_one(db: Pool) -> None:
    mailing_id, _ = await running(db, 2)
    batch = await claim_one(db)
    await record_one(db, report(batch, release=True))
    (row,) = await batches_of(db, mailing_id)
    assert row["due_at"] - batch.due_at == timedelta(0)


async def test_a_release_meets_a_waiting_late_row_without_losing_it(db: Pool) -> None:
    """A late row is written for an id that moves into the tail at this moment: the tail learns of it.

    Otherwise the tail's next owner, who loaded before the commit, would be granted a watermark over it.
    """
    mailing_id, ids, batch = await marked(db, 4, watermark=1)
    assert await while_held(
        db,
        lambda conn: record_one(conn, report(batch, 1, old_watermark=1, release=True)),
        lambda conn: ledger.append_late(conn, PEER, result(0, ids[3])),
    )
    _, tail = await batches_of(db, mailing_id)
    assert (tail["members"], tail["foreign_rows"]) == (ids[1:], 1)
    assert not await ledger_errors(db)


async def test_a_record_and_a_late_row_lock_the_books_in_one_order(db: Pool) -> None:
    """Both want the same counter rows; a third one holds them up in the middle until both are under way."""
    await running(db, 2, 2)
    mine, theirs = await claim_one(db), await claim_one(db)
    for batch in (mine, theirs):
        await record_one(db, report(batch, 2))
        await record_one(
            db,
            report(batch, 2, old_watermark=2),
            result(batch, batch.ids[0], "rejected", "failed", reason="late"),
        )
    async with db.acquire() as one, db.acquire() as other:
        async with db.acquire() as third, third.transaction():
            await third.execute("SELECT FROM failures FOR UPDATE")
            rejected = result(mine, mine.ids[1], "rejected", "failed", reason="late")
            record = asyncio.ensure_future(record_one(one, report(mine, 2, old_watermark=2), rejected))
            await waiting_for_a_lock(third, one)
            late = result(0, theirs.ids[1], "rejected", "failed", reason="rejected")
            append = asyncio.ensure_future(ledger.append_late(other, ME, late))
            await waiting_for_a_lock(third, other)
        assert (await record).written == 1
        assert await append
    assert not await ledger_errors(db)


async def test_counters_are_locked_in_one_order_too(db: Pool) -> None:
    """From retrying to doubtful, by a record and by a late row: each changes both counters."""
    mailing_id = await insert_mailing(db)
    ids = await insert_messages(db, mailing_id, 2)
    for id_ in ids:
        await insert_ledger(db, mailing_id, id_, ("unavailable", "retrying", "dns"))
        await insert_batch(db, mailing_id, [id_], seq=2, state="retrying")
    mine = await claim_one(db)
    await record_one(db, report(mine, 1))
    await db.execute(
        "INSERT INTO counters SELECT $1, 1, s, 0 FROM unnest('{retrying,doubtful}'::message_state[]) s", mailing_id
    )
    async with db.acquire() as one, db.acquire() as other:
        async with db.acquire() as third, third.transaction():
            await third.execute("SELECT FROM counters WHERE slot = 1 AND state = 'doubtful' FOR UPDATE")
            unknown = result(mine, mine.ids[0], "unknown", "doubtful", due_at=LATER)
            record = asyncio.ensure_future(record_one(one, report(mine, 1, old_watermark=1), unknown))
            await waiting_for_a_lock(third, one)
            late = result(0, (set(ids) - set(mine.ids)).pop(), "unknown", "doubtful", due_at=LATER)
            append = asyncio.ensure_future(ledger.append_late(other, ME, late))
            await waiting_for_a_lock(third, other)
        assert (await record).written == 1
        assert await append
    assert not await ledger_errors(db)
