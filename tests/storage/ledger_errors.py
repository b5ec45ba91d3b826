"""The ledger, the batches, the counters and the statistics of every mailing, counted a second time and compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from notifier.models import OPEN_STATES, MailingStatus, MessageState, Status, status_of
from notifier.storage import statistics
from notifier.storage.database import Db
from tests.storage.scenes import batches_of


async def ledger_errors(db: Db) -> list[str]:
    """Count everything again in the plainest way there is; what does not add up, in words.

    Of a mailing that is being purged, which begins a month after it was deleted, nothing is asked.
    """
    wrong: list[str] = []
    orphans = await db.fetchval(
        "SELECT count(*) FROM attempts a WHERE NOT EXISTS (SELECT FROM messages m WHERE m.id = a.message_id)"
    )
    if orphans:
        wrong.append(f"{orphans} ledger rows of no message")
    kept = "SELECT * FROM mailings WHERE (deleted_at > now() - interval '30 days') IS NOT FALSE ORDER BY id"
    for mailing in await db.fetch(kept):
        wrong += [f"mailing {mailing['id']}: {what}" for what in await _books_of(db, mailing)]
    return wrong


async def _books_of(db: Db, mailing: Any) -> list[str]:
    found = await db.fetchrow(_BOOKS, mailing["id"])
    assert found is not None
    ledgers = {id_: list(rows) for id_, rows in found["ledgers"]}
    wrong = _ledger_is_dense(ledgers)
    states = {id_: MessageState(rows[-1][1]) if rows else MessageState.WAITING for id_, rows in ledgers.items()}

    if not mailing["audience"] == len(ledgers) == found["sliced"]:
        wrong.append(f"audience {mailing['audience']}, {len(ledgers)} messages, {found['sliced']} ids in slices")

    positions: dict[int, int] = {}
    sending = set()
    for batch in await batches_of(db, mailing["id"]):
        recorded = [(id_, len(ledgers.get(id_, ())) >= batch["seq"]) for id_ in batch["members"]]
        done = sum(there for _, there in recorded[: batch["watermark"]])
        if done != batch["done"]:
            wrong.append(f"batch {batch['id']}: {batch['done']} done, {done} rows up to the watermark")
        for position, (id_, there) in enumerate(recorded):
            if there:
                continue
            if id_ in positions or id_ not in ledgers:
                wrong.append(f"message {id_} of batch {batch['id']} is in another batch, or none of this mailing")
            positions[id_] = batch["seq"]
            if position < batch["watermark"]:
                sending.add(id_)
            if states.get(id_) != batch["state"]:
                wrong.append(f"message {id_} is {states.get(id_)}, its batch {batch['state']}")
    for id_, state in states.items():
        expected = len(ledgers[id_]) + 1 if state in OPEN_STATES else None
        if positions.get(id_) != expected:
            wrong.append(f"message {id_} is {state}, should write {expected}, would write {positions.get(id_)}")

    wrong += _counters_are_right(found, ledgers, states)
    if mailing["deleted_at"] is not None:  # no statistics are shown of it
        return wrong
    shown = await statistics.of_mailing(db, mailing["id"])
    status = MailingStatus(mailing["status"])
    counted = Counter(status_of(state, status, sending=id_ in sending) for id_, state in states.items())
    if shown.messages != {status: counted[status] for status in Status}:
        wrong.append(f"shown {shown.messages}, counted {counted}")
    if sum(shown.messages.values()) != shown.audience:
        wrong.append(f"{shown.messages} is not {shown.audience} together")
    return wrong


# One statement for what is kept and what it is counted from, since a test may ask after each of hundreds of steps.
_BOOKS = """
    SELECT ARRAY(
               SELECT row(g.id, ARRAY(
                   SELECT row(seq, state::text, reason, a.mailing_id = g.mailing_id)
                   FROM attempts a WHERE a.message_id = g.id ORDER BY seq
               )) FROM messages g WHERE g.mailing_id = $1
           ) AS ledgers,
           (SELECT coalesce(sum(last_id - first_id + 1), 0) FROM slices WHERE mailing_id = $1) AS sliced,
           ARRAY(
               SELECT row(state::text, sum(n)::int) FROM counters WHERE mailing_id = $1 GROUP BY state
           ) AS counters,
           ARRAY(SELECT row(reason, sum(n)::int) FROM failures WHERE mailing_id = $1 GROUP BY reason) AS failures,
           (
               SELECT row(coalesce(sum(sent), 0)::int, coalesce(sum(failed), 0)::int)
               FROM series WHERE mailing_id = $1
           ) AS series
"""


def _ledger_is_dense(ledgers: dict[int, list[Any]]) -> list[str]:
    return [
        f"message {id_} has the rows {rows}"
        for id_, rows in ledgers.items()
        if [(row[0], row[3]) for row in rows] != [(n, True) for n in range(1, len(rows) + 1)]
    ]


def _counters_are_right(found: Any, ledgers: dict[int, list[Any]], states: dict[int, MessageState]) -> list[str]:
    wrong = []

    def compare(name: str, counted: Iterable[str]) -> None:
        kept = {key: n for key, n in found[name] if n}
        if kept != Counter(counted):
            wrong.append(f"{name} {kept}, counted {dict(Counter(counted))}")

    into: Counter[str] = Counter()  # steps to another state
    failed_by = []
    for id_, rows in ledgers.items():
        before, reason = "waiting", None
        for _, state, why, _ in rows:
            if state != before:
                into[state] += 1
                reason = why
            before = state
        if states[id_] is MessageState.FAILED:
            failed_by.append(reason or "unknown")
    there = [state.value for state in states.values() if state is not MessageState.WAITING]
    compare("counters", there)
    compare("failures", failed_by)
    if tuple(found["series"]) != (into["sent"], into["failed"]):
        wrong.append(f"series {found['series']}, steps {into}")
    return wrong
