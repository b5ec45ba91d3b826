"""Throttling, circuit breaker and tokens of a gateway, also where several replicas act at once."""

from __future__ import annotations

import asyncio
import itertools
import time
from datetime import datetime, timedelta

import pytest

from notifier.storage import gateways, mailings
from notifier.storage.database import Db, Pool
from tests.conftest import poll_until
from tests.storage.gateway_scenes import NAME, about, row_of, state
from tests.storage.races import while_held

# ---- throttling ---------------------------------------------------------------------------------------------------


async def now(db: Db) -> datetime:
    return await mailings.clock(db)


@pytest.mark.parametrize(
    ("seconds", "pause"),
    [(None, 1), (0.0, 1), (0.2, 1), (7.0, 7), (3_600.0, 3_600), (1e9, 3_600), (float("inf"), 3_600)],
)
async def test_a_429_pauses_for_as_long_as_it_says_within_bounds(db: Pool, seconds: float | None, pause: float) -> None:
    await gateways.throttle(db, NAME, seconds, await now(db))
    row = await row_of(db)
    assert about(row["paused_for"], pause)
    assert row["throttles"] == 1


async def test_without_a_time_the_pause_doubles_up_to_an_hour(db: Pool) -> None:
    pauses = []
    for _ in range(14):
        await state(db, paused_in=-1)
        asked_at = await now(db)
        await gateways.throttle(db, NAME, None, asked_at)
        pauses.append(
            round(((await gateways.get(db, NAME)).paused_until or asked_at).timestamp() - asked_at.timestamp())
        )
    assert pauses == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 3600, 3600]
    await gateways.unthrottled(db, NAME)
    await state(db, paused_in=-1)
    await gateways.throttle(db, NAME, None, await now(db))
    assert about((await row_of(db))["paused_for"], 1)


@pytest.mark.parametrize("seconds", [None, 1.0, 20.0])
async def test_those_under_way_together_count_once(db: Pool, seconds: float | None) -> None:
    """A dozen requests were on their way when the gateway had enough; each answers 429."""
    asked_at = await now(db)
    for _ in range(12):
        await gateways.throttle(db, NAME, seconds, asked_at)
    row = await row_of(db)
    assert row["throttles"] == 1
    assert about(row["paused_for"], seconds or 1)
    # answers that come after the pause, to requests from before it
    await state(db, paused_in=-1)
    await gateways.throttle(db, NAME, None, asked_at - timedelta(seconds=10))
    assert (await row_of(db))["throttles"] == 1


async def test_a_longer_one_extends_the_pause_and_a_shorter_does_not(db: Pool) -> None:
    asked_at = await now(db)
    await gateways.throttle(db, NAME, 30, asked_at)
    await gateways.throttle(db, NAME, 5, asked_at)
    assert about((await row_of(db))["paused_for"], 30)
    await gateways.throttle(db, NAME, 60, asked_at)
    row = await row_of(db)
    assert about(row["paused_for"], 60)
    assert row["throttles"] == 1


async def test_two_replicas_report_one_throttling(db: Pool) -> None:
    asked_at = await now(db)
    await while_held(
        db,
        lambda conn: gateways.throttle(conn, NAME, None, asked_at),
        lambda conn: gateways.throttle(conn, NAME, None, asked_at),
    )
    assert (await row_of(db))["throttles"] == 1


# ---- breaker ------------------------------------------------------------------------------------------------------


async def test_the_breaker_opens_for_ten_seconds_and_doubles_up_to_five_minutes(db: Pool) -> None:
    waits = []
    for _ in range(8):
        await gateways.open_breaker(db, NAME)
        row = await row_of(db)
        waits.append(round(row["retry_in"].total_seconds()))
        await gateways.open_breaker(db, NAME)  # another replica says so too
        assert (await row_of(db))["retry_at"] == row["retry_at"]
        await state(db, retry_in=-1)
        assert await gateways.try_probe(db, NAME, 20)
    assert waits == [10, 20, 40, 80, 160, 300, 300, 300]

    await gateways.close_breaker(db, NAME)

    gateway = await gateways.get(db, NAME)
    assert (gateway.breaker, gateway.retry_at) == ("closed", None)
    await gateways.open_breaker(db, NAME)
    assert about((await row_of(db))["retry_in"], 10)


async def test_a_probe_waits_for_its_time_and_a_lost_one_is_replaced(db: Pool) -> None:
    assert not await gateways.try_probe(db, NAME, 20)  # closed
    await gateways.open_breaker(db, NAME)
    assert not await gateways.try_probe(db, NAME, 20)
    await state(db, retry_in=-0.01)
    assert await gateways.try_probe(db, NAME, 20)
    row = await row_of(db)
    assert row["breaker"] == "half_open"
    assert about(row["retry_in"], 20)
    assert not await gateways.try_probe(db, NAME, 20)
    await state(db, retry_in=-0.01)  # its winner never reported
    assert await gateways.try_probe(db, NAME, 20)


async def test_one_of_two_wins_the_probe(db: Pool) -> None:
    await state(db, breaker="open", retry_in=-1)
    assert not await while_held(
        db, lambda conn: gateways.try_probe(conn, NAME, 20), lambda conn: gateways.try_probe(conn, NAME, 20)
    )


async def test_without_the_comparison_both_win_the_probe(db: Pool) -> None:
    await state(db, breaker="open", retry_in=-1)
    assert await while_held(
        db,
        lambda conn: gateways.try_probe(conn, NAME, 20),
        lambda conn: gateways.try_probe(conn, NAME, 20),
        replace={" AND retry_at <= now()": ""},
    )


# ---- tokens -------------------------------------------------------------------------------------------------------


async def test_the_bucket_fills_at_the_rate_up_to_the_burst(db: Pool) -> None:
    await state(db, tokens=0.0, tokens_in=-0.31)
    taken, wait = await gateways.take_tokens(db, NAME, 10.0, 5.0, 100)
    assert (taken, wait <= 0.1) == (3, True)
    await state(db, tokens=0.0, tokens_in=-3_600)
    assert (await gateways.take_tokens(db, NAME, 10.0, 5.0, 100))[0] == 5
    await state(db, tokens=0.0, tokens_in=-3_600)
    taken, wait = await gateways.take_tokens(db, NAME, 10.0, 5.0, 2)
    assert (taken, wait) == (2, 0.0)


async def test_seconds_until_the_next_token(db: Pool) -> None:
    await state(db, tokens=0.25, tokens_in=0)
    taken, wait = await gateways.take_tokens(db, NAME, 0.5, 1.0, 1)
    assert taken == 0
    assert 1.2 < wait <= 1.5


async def test_a_clock_that_steps_back_does_not_stall(db: Pool) -> None:
    """The bucket was last filled an hour ahead: it fills from now on, as if nothing had been."""
    await state(db, tokens=1.0, tokens_in=3_600)
    assert (await gateways.take_tokens(db, NAME, 100.0, 1.0, 1))[0] == 1
    row = await row_of(db)
    assert row["tokens"] == 0
    assert row["tokens_at"] <= await now(db)
    await poll_until(lambda: _takes_one(db))


async def _takes_one(db: Db) -> bool:
    return (await gateways.take_tokens(db, NAME, 100.0, 1.0, 1))[0] == 1


async def _take_for(db: Pool, seconds: float, rate: float, burst: float) -> list[tuple[float, float, int]]:
    """Two replicas take as many as they get; when they asked, when they were answered, and how many they got."""
    taken: list[tuple[float, float, int]] = []
    end = time.monotonic() + seconds

    async def replica() -> None:
        async with db.acquire() as conn:
            while time.monotonic() < end:
                asked = time.monotonic()
                count, wait = await gateways.take_tokens(conn, NAME, rate, burst, 10)
                taken.append((asked, time.monotonic(), count))
                await asyncio.sleep(wait / 2)

    await asyncio.gather(replica(), replica())
    return taken


async def test_two_replicas_together_keep_the_rate(db: Pool) -> None:
    rate, burst = 100.0, 50.0  # what comes while nobody asks for half a second is not lost
    await state(db, tokens=0.0, tokens_in=-3_600)

    async def used_up() -> bool:
        """Whether they got what there was to get in a second; where the machine has more to do they ask too rarely."""
        taken = sorted(await _take_for(db, 1.0, rate, burst))
        # never more than that in any part of it, however short
        for (first, (begin, _, _)), (last, _) in itertools.combinations(enumerate(taken), 2):
            some = taken[first : last + 1]
            end = max(answered for _, answered, _ in some)
            assert sum(count for *_, count in some) <= rate * (end - begin) + burst
        return sum(count for *_, count in taken) >= rate * 0.8

    await poll_until(used_up)


async def test_one_who_waits_for_the_row_takes_what_is_left(db: Pool) -> None:
    await state(db, tokens=10.0, tokens_in=0)
    taken, wait = await while_held(
        db,
        lambda conn: gateways.take_tokens(conn, NAME, 0.001, 10.0, 7),
        lambda conn: gateways.take_tokens(conn, NAME, 0.001, 10.0, 7),
    )
    assert taken == 3
    assert 990 < wait <= 1_000


async def test_without_the_lock_tokens_are_taken_twice(db: Pool) -> None:
    await state(db, tokens=10.0, tokens_in=0)
    taken, _ = await while_held(
        db,
        lambda conn: gateways.take_tokens(conn, NAME, 0.001, 10.0, 7),
        lambda conn: gateways.take_tokens(conn, NAME, 0.001, 10.0, 7),
        replace={"WHERE name = $1 FOR UPDATE": "WHERE name = $1"},
    )
    assert taken == 7


async def test_a_debt_of_lateness_is_paid_before_a_token_is_given(db: Pool) -> None:
    """A token that was used late is charged at once: the bucket is below zero until it has filled again."""
    await db.execute("UPDATE gateways SET tokens = 1, tokens_at = clock_timestamp()")
    assert (await gateways.take_tokens(db, "default", 0.001, 1.0, 1))[0] == 1
    await gateways.charge(db, "default", 0.5)
    taken, wait = await gateways.take_tokens(db, "default", 0.001, 1.0, 1)
    assert taken == 0
    assert wait == pytest.approx(1_500, abs=10)  # a token and a half at 0.001 a second
