"""Every client gets one message, and every answer of the gateway becomes an outcome."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from notifier import policy
from notifier.delivery import feeder
from notifier.errors import Conflict
from notifier.models import OnUnknown, Status
from notifier.storage import audience, clients, gateways, ledger
from notifier.storage.audience import Unplanned
from tests.conftest import poll_until
from tests.delivery.conftest import World
from tests.delivery.scenes import FIRST, only_first

ANSWERS: dict[str, tuple[dict[str, Any], str, str | None]] = {
    "a refusal of this message": ({"kind": "status", "status": 400}, "failed", "rejected"),
    "gone": ({"kind": "status", "status": 410}, "failed", "rejected"),
    "a code": ({"kind": "code", "code": 7, "message": "no such number"}, "failed", "declined"),
    "500": ({"kind": "status", "status": 500}, "unknown", "server_error"),
    "502 as HTML": ({"kind": "status", "status": 502, "text": "<html>"}, "unknown", "server_error"),
    "408": ({"kind": "status", "status": 408}, "unknown", "timeout"),
    "201": ({"kind": "status", "status": 201}, "unknown", "bad_answer"),
    "HTML": ({"kind": "body", "text": "<html>OK</html>"}, "unknown", "bad_answer"),
    "a list": ({"kind": "body", "text": "[]"}, "unknown", "bad_answer"),
    "truncated": ({"kind": "body", "text": '{"code": 0, "mess'}, "unknown", "bad_answer"),
    "a code that is a string": ({"kind": "body", "text": '{"code": "0"}'}, "unknown", "bad_answer"),
    "a code that is a bool": ({"kind": "body", "text": '{"code": false}'}, "unknown", "bad_answer"),
    "NaN": ({"kind": "body", "text": '{"code": NaN}'}, "unknown", "bad_answer"),
    "invalid UTF-8": ({"kind": "body", "base64": "eyJjb2RlIjogMCwgIm1lc3NhZ2UiOiAi/yJ9"}, "unknown", "bad_answer"),
    "NUL": ({"kind": "body", "base64": "AAAA"}, "unknown", "bad_answer"),
    "a gigabyte": ({"kind": "huge"}, "unknown", "bad_answer"),
    "a gzip bomb": ({"kind": "gzip_bomb"}, "unknown", "bad_answer"),
    "no end of headers": ({"kind": "endless_headers"}, "unknown", "bad_answer"),
    "too short a body": ({"kind": "wrong_length"}, "unknown", "reset"),
    "a broken chunk": ({"kind": "chunked_broken"}, "unknown", "bad_answer"),
    "no answer": ({"kind": "hang"}, "unknown", "timeout"),
    "a byte a second": ({"kind": "drip"}, "unknown", "timeout"),
    "a reset": ({"kind": "reset"}, "unknown", "reset"),
    "a close": ({"kind": "reset", "accept": True}, "unknown", "reset"),
}

DOUBTS: dict[str, tuple[list[dict[str, Any]], str, str | None]] = {
    "409": ([{"kind": "status", "status": 409, "text": '{"message":"exists"}'}], "sent", "already_accepted"),
    "a duplicate, by its words": (
        [{"kind": "code", "code": 9, "message": "duplicate"}], "sent", "already_accepted"
    ),
    "refused, then 409": (
        [{"kind": "status", "status": 503}, {"kind": "status", "status": 409}], "sent", "already_accepted"
    ),
    "a rejection": ([{"kind": "status", "status": 400, "text": "bad text"}], "unknown", "rejected"),
    "refused, then a rejection": (
        [{"kind": "status", "status": 503}, {"kind": "status", "status": 422, "text": "bad text"}],
        "unknown",
        "rejected",
    ),
    "declined again and again": ([{"kind": "code", "code": 7, "message": "not now"}] * 5, "unknown", "declined"),
}  # fmt: skip


async def test_everybody_gets_one_message(world: World) -> None:
    await world.clients(1_234)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=1_234)
    await world.finished(mailing)
    await world.check(mailing)
    entries = world.simulator.entries()
    assert len({entry.phone for entry in entries}) == len(entries) == 1_234
    assert await world.db.fetchval("SELECT count(*) FROM batches") == 0


async def test_no_poll_sees_books_that_do_not_balance(world: World) -> None:
    await world.clients(3_000)
    world.simulator.script({"share": 0.2, "do": {"kind": "status", "status": 500}}, latency=5)
    await world.replica(concurrency=50)
    mailing = await world.mailing()
    polls = 0
    while await world.status(mailing) != "finished":
        counts = await world.counts(mailing)  # asserts that the sum holds and nothing is negative
        assert counts.get("sending", 0) <= 50 + feeder.AHEAD
        polls += 1
    assert polls > 10
    await world.check(mailing)


async def test_a_mailing_starts_by_itself_and_not_too_early(world: World) -> None:
    await world.clients(1)
    await world.replica()
    starts_at = datetime.now(UTC) + timedelta(seconds=1.5)
    mailing = await world.mailing(starts_at=starts_at)
    await world.until(mailing, sent=1)
    (entry,) = world.simulator.entries()
    assert entry.at >= starts_at  # how soon is measured by the bench


async def test_a_mailing_that_has_ended_sends_nothing(world: World) -> None:
    await world.clients(10)
    mailing = await world.mailing(ends_at=datetime.now(UTC) + timedelta(seconds=1))
    await poll_until(lambda: datetime.now(UTC) > mailing.ends_at)
    await world.replica()
    await world.finished(mailing)
    assert world.simulator.entries() == []


@pytest.mark.parametrize("answer", ANSWERS)
async def test_an_answer_becomes_an_outcome(world: World, answer: str) -> None:
    do, status, reason = ANSWERS[answer]
    await world.clients(3)
    world.simulator.script(only_first(do))
    await world.replica(timeout=0.5)
    mailing = await world.mailing()
    await world.until(mailing, sent=2, **{status: 1})
    await world.finished(mailing)
    await world.check(mailing)
    message = (await world.messages(mailing))[0]
    assert (message.status, message.reason) == (Status(status), reason)
    # one possible copy for each attempt whose outcome cannot be known; five declined ones; a rejection is final
    assert message.attempts == {"unknown": 3, "failed": 5 if reason == "declined" else 1}[status]
    assert len(message.timeline) == message.attempts
    if reason == "declined":
        assert message.timeline[-1].detail == "7: no such number"


async def test_an_unknown_outcome_is_tried_again_with_the_same_id(world: World) -> None:
    await world.clients(2)
    world.simulator.script(only_first({"kind": "reset", "accept": True}, attempt=1))
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=2)
    first = (await world.messages(mailing))[0]
    assert [attempt.outcome for attempt in first.timeline] == ["unknown", "accepted"]
    entries = [entry for entry in world.simulator.entries() if entry.phone == FIRST]
    assert [(entry.id, entry.repeat) for entry in entries] == [(first.id, False), (first.id, True)]


async def test_hold_never_sends_again_by_itself_and_an_operator_decides(world: World) -> None:
    await world.clients(4)
    world.simulator.script({"match": {"attempt": 1}, "do": {"kind": "status", "status": 500}})
    await world.replica(on_unknown=OnUnknown.HOLD)
    mailing = await world.mailing()
    await world.until(mailing, unknown=4)
    await world.finished(mailing)
    assert await world.outcomes(mailing) == {"unknown": 4}
    ids = [message.id for message in await world.messages(mailing)]
    await ledger.resolve(world.db, ids[0], "sent")
    await ledger.resolve(world.db, ids[1], "failed")
    await world.until(mailing, unknown=2, sent=1, failed=1)
    await ledger.resolve(world.db, ids[2], "again")
    await world.until(mailing, unknown=1, sent=2, failed=1)
    await world.finished(mailing)
    with pytest.raises(Conflict):
        await ledger.resolve(world.db, ids[2], "again")


async def test_a_change_to_hold_holds_what_is_queued_in_doubt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has one request in doubt under `retry` when the replica comes back with `hold`: none is sent again."""
    monkeypatch.setattr(policy, "BASE", 6.0)
    monkeypatch.setattr(policy, "backoff", lambda tries: 0.5)
    await world.clients(4)
    world.simulator.script({"match": {"attempt": 1}, "do": {"kind": "reset", "accept": True}})
    engine = await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, retrying=4)
    await gateways.pause(world.db, "default")
    await world.stop(engine, 1)
    asked = len(world.simulator.entries())
    await world.replica(on_unknown=OnUnknown.HOLD)
    await gateways.resume(world.db, "default")
    await world.until(mailing, unknown=4)
    await world.finished(mailing)
    assert len(world.simulator.entries()) == asked == 4
    found = await world.messages(mailing)
    assert {(m.reason, m.attempts, len(m.timeline)) for m in found} == {("held", 1, 2)}
    await ledger.resolve(world.db, found[0].id, "again")  # by a person it may be sent again
    await world.until(mailing, unknown=3, sent=1)
    await world.check(mailing)


@pytest.mark.parametrize("case", DOUBTS)
async def test_a_refusal_does_not_end_a_doubt(world: World, case: str) -> None:
    """The first request was taken, though its answer never came; whatever comes later, it is not `failed`."""
    answers, status, reason = DOUBTS[case]
    await world.clients(1)
    world.simulator.script(
        {"match": {"attempt": 1}, "do": {"kind": "reset", "accept": True}},
        *({"match": {"attempt": n}, "do": answer} for n, answer in enumerate(answers, 2)),
    )
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, **{status: 1})
    await world.finished(mailing)
    await world.check(mailing)
    (message,) = await world.messages(mailing)
    assert (message.reason, message.attempts) == (reason, 1 + len(answers))
    if status == "unknown":
        words = {"rejected": "bad text", "declined": "7: not now"}[str(reason)]
        assert message.timeline[-1].detail == words


@pytest.mark.parametrize(
    "again",
    [{"kind": "status", "status": 409}, {"kind": "code", "code": 9, "message": "duplicate"}],
    ids=["409", "200"],
)
async def test_a_slow_gateway_that_drops_repetitions_loses_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch, again: dict[str, Any]
) -> None:
    """It takes every message and answers too late; the repetition it refuses: sixty texts were sent."""
    monkeypatch.setattr(gateways, "OPEN_SECONDS", 0.2)
    monkeypatch.setattr(gateways, "OPEN_CAP", 0.2)
    await world.clients(60)
    world.simulator.script({"match": {"attempt": 1}, "do": {"kind": "hang", "accept": True}}, {"do": again})
    await world.replica(timeout=0.3, concurrency=30)
    mailing = await world.mailing()
    await world.until(mailing, sent=60)
    await world.finished(mailing)
    await world.check(mailing)
    assert (await gateways.get(world.db, "default")).state == "running"


async def test_a_client_that_is_erased_after_a_doubt_is_unknown(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """`suppressed` says that nothing was sent."""
    monkeypatch.setattr(policy, "backoff", lambda tries: 1.0)
    await world.clients(1)
    world.simulator.script({"match": {"attempt": 1}, "do": {"kind": "reset", "accept": True}})
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, retrying=1)
    await clients.delete(world.db, await world.db.fetchval("SELECT id FROM clients"))
    await world.until(mailing, unknown=1)
    (message,) = await world.messages(mailing)
    assert message.reason == "client_deleted"
    assert len(world.simulator.entries()) == 1


async def test_a_client_that_is_erased_while_queued_is_suppressed(world: World) -> None:
    await world.clients(3)
    await world.db.execute("UPDATE gateways SET state = 'paused'")
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, waiting=3)
    await clients.delete(world.db, await world.db.fetchval("SELECT id FROM clients WHERE phone = $1", FIRST))
    await gateways.resume(world.db, "default")
    await world.until(mailing, sent=2, suppressed=1)
    await world.finished(mailing)
    first = (await world.messages(mailing))[0]
    assert (first.status, first.reason, first.phone, first.attempts) == ("suppressed", "client_deleted", None, 0)


async def test_one_mailing_that_cannot_be_planned_does_not_stop_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = audience.choose

    async def fails(db: Any, mailing: Unplanned, *args: Any) -> Any:
        if mailing.id == 1:
            raise RuntimeError("a bug")
        return await choose(db, mailing, *args)

    monkeypatch.setattr(audience, "choose", fails)
    await world.clients(3)
    await world.replica()
    await world.mailing()
    other = await world.mailing()
    await world.until(other, sent=3)
