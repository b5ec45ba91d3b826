"""Rate, tokens, probes and what waits too long."""

from __future__ import annotations

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from notifier.delivery import limits, recorder
from notifier.storage import gateways
from tests.conftest import poll_until
from tests.delivery.conftest import World


async def test_the_rate_holds_over_two_replicas(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    starts: list[float] = []
    take = limits.Limits.take

    def watched(self: limits.Limits, now: float) -> limits.Permit | None:
        permit = take(self, now)
        if permit:
            starts.append(now)
        return permit

    monkeypatch.setattr(limits.Limits, "take", watched)
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


def test_bucket_and_late_tokens_are_within_the_allowance() -> None:
    for rate in (limits.SLOW, 50.0, 100.0, 5_000.0):
        late = rate * (limits.GOOD_FOR + 0.02)  # and 20 ms for the database's answer
        assert limits.bucket(rate) + late <= rate * 0.2 + 1e-9


async def test_at_a_low_rate_lateness_is_charged(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    # every second token comes 60 ms late: the messages still come 200 ms apart, and they come
    starts: list[float] = []
    tokens = 0
    take, take_tokens = limits.Limits.take, gateways.take_tokens

    def watched(self: limits.Limits, now: float) -> limits.Permit | None:
        permit = take(self, now)
        if permit:
            starts.append(now)
        return permit

    async def slow(*args: Any) -> Any:
        nonlocal tokens
        taken = await take_tokens(*args)
        tokens += taken[0]
        await asyncio.sleep(0.06 * (tokens % 2))
        return taken

    monkeypatch.setattr(limits.Limits, "take", watched)
    monkeypatch.setattr(gateways, "take_tokens", slow)
    await world.clients(10)
    await world.replica(rate=5.0)
    mailing = await world.mailing()
    await world.until(mailing, sent=10)
    assert min(later - earlier for earlier, later in pairwise(starts)) > 0.199


async def test_what_waits_too_long_under_its_mark_is_given_back(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder, "LINED_UP", 0.2)
    await world.clients(2)
    await world.db.execute("UPDATE gateways SET tokens = 0.5, tokens_at = now()")
    await world.replica(rate=0.01)
    mailing = await world.mailing()

    async def given_back() -> bool:
        return (await world.outcomes(mailing))["not_started"] > 0

    await poll_until(given_back)
    assert (await world.outcomes(mailing)).keys() <= {"not_started", "accepted"}
    await world.check(mailing)


async def test_only_the_probes_answer_closes_an_open_breaker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten fail and open it; two that were under way before time out while the probe is on its way.

    They end after 5 s, and the probe goes from 1.5 s on and takes 4: a second is left for a busy machine.
    """
    monkeypatch.setattr(gateways, "OPEN_SECONDS", 1.5)
    monkeypatch.setattr(gateways, "OPEN_CAP", 1.5)
    world.simulator.script(
        {"match": {"attempt": 1}, "times": 2, "do": {"kind": "hang"}},
        {"match": {"attempt": 1}, "times": 10, "do": {"kind": "status", "status": 503}},
        {"times": 1, "do": {"kind": "delay", "ms": 4_000}},
    )
    opened: list[str] = []
    open_breaker = gateways.open_breaker

    async def counted(db: Any, name: str, *why: Any) -> Any:
        opened.append(name)
        return await open_breaker(db, name, *why)

    monkeypatch.setattr(gateways, "open_breaker", counted)
    await world.clients(40)
    engine = await world.replica(concurrency=12, timeout=5)
    mailing = await world.mailing()
    await poll_until(lambda: engine.engine and engine.engine.limits.probing)
    await world.until(mailing, sent=40)
    assert len(opened) == 1
    assert await world.db.fetchval("SELECT openings FROM gateways") == 0
    await world.check(mailing)
