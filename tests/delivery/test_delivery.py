"""The engine end to end: a mailing, a replica or two, a gateway that does what a script says."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, time, timedelta
from functools import partial
from itertools import pairwise
from time import monotonic
from typing import Any

import asyncpg
import pytest
import structlog.testing

from notifier import telemetry
from notifier.delivery import backoff, gateway, limits, recorder, scheduler, sender
from notifier.errors import Conflict
from notifier.models import Filter, Mailing, MailingStatus, OnUnknown, Outcome, Standing, Status, Window
from notifier.simulator import Simulator
from notifier.storage import audience, clients, gateways, ledger, mailings, messages, queue
from notifier.storage.audience import Unplanned
from notifier.storage.installation import Hold
from tests.conftest import poll_until
from tests.delivery.conftest import World

FIRST = 79000000001


def only_first(do: dict[str, Any], **match: Any) -> dict[str, Any]:
    """A rule for the first client's phone."""
    return {"match": {"phone": FIRST, **match}, "do": do}


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
        assert counts.get("sending", 0) <= 50 + sender.AHEAD
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


# ---- outcomes

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
    await world.replica(policy=OnUnknown.HOLD)
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
    monkeypatch.setattr(backoff, "BASE", 6.0)
    monkeypatch.setattr(backoff, "backoff", lambda tries: 0.5)
    await world.clients(4)
    world.simulator.script({"match": {"attempt": 1}, "do": {"kind": "reset", "accept": True}})
    engine = await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, retrying=4)
    await gateways.pause(world.db, "default")
    await engine.stop(1)
    world.schedulers.remove(engine)
    asked = len(world.simulator.entries())
    await world.replica(policy=OnUnknown.HOLD)
    await gateways.resume(world.db, "default")
    await world.until(mailing, unknown=4)
    await world.finished(mailing)
    assert len(world.simulator.entries()) == asked == 4
    found = await world.messages(mailing)
    assert {(m.reason, m.attempts, len(m.timeline)) for m in found} == {("held", 1, 2)}
    await ledger.resolve(world.db, found[0].id, "again")  # by a person it may be sent again
    await world.until(mailing, unknown=3, sent=1)
    await world.check(mailing)


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
    monkeypatch.setattr(backoff, "backoff", lambda tries: 1.0)
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


# ---- the gateway in trouble


async def test_429_pauses_all_replicas_and_costs_no_attempt(world: World) -> None:
    await world.clients(40)
    world.simulator.script(
        {"times": 1, "do": {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}}},
    )
    await world.replica(concurrency=1)
    await world.replica(concurrency=1)
    mailing = await world.mailing()
    await world.until(mailing, sent=40)
    entries = world.simulator.entries()
    (pause,) = (entry.at for entry in entries if entry.status == 429)
    soon = [entry for entry in entries if timedelta(seconds=0.2) < entry.at - pause < timedelta(seconds=0.95)]
    assert soon == []
    await world.check(mailing)


async def test_a_revoked_token_pauses_the_gateway_and_resume_sends_the_rest(world: World) -> None:
    await world.clients(30)
    world.simulator.script({"do": {"kind": "status", "status": 401}})
    await world.replica(concurrency=5)
    mailing = await world.mailing()

    async def misconfigured() -> bool:
        return (await gateways.get(world.db, "default")).state == "misconfigured"

    await poll_until(misconfigured)
    asked = len(world.simulator.entries())
    assert asked <= 5
    await asyncio.sleep(0.3)
    assert len(world.simulator.entries()) == asked
    counts = await world.counts(mailing)
    assert "failed" not in counts
    world.simulator.reset()
    resumed = await gateways.resume(world.db, "default")
    assert resumed.last_errors[0]["reason"] == "unauthorized"
    await world.until(mailing, sent=30)
    await world.check(mailing)


async def test_twenty_rejections_in_a_row_are_the_gateways_fault(world: World) -> None:
    await world.clients(60)
    world.simulator.script({"do": {"kind": "status", "status": 422}})
    await world.replica(concurrency=1)
    mailing = await world.mailing()
    await world.until(mailing, failed=20, waiting=40)
    assert (await gateways.get(world.db, "default")).state == "misconfigured"


ABOUT_US: list[dict[str, Any]] = [
    {"kind": "code", "code": 4, "message": "Bad Credentials"},
    {"kind": "status", "status": 400, "text": '{"error":"insufficient funds"}'},
    {"kind": "code", "code": 13, "message": "x1"},
]


@pytest.mark.parametrize("do", ABOUT_US, ids=["words in a 200", "words in a 400", "the same code and words"])
async def test_twenty_refusals_that_are_about_us_stop_the_gateway_and_fail_nobody(
    world: World, do: dict[str, Any]
) -> None:
    await world.clients(200)
    world.simulator.script({"do": do})
    await world.replica(concurrency=10)
    mailing = await world.mailing()

    async def stopped() -> bool:
        return (await gateways.get(world.db, "default")).state == "misconfigured"

    await poll_until(stopped)
    row = await gateways.get(world.db, "default")
    assert row.reason == ("declined" if do.get("code") == 13 else "account_refused")
    words = do.get("message", "insufficient funds")
    assert words in str(row.detail)
    assert words in row.last_errors[0]["detail"]
    assert row.last_errors[0]["count"] >= 20
    assert len(world.simulator.entries()) < 60
    world.simulator.reset()
    await gateways.resume(world.db, "default")
    await world.until(mailing, sent=200)
    await world.check(mailing)


async def test_one_recipient_s_refusal_about_us_is_not_given_up_before_the_gateway_is_stopped(world: World) -> None:
    await world.clients(1)
    world.simulator.script({"do": {"kind": "code", "code": 4, "message": "Bad Credentials"}})
    await world.replica()
    mailing = await world.mailing()

    async def stopped() -> bool:
        return (await gateways.get(world.db, "default")).state == "misconfigured"

    await poll_until(stopped)
    await world.until(mailing, retrying=1)
    assert await world.outcomes(mailing) == {"declined": 20}


async def test_recipients_that_are_refused_for_reasons_of_their_own_do_not_stop_the_gateway(world: World) -> None:
    """Three bad numbers that are tried again and again, and forty of which no two in a row are refused alike."""
    await world.clients(43)
    alike = [{"match": {"phone": FIRST + n}, "do": {"kind": "code", "code": 7, "message": "unknown"}} for n in range(3)]
    others = [
        {"match": {"phone": FIRST + n}, "do": {"kind": "status", "status": 400, "text": f"refused: {'xyz'[n % 3]}"}}
        for n in range(3, 43)
    ]
    world.simulator.script(*alike, *others)
    await world.replica(concurrency=1)
    mailing = await world.mailing()
    await world.until(mailing, failed=43)
    assert (await gateways.get(world.db, "default")).state == "running"


@pytest.mark.parametrize("status", [413, 431, 451])
async def test_a_refusal_of_our_request_as_such_stops_the_gateway_and_fails_nobody(world: World, status: int) -> None:
    await world.clients(30)
    world.simulator.script({"do": {"kind": "status", "status": status, "text": "<h1>too large</h1>"}})
    await world.replica(concurrency=3)
    mailing = await world.mailing()

    async def stopped() -> bool:
        return (await gateways.get(world.db, "default")).state == "misconfigured"

    await poll_until(stopped)
    row = await gateways.get(world.db, "default")
    assert (row.reason, row.detail) == ("request_refused", f"The gateway answered {status}: <h1>too large</h1>.")
    assert "failed" not in await world.counts(mailing)
    world.simulator.reset()
    await gateways.resume(world.db, "default")
    await world.until(mailing, sent=30)


@pytest.mark.parametrize("status", [407, 511])
async def test_what_the_network_in_between_refuses_is_put_off(
    world: World, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gateways, "OPEN_SECONDS", 0.2)
    monkeypatch.setattr(gateways, "OPEN_CAP", 0.2)
    await world.clients(30)
    world.simulator.script({"times": 40, "do": {"kind": "status", "status": status, "text": "log in first"}})
    await world.replica(concurrency=3)
    mailing = await world.mailing()

    async def open_() -> bool:
        return (await gateways.get(world.db, "default")).breaker == "open"

    await poll_until(open_)
    row = await gateways.get(world.db, "default")
    assert (row.state, row.breaker_detail) == ("running", f"The gateway answered {status}: log in first.")
    world.simulator.reset()
    await world.until(mailing, sent=30)
    assert (await gateways.get(world.db, "default")).breaker_detail is None


async def test_a_refused_token_that_is_not_the_newest_stops_only_who_has_it(world: World) -> None:
    """The token was changed and one replica still has the old one: its 401 does not stop the other."""

    async def newest_is(identity: str) -> bool:
        return (await gateways.get(world.db, "default")).identity == identity

    await world.clients(30)
    await world.replica(concurrency=2)
    await poll_until(lambda: newest_is(world.gateways[0].identity))
    await world.replica(concurrency=2)
    world.gateways[1].use("newest")
    await poll_until(lambda: newest_is(world.gateways[1].identity))
    world.simulator.stop()
    world.simulator = Simulator(token="newest", ledger=world.simulator.ledger, port=world.simulator.port)
    with world.simulator:
        mailing = await world.mailing()
        await world.until(mailing, sent=30)
        assert (await gateways.get(world.db, "default")).state == "running"
        refused = [entry for entry in world.simulator.entries() if not entry.authorized]
        assert len(refused) <= 2

        await world.schedulers.pop().stop(1)
        world.gateways[0].use("wrong")  # now that one is the newest
        mailing = await world.mailing()

        async def stopped() -> bool:
            return (await gateways.get(world.db, "default")).state == "misconfigured"

        await poll_until(stopped)
        world.gateways[0].use("newest")  # a stop belongs to the token it was made with
        await world.until(mailing, sent=30)


async def test_an_outage_costs_no_message_and_no_attempt(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "OPEN_SECONDS", 0.2)
    monkeypatch.setattr(gateways, "OPEN_CAP", 0.4)
    await world.clients(60)
    world.simulator.stop()
    await world.replica(concurrency=4)
    await world.replica(concurrency=4)
    mailing = await world.mailing()

    async def open_again() -> bool:
        return bool(await world.db.fetchval("SELECT openings >= 3 FROM gateways"))

    await poll_until(open_again)
    counts = await world.counts(mailing)
    assert counts.keys() <= {"waiting", "retrying", "sending"}
    await asyncio.to_thread(world.simulator.start)
    await world.until(mailing, sent=60)
    await world.finished(mailing)
    row = await gateways.get(world.db, "default")
    assert (row.breaker, row.retry_at) == ("closed", None)
    assert (await world.outcomes(mailing)).keys() <= {"accepted", "unavailable", "not_started"}
    reasons = {row[0] for row in await world.db.fetch("SELECT DISTINCT reason FROM attempts")}
    assert "outage" in reasons  # the probes


async def test_dns_and_tls_failures_are_surely_not_sent(world: World) -> None:
    await world.clients(1)
    await world.replica(url="http://no-such-host.invalid", concurrency=1, timeout=10.0)
    mailing = await world.mailing()
    await world.until(mailing, retrying=1)
    (message,) = await world.messages(mailing)
    assert (message.timeline[0].outcome, message.timeline[0].reason) == ("unavailable", "dns")
    await world.kill(world.schedulers[0])

    def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        writer.close()

    no_tls = await asyncio.start_server(answer, "127.0.0.1", 0)
    await world.replica(url=f"https://127.0.0.1:{no_tls.sockets[0].getsockname()[1]}", concurrency=1)

    async def tls() -> bool:
        (message,) = await world.messages(mailing)
        return message.reason == "tls"

    await poll_until(tls)
    no_tls.close()


async def test_the_rate_holds_over_two_replicas(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[float] = []
    may_start = limits.Limits.may_start

    def watched(self: limits.Limits, now: float) -> bool:
        allowed = may_start(self, now)
        if allowed:
            starts.append(now)
        return allowed

    monkeypatch.setattr(limits.Limits, "may_start", watched)
    await world.clients(120)
    await world.replica(rate=60.0)
    await world.replica(rate=60.0)
    mailing = await world.mailing()
    await world.until(mailing, sent=120)
    for i, start in enumerate(starts):
        for j in range(i, len(starts)):
            assert j - i + 1 <= 60 * (starts[j] - start) + 60 * 0.2 + 1
    assert starts[-1] - starts[0] > 1.6  # 120 messages take about two seconds


async def test_limits_changed_while_running_take_effect(world: World) -> None:
    await world.clients(200)
    world.simulator.script(latency=20)
    await world.replica(concurrency=1)
    mailing = await world.mailing()
    await gateways.edit(world.db, "default", {"concurrency": 30})
    await world.until(mailing, sent=200)
    assert world.simulator.state()["max_in_flight"] > 5


# ---- pause, cancel, end, edit


async def running(world: World, count: int = 300, **options: Any) -> Any:
    """A mailing of which something is sent, and whose rest goes so slowly that it is there for what is done to it."""
    world.simulator.script({"times": 30, "do": {"kind": "delay", "ms": 50}}, latency=400)
    await world.clients(count)
    await world.replica(concurrency=10, timeout=30.0, **options)
    mailing = await world.mailing()

    async def some_sent() -> bool:
        return (await world.counts(mailing)).get("sent", 0) >= 20

    await poll_until(some_sent)
    return mailing


async def last_start(world: World) -> datetime:
    """When the last request was started, by the books: it may take any time to get to the gateway."""
    last: datetime = await world.db.fetchval("SELECT max(started_at) FROM attempts WHERE duration_ms IS NOT NULL")
    return last


@pytest.mark.parametrize(("verb", "status"), [("cancel", "cancelled"), ("pause", "waiting")])
async def test_pause_and_cancel_take_effect_within_a_second(world: World, verb: str, status: str) -> None:
    mailing = await running(world)
    answered = await mailings.act(world.db, mailing.id, verb)
    assert answered.status in ("cancelled", "paused")

    async def nothing_sending() -> bool:
        return "sending" not in await world.counts(mailing)

    await poll_until(nothing_sending)
    counts = await world.counts(mailing)
    assert counts.keys() == {"sent", status}
    assert await last_start(world) <= answered.updated_at + timedelta(seconds=1)
    await world.check(mailing)
    if verb == "cancel":  # those that were marked, which have a ledger row, and those that were not
        found, _ = await messages.of_mailing(world.db, mailing.id, Status.CANCELLED, None, 300)
        assert {message.reason for message in found} == {"cancelled"}
    if verb == "pause":
        world.simulator.script()
        await mailings.act(world.db, mailing.id, "resume")
        await world.until(mailing, sent=300)
        await world.check(mailing)


async def test_what_is_not_sent_at_the_end_expires(world: World) -> None:
    mailing = await running(world)
    ends_at = datetime.now(UTC) + timedelta(seconds=1)
    await mailings.edit(world.db, mailing.id, {"ends_at": ends_at})
    await world.finished(mailing)

    async def settled() -> bool:
        return "sending" not in await world.counts(mailing)

    await poll_until(settled)
    assert (await world.counts(mailing)).keys() == {"sent", "expired"}
    assert await last_start(world) < ends_at + timedelta(seconds=0.01)


async def test_a_message_in_doubt_at_the_end_is_unknown(world: World) -> None:
    await world.clients(1)
    world.simulator.script({"do": {"kind": "status", "status": 500}})
    await world.replica()
    mailing = await world.mailing()
    await poll_until(lambda: world.simulator.entries())
    await world.db.execute("UPDATE gateways SET state = 'paused'")
    await mailings.edit(world.db, mailing.id, {"ends_at": datetime.now(UTC) + timedelta(seconds=1)})
    await world.finished(mailing)
    await world.until(mailing, unknown=1)
    (message,) = await world.messages(mailing)
    with pytest.raises(Conflict):
        await ledger.resolve(world.db, message.id, "again")
    await ledger.resolve(world.db, message.id, "sent")
    await world.until(mailing, sent=1)


async def test_an_edit_reaches_what_is_not_sent_yet(world: World) -> None:
    mailing = await running(world)
    await mailings.edit(world.db, mailing.id, {"text": "Новый текст", "priority": 3})
    world.simulator.script()
    await world.until(mailing, sent=300)
    entries = sorted(world.simulator.entries(), key=lambda entry: entry.at)
    texts = [entry.text for entry in entries]
    assert texts[0] == "Здравствуйте!"
    assert texts[-1] == "Новый текст"
    assert texts.index("Новый текст") >= 20
    versions = await world.db.fetch("SELECT DISTINCT text_version FROM attempts ORDER BY 1")
    assert [row[0] for row in versions] == [1, 2]


def hours_from_now(start: float, end: float) -> Window:
    """A window in UTC that opens ``start`` and closes ``end`` hours from now."""
    now = datetime.now(UTC)
    first, last = now + timedelta(hours=start), now + timedelta(hours=end)
    return Window(time(first.hour, first.minute), time(last.hour, last.minute))


async def test_outside_its_window_nobody_is_texted_and_an_edit_opens_it(world: World) -> None:
    await world.clients(5, timezone="UTC")
    await world.clients(5, timezone="Asia/Tokyo", first=6)  # nine hours ahead: closed when it is open here
    await world.replica()
    mailing = await world.mailing(window=hours_from_now(-2, 2))
    await world.until(mailing, sent=5, waiting=5)
    assert {entry.phone for entry in world.simulator.entries()} == {79000000000 + i for i in range(1, 6)}
    waiting, _ = await messages.of_mailing(world.db, mailing.id, Status.WAITING, None, 10)
    assert all(m.next_attempt_at and m.next_attempt_at > datetime.now(UTC) for m in waiting)
    await mailings.edit(world.db, mailing.id, {"window": None})
    await world.until(mailing, sent=10)
    await world.check(mailing)


async def test_batches_whose_window_has_closed_are_sorted_again(world: World) -> None:
    # planned while everything was open, claimed when it is not
    await world.clients(700, timezone="UTC")
    await world.clients(5, timezone="Asia/Tokyo", first=701)
    await world.db.execute("UPDATE gateways SET state = 'paused'")
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, waiting=705)
    await mailings.edit(world.db, mailing.id, {"window": hours_from_now(7, 11)})  # open in Tokyo, closed here
    await gateways.resume(world.db, "default")
    await world.until(mailing, sent=5, waiting=700)

    async def sorted_again() -> bool:
        return not await world.db.fetchval("SELECT count(*) FROM batches WHERE due_at < now()")

    await poll_until(sorted_again)
    assert await world.db.fetchval("SELECT count(*) FROM batches") == 2  # and not a handful in each
    await world.check(mailing)


async def test_a_window_that_is_opened_while_a_batch_is_sorted_opens_all_of_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the word comes between the sender's look at the old window and its sorting by it
    sort_again, opened = queue.sort_again, asyncio.Event()

    async def meanwhile(*args: Any, **given: Any) -> bool:
        if not opened.is_set():
            opened.set()
            await mailings.edit(world.db, mailing.id, {"window": None})
        return await sort_again(*args, **given)

    monkeypatch.setattr(queue, "sort_again", meanwhile)
    await world.clients(5, timezone="UTC")
    await world.db.execute("UPDATE gateways SET state = 'paused'")
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, waiting=5)
    await mailings.edit(world.db, mailing.id, {"window": hours_from_now(2, 4)})  # planned while it was open
    await gateways.resume(world.db, "default")
    await world.until(mailing, sent=5)
    assert opened.is_set()
    await world.check(mailing)


async def test_a_small_urgent_mailing_passes_a_large_one(world: World) -> None:
    mailing = await running(world, 2_000)
    await world.db.execute("INSERT INTO clients (phone, operator_code, tags) VALUES (79990000000, '999', '{urgent}')")
    before = len(world.simulator.entries())
    urgent = await world.mailing(filter=Filter(tags=["urgent"]), priority=10)
    await world.until(urgent, sent=1)
    place = [entry.phone for entry in world.simulator.entries()].index(79990000000)
    assert place - before < 200  # of 2,000; the replica has up to 90 under its marks
    assert await world.status(mailing) == "running"


# ---- several replicas, and their deaths


async def test_two_replicas_share_a_mailing(world: World) -> None:
    await world.clients(3_000)
    world.simulator.script(latency=20)
    await world.replica()
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=3_000)
    entries = world.simulator.entries()
    assert len({entry.phone for entry in entries}) == len(entries) == 3_000
    shares = await world.db.fetch("SELECT replica, count(*) AS n FROM attempts GROUP BY 1")
    assert len(shares) == 2
    assert min(row["n"] for row in shares) > 500
    await world.check(mailing)


@pytest.fixture
def quick_death(monkeypatch: pytest.MonkeyPatch) -> None:
    """Heartbeats and patience in tenths."""
    monkeypatch.setattr(scheduler, "BEAT", 0.1)
    monkeypatch.setattr(scheduler, "DEAD_AFTER", 1.5)


@pytest.mark.usefixtures("quick_death")
@pytest.mark.parametrize("policy", [OnUnknown.RETRY, OnUnknown.HOLD])
async def test_a_dead_replicas_work_is_taken_over(world: World, policy: OnUnknown) -> None:
    mailing = await running(world, policy=policy)
    (victim,) = world.schedulers
    # between two marks nothing may be under way for a moment
    await poll_until(lambda: victim.sender is not None and victim.sender.inflight)
    await world.kill(victim)
    doubtful = await world.db.fetchval("SELECT sum(mark - done) FROM batches WHERE owner IS NOT NULL")
    assert 0 < doubtful <= 10 + sender.AHEAD
    world.simulator.script()
    await world.replica(policy=policy)
    await world.finished(mailing)
    outcomes = await world.outcomes(mailing)
    assert 0 < outcomes["interrupted"] <= 10 + sender.AHEAD
    counts = await world.counts(mailing)
    if policy is OnUnknown.RETRY:
        assert counts == {"sent": 300}
    else:
        assert counts["unknown"] == outcomes["interrupted"]
        assert counts["unknown"] + counts["sent"] == 300
    await world.check(mailing)


async def test_a_late_acceptance_cancels_the_retry(world: World) -> None:
    # the batch is taken over while its request is under way; then the answer comes
    await world.clients(1)
    world.simulator.script(latency=2_000)
    await world.replica(concurrency=1, timeout=30)
    mailing = await world.mailing()
    await poll_until(lambda: world.simulator.state()["in_flight"] == 1)
    (batch,) = await queue.adopt(world.db, 1_000, await queue.owned(world.db))
    await scheduler.take_over(world.db, 1_000, [batch], OnUnknown.RETRY, 10)
    await world.until(mailing, retrying=1)
    await world.until(mailing, sent=1)
    (message,) = await world.messages(mailing)
    assert [(a.outcome, a.reason) for a in message.timeline] == [("interrupted", "interrupted"), ("accepted", "late")]
    await world.db.execute("UPDATE batches SET due_at = now()")  # the retry's time has come: there is nothing to do
    await world.finished(mailing)
    assert len(world.simulator.entries()) == 1
    await world.check(mailing)


async def test_a_late_refusal_goes_into_the_books_and_on(world: World) -> None:
    await world.clients(1)
    world.simulator.script(
        {"match": {"attempt": 1}, "do": {"kind": "code", "code": 5, "message": "busy"}}, latency=2_000
    )
    await world.replica(concurrency=1, timeout=30)
    mailing = await world.mailing()
    await poll_until(lambda: world.simulator.state()["in_flight"] == 1)
    (batch,) = await queue.adopt(world.db, 1_000, await queue.owned(world.db))
    await scheduler.take_over(world.db, 1_000, [batch], OnUnknown.RETRY, 10)
    await world.until(mailing, sent=1)
    await world.db.execute("UPDATE batches SET due_at = now()")
    await world.finished(mailing)
    (message,) = await world.messages(mailing)
    assert [a.outcome for a in message.timeline] == ["interrupted", "declined", "accepted"]
    await world.check(mailing)


async def test_stop_finishes_what_is_in_flight_and_gives_the_rest_back(world: World) -> None:
    mailing = await running(world)
    seen = len(world.simulator.entries())
    await poll_until(lambda: len(world.simulator.entries()) >= seen + 10)
    first = world.schedulers.pop(0)
    await first.stop(30)
    world.simulator.script()
    counts = await world.counts(mailing)
    assert counts.keys() == {"sent", "waiting"}
    assert (await world.outcomes(mailing))["unknown"] == 0
    assert await world.db.fetchval("SELECT count(*) FROM replicas") == 0
    await world.replica()
    await world.until(mailing, sent=300)
    await world.check(mailing)


async def test_a_batch_without_progress_is_taken_from_whoever_owns_it(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "BEAT", 0.1)
    monkeypatch.setattr(scheduler, "STUCK_AFTER", -0.5)  # timeout 1 s: stuck after half a second
    await world.clients(1)
    first = await world.replica(concurrency=1)
    # a claim that its owner knows nothing of: as if it had died between claim and load
    mailing = await world.mailing(starts_at=datetime.now(UTC) + timedelta(seconds=0.2))
    monkeypatch.setattr(queue, "claim", _claim_and_forget(queue.claim))
    await world.until(mailing, sent=1)
    await world.finished(mailing)
    assert first.replica == await world.db.fetchval("SELECT replica FROM attempts WHERE outcome = 'accepted'")


async def test_nobody_is_taken_over_while_nothing_can_be_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    # a full disk: the ledger cannot grow, while rows that are there can be updated in their place
    monkeypatch.setattr(scheduler, "BEAT", 0.1)
    monkeypatch.setattr(scheduler, "STUCK_AFTER", -29.5)  # timeout 30 s: stuck after half a second
    tried: list[int] = []
    take_over = scheduler.take_over

    async def spied(db: Any, replica: int, batches: Any, *args: Any) -> None:
        tried.append(replica)
        await take_over(db, replica, batches, *args)

    monkeypatch.setattr(scheduler, "take_over", spied)
    await world.clients(200)
    first = await world.replica(concurrency=10, timeout=30)
    second = await world.replica(concurrency=10, timeout=30)
    world.simulator.script(latency=300)
    mailing = await world.mailing()
    await poll_until(lambda: world.simulator.state()["in_flight"])
    await world.db.execute(
        """
        CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE EXCEPTION 'full' USING ERRCODE = 'disk_full'; END $$;
        CREATE TRIGGER full_disk BEFORE INSERT ON attempts EXECUTE FUNCTION full_disk()
        """
    )
    await poll_until(lambda: {first.replica, second.replica} <= set(tried))
    monkeypatch.setattr(scheduler, "STUCK_AFTER", 1_000.0)
    before = await world.db.fetch("SELECT beat FROM replicas ORDER BY id")

    async def both_looked_again() -> bool:  # half a second still counted for stuck with a look that was under way
        beats = await world.db.fetch("SELECT beat FROM replicas ORDER BY id")
        return all(now["beat"] >= then["beat"] + 2 for then, now in zip(before, beats, strict=True))

    await poll_until(both_looked_again)
    await world.db.execute("DROP TRIGGER full_disk ON attempts")
    world.simulator.script(latency=0)
    await world.finished(mailing)
    assert await world.outcomes(mailing) == {"accepted": 200}
    assert len(world.simulator.entries()) == 200
    await world.check(mailing)


def _claim_and_forget(claim: Any) -> Any:
    forgotten = False

    async def once(*args: Any, **kwargs: Any) -> Any:
        nonlocal forgotten
        claimed = await claim(*args, **kwargs)
        if claimed and not forgotten:
            forgotten = True
            return []
        return claimed

    return once


async def test_a_loop_that_ends_is_started_again(world: World) -> None:
    await world.clients(50)
    first = await world.replica()
    for loop in first._loops.values():
        assert loop.task is not None
        loop.task.cancel()
    mailing = await world.mailing()
    await world.until(mailing, sent=50)


# ---- the database in trouble


async def test_connections_that_are_cut_lose_nothing(world: World, dsn: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "LOST_CLAIM", 1.0)
    await world.clients(1_000)
    world.simulator.script(latency=10)
    await world.replica()
    mailing = await world.mailing()
    watcher = await asyncpg.connect(dsn)

    async def reached(sent: int) -> bool:
        return bool(await watcher.fetchval("SELECT sum(n) >= $1 FROM counters WHERE standing = 'sent'", sent))

    async def finished() -> bool:
        return bool(await watcher.fetchval("SELECT status = 'finished' FROM mailings"))

    for step in range(100, 1_000, 100):
        await poll_until(partial(reached, step))
        await watcher.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
    await poll_until(finished)
    await watcher.close()
    assert len(world.simulator.entries()) == 1_000
    await world.check(mailing)


async def test_a_lost_acknowledgement_counts_nothing_twice(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record, calls = queue.record, 0

    async def lose_every_third(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        recorded = await record(*args)
        if calls % 3 == 0:
            raise asyncpg.ConnectionDoesNotExistError("connection was closed in the middle of operation")
        return recorded

    monkeypatch.setattr(queue, "record", lose_every_third)
    monkeypatch.setattr(scheduler, "AFTER_ERROR", (0.01, 0.02))
    await world.clients(700)
    world.simulator.script({"match": {"attempt": 1}, "share": 0.3, "do": {"kind": "status", "status": 500}}, latency=5)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=700)
    await world.finished(mailing)
    await world.check(mailing)


async def test_a_result_that_cannot_be_recorded_does_not_hold_up_the_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = gateway.Gateway.send

    async def with_nul(self: Any, message_id: int, phone: int, text: bytes) -> Any:
        answer = await words(self, message_id, phone, text)
        return answer._replace(detail="\x00") if phone == FIRST else answer

    monkeypatch.setattr(gateway.Gateway, "send", with_nul)
    await world.clients(50)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=49, unknown=1)
    await world.finished(mailing)
    assert (await world.messages(mailing))[0].reason == "unrecordable"


async def _refuse(world: World, which: str) -> None:
    """Have a trigger, as an owner of the database may add one, refuse these rows of the ledger."""
    await world.db.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'refused'; END $$"
    )
    await world.db.execute(
        f"CREATE TRIGGER refuse BEFORE INSERT ON attempts FOR EACH ROW WHEN ({which}) EXECUTE FUNCTION refuse()"
    )


@pytest.fixture
def quiet() -> Iterator[None]:
    """Tracebacks are not drawn: a hundred of them take longer than the test."""
    with structlog.testing.capture_logs():
        yield


async def _planned_but_not_sent(world: World, count: int) -> tuple[Mailing, int]:
    """A mailing whose gateway is paused, and the number of its message in the middle."""
    await world.clients(count)
    await gateways.pause(world.db, "default")
    mailing = await world.mailing()
    await world.until(mailing, waiting=count)
    return mailing, (await world.messages(mailing))[count // 2].id


@pytest.mark.usefixtures("quiet")
async def test_a_row_that_a_trigger_refuses_does_not_hold_up_the_others(world: World) -> None:
    await world.replica()
    mailing, culprit = await _planned_but_not_sent(world, 50)
    await _refuse(world, f"NEW.message_id = {culprit} AND NEW.reason IS DISTINCT FROM 'unrecordable'")
    await gateways.resume(world.db, "default")
    await world.until(mailing, sent=49, unknown=1)
    await world.finished(mailing)
    assert (await messages.get(world.db, culprit)).reason == "unrecordable"


@pytest.mark.usefixtures("quiet")
async def test_a_message_of_which_nothing_can_be_recorded_holds_up_nobody(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "STUCK_AFTER", 0.2)
    monkeypatch.setattr(scheduler, "BEAT", 0.1)
    await world.replica()
    mailing, culprit = await _planned_but_not_sent(world, 50)
    await _refuse(world, f"NEW.message_id = {culprit}")
    await gateways.resume(world.db, "default")
    await world.until(mailing, sent=49, sending=1)
    owner = "SELECT owner FROM batches WHERE mailing_id = $1"
    before = await world.db.fetchval(owner, mailing.id)

    async def taken_over() -> bool:
        return bool(await world.db.fetchval(owner, mailing.id) != before)

    await poll_until(taken_over)
    after = await world.mailing()
    await world.until(after, sent=50)
    await world.finished(after)
    assert [entry.id for entry in world.simulator.entries()].count(culprit) == 1
    await world.db.execute("DROP TRIGGER refuse ON attempts")
    await world.until(mailing, sent=50)
    await world.finished(mailing)


@pytest.mark.usefixtures("quiet")
async def test_nothing_starts_any_more_when_no_result_at_all_can_be_recorded(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder, "GIVEN_UP", 1)
    monkeypatch.setattr(sender, "AHEAD", 2)
    await world.replica(concurrency=2)
    await _planned_but_not_sent(world, 100)
    await _refuse(world, "true")
    await gateways.resume(world.db, "default")
    errors = partial(telemetry.REGISTRY.get_sample_value, "notifier_loop_errors_total", {"loop": "recorder"})
    before = errors() or 0
    await poll_until(lambda: (errors() or 0) > before)
    assert len(world.simulator.entries()) < 50


async def test_an_exception_of_our_own_is_one_messages_bad_luck(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    send = gateway.Gateway.send

    async def raises(self: Any, message_id: int, phone: int, text: bytes) -> Any:
        if phone == FIRST:
            raise RuntimeError("a bug")
        return await send(self, message_id, phone, text)

    monkeypatch.setattr(gateway.Gateway, "send", raises)
    await world.clients(3)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=2, unknown=1)
    assert (await world.messages(mailing))[0].reason == "internal_error"


async def test_a_stale_record_starts_nothing(world: World) -> None:
    # as after a SIGSTOP: the process wakes with marked messages and an old record
    mailing = await running(world)
    engine = world.schedulers[0]
    assert engine.sender is not None
    await poll_until(lambda: engine.sender and engine.sender.ready)
    engine.sender.confirmed -= 1.0  # now already: what is ready must not all be started while the loops stop
    for loop in engine._loops.values():
        await loop.stop()
    engine.sender.confirmed -= 1.0
    started = engine.sender._started
    engine.sender.pump()
    await poll_until(lambda: engine.sender and not engine.sender._starting and not engine.sender.inflight)
    assert engine.sender._started == started
    assert engine.sender.ready
    assert "sent" in await world.counts(mailing)


async def test_a_record_counts_as_heard_when_its_news_is_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # the record says that the mailing was edited, and then the database is away: nothing may start on the old words
    await running(world)
    engine = world.schedulers[0]
    assert engine.sender is not None
    await poll_until(lambda: engine.sender and engine.sender.ready)
    for loop in engine._loops.values():
        await loop.stop()
    work = next(iter(engine.sender.works.values()))
    view, before = work.view, engine.sender.confirmed
    edited = queue.Recorded(work.batch.id, True, work.mark, work.late, False, 0, MailingStatus.RUNNING,
                            view.version + 1, datetime.fromtimestamp(view.ends_at, UTC), datetime.now(UTC))  # fmt: skip

    async def away(*_: Any) -> Any:
        raise OSError("away")

    with monkeypatch.context() as patched:
        patched.setattr(queue, "orders", away)
        with pytest.raises(OSError, match="away"):
            await engine.sender.settle([edited], before + 1)
    assert engine.sender.confirmed == before
    await engine.sender.settle([edited], before + 1)
    assert engine.sender.confirmed == before + 1


async def test_nothing_starts_before_its_mark_is_committed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    record, asked, go_on = queue.record, asyncio.Event(), asyncio.Event()

    async def slow(*args: Any) -> Any:
        asked.set()
        await go_on.wait()
        return await record(*args)

    monkeypatch.setattr(queue, "record", slow)
    await world.clients(50)
    engine = await world.replica()
    mailing = await world.mailing()
    await asked.wait()
    assert engine.sender is not None
    engine.sender.pump()
    assert (engine.sender.inflight, engine.sender.ready, world.simulator.entries()) == (0, 0, [])
    go_on.set()
    await world.until(mailing, sent=50)


async def test_the_books_say_when_the_last_look_was(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # a clock read once more says that what was allowed in the last moment started after the end
    may_start = limits.Limits.may_start
    looks: list[datetime] = []

    def may_start_slowly(self: Any, now: float) -> bool:
        looks.append(datetime.fromtimestamp(self._clock.latest(now), UTC))
        while monotonic() < now + 0.001:
            pass
        return may_start(self, now)

    monkeypatch.setattr(limits.Limits, "may_start", may_start_slowly)
    await world.clients(1)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=1)
    assert await world.db.fetchval("SELECT started_at FROM attempts") in looks


@pytest.mark.parametrize("closed", ["window", "end"])
async def test_a_last_look_before_each_start(world: World, closed: str) -> None:
    # marked and lined up, and then the window closes, or the mailing ends, before a connection is free
    await running(world)
    engine = world.schedulers[0]
    assert engine.sender is not None
    await poll_until(lambda: engine.sender and engine.sender.ready)
    engine.sender.confirmed -= 1.0  # what is ready must not all be started while the loops stop
    for loop in engine._loops.values():
        await loop.stop()
    (view,) = {work.view for work in engine.sender.works.values()}
    if closed == "window":
        view.window = hours_from_now(2, 4)
        view._open.clear()
    else:
        view.ends_at = 0.0
    engine.sender.confirmed = monotonic()
    engine.sender.pump()
    await poll_until(lambda: engine.sender and not (engine.sender._starting or engine.sender.inflight))
    started = {result.message_id for _, result in engine.sender.results if result.outcome == "accepted"}
    given_back = [result for _, result in engine.sender.results if result.outcome == "not_started"]
    # due at once: whoever loads them sorts them by the window that holds then
    assert {(r.reason, r.due_at and r.due_at <= datetime.now(UTC)) for r in given_back} == {
        ("window" if closed == "window" else "ended", True)
    }
    assert not engine.sender.ready
    assert started.isdisjoint({result.message_id for result in given_back})


async def test_pause_all_sends_nothing(world: World) -> None:
    await world.clients(3)
    await world.replica(pause_all=True)
    mailing = await world.mailing()
    await world.until(mailing, waiting=3)
    await asyncio.sleep(0.2)
    assert world.simulator.entries() == []


async def test_a_copy_of_the_database_sends_nothing_until_it_is_released(world: World) -> None:
    await Hold(world.db, "production").begin()
    hold = Hold(world.db, "staging")
    assert await hold.begin()
    await world.clients(3)
    scheduler = await world.replica(hold=hold)
    mailing = await world.mailing()
    await world.until(mailing, waiting=3)
    assert scheduler.sender is None
    assert world.simulator.entries() == []
    await Hold(world.db, "staging").release()
    await world.until(mailing, sent=3)


def test_bucket_and_late_tokens_are_within_the_allowance() -> None:
    for rate in (limits.SLOW, 50.0, 100.0, 5_000.0):
        late = rate * (limits.GOOD_FOR + 0.02)  # and 20 ms for the database's answer
        assert limits.bucket(rate) + late <= rate * 0.2 + 1e-9


async def test_at_a_low_rate_lateness_is_charged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # every second token comes 60 ms late: the messages still come 200 ms apart, and they come
    starts: list[float] = []
    tokens = 0
    may_start, take = limits.Limits.may_start, gateways.take_tokens

    def watched(self: limits.Limits, now: float) -> bool:
        allowed = may_start(self, now)
        if allowed:
            starts.append(now)
        return allowed

    async def slow(*args: Any) -> Any:
        nonlocal tokens
        taken = await take(*args)
        tokens += taken[0]
        await asyncio.sleep(0.06 * (tokens % 2))
        return taken

    monkeypatch.setattr(limits.Limits, "may_start", watched)
    monkeypatch.setattr(gateways, "take_tokens", slow)
    await world.clients(10)
    await world.replica(rate=5.0)
    mailing = await world.mailing()
    await world.until(mailing, sent=10)
    assert all(later - earlier > 0.199 for earlier, later in pairwise(starts))


async def test_what_waits_too_long_under_its_mark_is_given_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sender, "LINED_UP", 0.2)
    await world.clients(2)
    await world.db.execute("UPDATE gateways SET tokens = 0.5, tokens_at = now()")
    await world.replica(rate=0.01)
    mailing = await world.mailing()

    async def given_back() -> bool:
        return (await world.outcomes(mailing))["not_started"] > 0

    await poll_until(given_back)
    assert (await world.outcomes(mailing)).keys() <= {"not_started", "accepted"}
    await world.check(mailing)


# ---- races that a review found


async def test_a_load_that_is_older_than_a_late_row_is_thrown_away(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    load, loads, record, records = queue.load, 0, queue.record, 0

    async def counted(*args: Any) -> Any:
        nonlocal records
        recorded = await record(*args)
        records += 1
        return recorded

    async def then_comes_a_late_row(db: Any, ids: Any, seqs: Any) -> Any:
        nonlocal loads
        rows = await load(db, ids, seqs)
        loads += 1
        if loads == 1:
            accepted = queue.Result(
                batch_id=0,
                message_id=ids[0],
                outcome=Outcome.ACCEPTED,
                standing=Standing.SENT,
                started_at=await mailings.clock(db),
                duration_ms=1,
                phone=FIRST,
                text_version=1,
                status_code=200,
                reason=None,
                detail=None,
                due_at=None,
            )
            assert await ledger.append_late(db, 77, accepted)
            before = records
            await poll_until(lambda: records > before + 1)
        return rows

    monkeypatch.setattr(queue, "load", then_comes_a_late_row)
    monkeypatch.setattr(queue, "record", counted)
    await world.clients(3)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=3)
    await world.finished(mailing)
    assert len(world.simulator.entries()) == 2


async def test_a_take_over_ends_a_batch_whose_done_is_short(world: World) -> None:
    await world.clients(5)
    await world.db.execute("UPDATE gateways SET state = 'paused'")
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, waiting=5)
    (batch,) = await queue.claim(world.db, 999, after=0)
    await queue.record(world.db, 999, [queue.Report(batch.id, batch.owner, 0, 5, 0, 0, False)], [])
    await world.db.execute(
        "INSERT INTO attempts (message_id, mailing_id, started_at, outcome, standing, seq) "
        "SELECT id, mailing_id, now(), 'accepted', 'sent', 1 FROM messages"
    )
    (adopted,) = await queue.adopt(world.db, 1_000, await queue.owned(world.db))
    await scheduler.take_over(world.db, 1_000, [adopted], OnUnknown.RETRY, 1)
    assert await world.db.fetchval("SELECT count(*) FROM batches") == 0
    assert mailing.audience == 0


async def test_an_error_while_learning_from_an_answer_loses_no_message(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    note, calls = limits.Limits.note, 0

    def fails_once(self: limits.Limits, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("a bug")
        return note(self, *args, **kwargs)

    monkeypatch.setattr(limits.Limits, "note", fails_once)
    await world.clients(3)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=3)


async def test_an_error_in_the_last_look_holds_up_nobody_else(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    may_text, start = sender.View.may_text, monotonic()

    def fails(self: sender.View, zone: str | None, at: float) -> bool:
        if zone == "Asia/Tokyo" and monotonic() - start < 3_600:
            raise RuntimeError("a bug")
        return may_text(self, zone, at)

    monkeypatch.setattr(sender.View, "may_text", fails)
    await world.clients(1, timezone="Asia/Tokyo")
    await world.clients(3, first=2)
    await world.replica()
    mailing = await world.mailing()
    await world.until(mailing, sent=3, waiting=1)
    assert (await world.messages(mailing))[0].reason == "internal_error"


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


async def test_a_zone_that_is_not_known_is_named_and_the_default_is_used(world: World) -> None:
    """Rows written by hand, or by a replica with newer zone data: nobody is lost, and the log counts them."""
    await world.clients(3, timezone="Europe/Nowhere")
    await world.clients(2, timezone="Europe", first=10)  # a folder of the zone data
    await world.clients(1, timezone="Europe/Moscow", first=20)
    with structlog.testing.capture_logs() as entries:
        await world.replica()
        await world.until(await world.mailing(window=hours_from_now(-2, 6)), sent=6)
        await poll_until(lambda: len([each for each in entries if "DEFAULT_TIMEZONE" in each["event"]]) == 2)
    named = {each["timezone"]: each["clients"] for each in entries if "DEFAULT_TIMEZONE" in each["event"]}
    assert named == {"Europe/Nowhere": 3, "Europe": 2}


async def test_the_log_tells_what_the_gateway_does(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Out of order and back, throttling, refusing: a line each, however many requests say so."""
    monkeypatch.setattr(gateways, "OPEN_SECONDS", 0.1)
    world.simulator.script(
        {"match": {"attempt": 1}, "times": 12, "do": {"kind": "status", "status": 503}},
        {"match": {"attempt": 1}, "times": 2, "do": {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}}},
        {"match": {"text_contains": "token"}, "do": {"kind": "status", "status": 401}},
    )
    with structlog.testing.capture_logs() as entries:
        await world.clients(30)
        await world.replica()
        await world.until(await world.mailing(), sent=30)
        await world.mailing(text="token")

        async def refused() -> bool:
            return bool((await gateways.get(world.db, "default")).state == "misconfigured")

        await poll_until(refused)
    said = Counter(entry["event"].partition(";")[0] for entry in entries if entry["event"].startswith("the gateway"))
    assert said["the gateway is out of order"] >= 1
    assert said["the gateway answers again"] >= 1
    assert said["the gateway is throttling"] in (1, 2)
    assert said["the gateway refuses us"] == 1


async def test_only_the_probes_answer_closes_an_open_breaker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gateways, "OPEN_SECONDS", 0.3)
    monkeypatch.setattr(gateways, "OPEN_CAP", 0.3)
    # ten fail and open it, two that were under way before time out while the probe is on its way
    world.simulator.script(
        {"match": {"attempt": 1}, "times": 2, "do": {"kind": "hang"}},
        {"match": {"attempt": 1}, "times": 10, "do": {"kind": "status", "status": 503}},
        {"times": 1, "do": {"kind": "delay", "ms": 500}},
    )
    opened: list[str] = []
    open_breaker = gateways.open_breaker

    async def counted(db: Any, name: str, *why: Any) -> Any:
        opened.append(name)
        return await open_breaker(db, name, *why)

    monkeypatch.setattr(gateways, "open_breaker", counted)
    await world.clients(40)
    engine = await world.replica(concurrency=12, timeout=0.7)
    mailing = await world.mailing()
    await poll_until(lambda: engine.sender and engine.sender.limits.probing)
    await world.until(mailing, sent=40)
    assert len(opened) == 1
    assert await world.db.fetchval("SELECT openings FROM gateways") == 0
    await world.check(mailing)


def test_a_bisected_flush_may_have_lost_a_batch() -> None:
    nothing: Any = None
    lost = queue.Recorded(1, False, *[nothing] * 8)
    assert recorder._merge([lost], [lost]) == [lost._replace(written=0)]
