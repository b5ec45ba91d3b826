"""Every verb of a mailing from every status: start, pause, resume, cancel, and what each writes."""

from __future__ import annotations

import itertools
from collections.abc import Awaitable, Callable

import pytest

from notifier.errors import IllegalTransition, Stale
from notifier.models import MAILING_TRANSITIONS
from notifier.storage import audience, mailing_lifecycle, mailings
from notifier.storage.database import Connection, Db, Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.mailing_scenes import STATUSES, create, texts_of
from tests.storage.races import while_held
from tests.storage.scenes import insert_mailing, running, soon

VERBS = ["start", "pause", "resume", "cancel"]


async def test_every_verb_from_every_status(db: Pool) -> None:
    """What the table of transitions does not list is refused, and changes nothing."""
    for verb, status in itertools.product(VERBS, STATUSES):
        mailing_id = await insert_mailing(db, status)
        before = await mailings.get(db, mailing_id)
        sources, target = MAILING_TRANSITIONS[verb]
        if status in sources:
            after = await mailings.act(db, mailing_id, verb)
            assert (after.status, after.version, after.status_reason) == (target, 2, None)
            assert after.updated_at > before.updated_at
            over_at = await db.fetchval("SELECT over_at FROM mailings WHERE id = $1", mailing_id)
            assert (over_at is not None) == (verb == "cancel")
        else:
            with pytest.raises(IllegalTransition, match=f"status={status} verb={verb}"):
                await mailings.act(db, mailing_id, verb)
            assert await mailings.get(db, mailing_id) == before


async def test_the_table_of_transitions_is_the_documented_one() -> None:
    """Written once more, as docs and API have it."""
    assert {verb: (set(sources), target) for verb, (sources, target) in MAILING_TRANSITIONS.items()} == {
        "start": ({"draft"}, "scheduled"),
        "begin": ({"scheduled"}, "running"),
        "pause": ({"scheduled", "running"}, "paused"),
        "resume": ({"paused"}, "running"),
        "resume_unbegun": ({"paused"}, "scheduled"),
        "cancel": ({"draft", "scheduled", "running", "paused"}, "cancelled"),
        "finish": ({"scheduled", "running", "paused"}, "finished"),
        "reopen": ({"finished"}, "running"),
    }


async def test_resume_leads_back_to_where_the_pause_came_from(db: Pool) -> None:
    mailing = await create(db, starts_at=soon(60))
    await mailings.act(db, mailing.id, "pause")
    assert await audience.begin_due(db) == []
    assert (await mailings.act(db, mailing.id, "resume")).status == "scheduled"
    await mailings.edit(db, mailing.id, {"starts_at": soon(-1)})
    assert [begun.id for begun in await audience.begin_due(db)] == [mailing.id]
    await mailings.act(db, mailing.id, "pause")
    assert (await mailings.act(db, mailing.id, "resume")).status == "running"


async def test_nothing_goes_on_after_the_end(db: Pool) -> None:
    for status, verb in (("draft", "start"), ("paused", "resume")):
        mailing_id = await insert_mailing(db, status, ends_in=-1)
        with pytest.raises(IllegalTransition, match="end_has_come"):
            await mailings.act(db, mailing_id, verb)
        assert (await mailings.act(db, mailing_id, "cancel")).status == "cancelled"


async def test_an_older_version_is_stale(db: Pool) -> None:
    mailing = await create(db)
    assert (await mailings.act(db, mailing.id, "pause", if_match=1)).version == 2
    for call in (
        mailings.act(db, mailing.id, "resume", if_match=1),
        mailings.edit(db, mailing.id, {"name": "x"}, if_match=1),
        mailings.delete(db, mailing.id, if_match=1),
    ):
        with pytest.raises(Stale):
            await call
    assert (await mailings.get(db, mailing.id)).version == 2


async def test_two_editors_at_once_one_is_stale(db: Pool) -> None:
    mailing = await create(db)
    with pytest.raises(Stale):
        await while_held(
            db,
            lambda conn: mailings.edit(conn, mailing.id, {"text": "one"}, if_match=1),
            lambda conn: mailings.edit(conn, mailing.id, {"text": "other"}, if_match=1),
        )
    assert (await mailings.get(db, mailing.id)).text == "one"


@pytest.mark.parametrize("verb", ["pause", "delete", "edit"])
async def test_a_word_that_waits_for_an_edit_of_the_text_is_not_lost(db: Pool, verb: str) -> None:
    """Its row lock comes when the mailing has another text than the one it first saw."""
    mailing = await create(db)
    words: dict[str, Callable[[Connection], Awaitable[object]]] = {
        "pause": lambda conn: mailings.act(conn, mailing.id, "pause"),
        "delete": lambda conn: mailings.delete(conn, mailing.id),
        "edit": lambda conn: mailings.edit(conn, mailing.id, {"text": "three"}),
    }
    await while_held(db, lambda conn: mailings.edit(conn, mailing.id, {"text": "two"}), words[verb])
    texts = [(1, "Hi"), (2, "two")]
    assert await texts_of(db, mailing.id) == ([*texts, (3, "three")] if verb == "edit" else texts)


async def _written(db: Db) -> dict[str, int]:
    """Rows inserted, updated and deleted so far over this connection, by table."""
    rows = await db.fetch("SELECT relname, n_tup_ins + n_tup_upd + n_tup_del AS n FROM pg_stat_xact_user_tables")
    return {row["relname"]: row["n"] for row in rows if row["n"]}


async def test_a_word_writes_one_row_however_large_the_mailing_is(db: Pool) -> None:
    for verb, batches in itertools.product(("pause", "cancel", "delete", "expire"), (2, 200)):
        mailing_id, _ = await running(db, *([1] * batches))
        async with db.acquire() as conn, conn.transaction():
            before = await _written(conn)
            if verb == "delete":
                await mailings.delete(conn, mailing_id)
            elif verb == "expire":
                await conn.execute("UPDATE mailings SET ends_at = clock_timestamp() WHERE id = $1", mailing_id)
                before["mailings"] = before.get("mailings", 0) + 1
                assert await mailing_lifecycle.finish_ended(conn) == [mailing_id]
            else:
                await mailings.act(conn, mailing_id, verb)
            assert await _written(conn) == before | {"mailings": before.get("mailings", 0) + 1}
        assert not await ledger_errors(db)
