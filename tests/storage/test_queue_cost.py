"""What the verbs of the queue cost: the plans of their statements over a long queue."""

from __future__ import annotations

import json
from typing import Any

from notifier.storage import queue, recording
from notifier.storage.database import Db, Pool, transaction
from tests.storage.scenes import ME, claim_one, insert_mailing, record_one, report


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
    await recording.record(heard, ME, [report(batch, 5)], [])  # type: ignore[arg-type]
    plan = await _plan(db, *heard.said)
    assert {node["Index Name"] for node in _scans(plan, "batches", "attempts")} <= {"batches_pkey", "attempts_pkey"}
    assert plan["Shared Hit Blocks"] + plan["Shared Read Blocks"] < 100

    assert first
