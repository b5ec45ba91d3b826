"""A gateway that throttles, refuses, is away or lies."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
import structlog.testing

from notifier.simulator import Simulator
from notifier.storage import gateways
from tests.conftest import poll_until
from tests.delivery.conftest import World
from tests.delivery.scenes import FIRST

ABOUT_US: list[dict[str, Any]] = [
    {"kind": "code", "code": 4, "message": "Bad Credentials"},
    {"kind": "status", "status": 400, "text": '{"error":"insufficient funds"}'},
    {"kind": "code", "code": 13, "message": "x1"},
]


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

        await world.stop(world.schedulers[-1], 1)
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
    said = Counter(entry["event"].partition(";")[0].partition(":")[0] for entry in entries)
    assert said["circuit breaker opened"] >= 1
    assert said["circuit breaker closed"] >= 1
    assert said["the gateway is throttling"] in (1, 2)
    assert said["the gateway refuses us"] == 1
