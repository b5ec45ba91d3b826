"""Gateways: what people change, what other replicas hear of, the last errors and the identity."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from unittest.mock import ANY

import asyncpg
import pytest

from notifier.errors import NotFound, Stale
from notifier.models import BreakerState, GatewayState
from notifier.storage import gateways, mailings
from notifier.storage.database import Pool
from tests.conftest import poll_until
from tests.storage.gateway_scenes import NAME, about, row_of, state


async def test_one_gateway_is_there_from_the_beginning(db: Pool) -> None:
    assert await gateways.names(db) == [NAME]
    gateway = await gateways.get(db, NAME)
    assert (gateway.state, gateway.breaker, gateway.concurrency, gateway.rate) == ("running", "closed", None, None)
    assert (gateway.reason, gateway.paused_until, gateway.retry_at, gateway.last_errors) == (None, None, None, [])
    assert gateway.now.tzinfo is not None


async def test_what_is_not_there_is_not_found(db: Pool) -> None:
    with pytest.raises(NotFound):
        await gateways.get(db, "other")
    for verb in (gateways.pause, gateways.resume):
        with pytest.raises(NotFound):
            await verb(db, "other")
    with pytest.raises(NotFound):
        await gateways.edit(db, "other", {"rate": 1.0})
    assert await gateways.take_tokens(db, "other", 1.0, 1.0, 1) == (0, 1.0)
    assert not await gateways.try_probe(db, "other", 1)


# ---- by hand ------------------------------------------------------------------------------------------------------


async def test_limits_are_edited_and_given_back(db: Pool) -> None:
    await state(db, tokens=5.0)
    gateway = await gateways.edit(db, NAME, {"concurrency": 8, "rate": 2.5}, if_match=1)
    assert (gateway.concurrency, gateway.rate, gateway.version) == (8, 2.5, 2)
    assert (await row_of(db))["tokens"] == 0  # a raised rate is not a burst
    gateway = await gateways.edit(db, NAME, {"concurrency": None})
    assert (gateway.concurrency, gateway.rate, gateway.version) == (None, 2.5, 3)
    for verb in (gateways.pause, gateways.resume):
        with pytest.raises(Stale):
            await verb(db, NAME, if_match=2)
    with pytest.raises(Stale):
        await gateways.edit(db, NAME, {}, if_match=2)
    assert (await gateways.get(db, NAME)).version == 3


async def test_the_database_refuses_what_the_schemas_should_have(db: Pool) -> None:
    for wrong in ({"concurrency": 0}, {"rate": -1.0}):
        with pytest.raises(asyncpg.CheckViolationError):
            await gateways.edit(db, NAME, wrong)


@asynccontextmanager
async def closing(connection: Any) -> AsyncIterator[Any]:
    yield connection
    await connection.close()


@pytest.mark.parametrize("before", ["running", "paused", "misconfigured"])
async def test_any_state_is_paused_and_resumed(db: Pool, before: str) -> None:
    await state(db, state=before, reason="x", breaker="open", openings=3, throttles=4, retry_in=60, paused_in=60)
    gateway = await gateways.pause(db, NAME)
    assert (gateway.state, gateway.reason, gateway.version) == (GatewayState.PAUSED, "operator", 2)
    # a pause by hand learns nothing about the gateway
    row = await row_of(db)
    assert (row["breaker"], row["openings"], row["throttles"]) == ("open", 3, 4)
    assert about(row["paused_for"], 60)
    assert about(row["retry_in"], 60)

    gateway = await gateways.resume(db, NAME)

    assert (gateway.state, gateway.reason, gateway.paused_until) == (GatewayState.RUNNING, None, None)
    assert (gateway.breaker, gateway.retry_at, gateway.version) == (BreakerState.CLOSED, None, 3)
    row = await row_of(db)
    assert (row["openings"], row["throttles"]) == (0, 0)


async def test_only_a_running_gateway_becomes_misconfigured(db: Pool) -> None:
    await gateways.misconfigured(db, NAME, "unauthorized")
    gateway = await gateways.get(db, NAME)
    assert (gateway.state, gateway.reason, gateway.version) == ("misconfigured", "unauthorized", 2)
    await gateways.misconfigured(db, NAME, "payment_required")
    assert (await gateways.get(db, NAME)).reason == "unauthorized"
    await gateways.pause(db, NAME)
    await gateways.misconfigured(db, NAME, "payment_required")
    assert (await gateways.get(db, NAME)).reason == "operator"


async def test_every_change_that_matters_to_others_is_announced(db: Pool, dsn: str) -> None:
    heard: list[object] = []
    async with closing(await asyncpg.connect(dsn)) as listener:
        await listener.add_listener(mailings.CHANNEL, lambda *words: heard.append(words))
        verbs: list[Callable[[], Awaitable[Any]]] = [
            lambda: gateways.edit(db, NAME, {"rate": 1.0}),
            lambda: gateways.pause(db, NAME),
            lambda: gateways.resume(db, NAME),
            lambda: gateways.throttle(db, NAME, 5, datetime.now(UTC)),
            lambda: gateways.open_breaker(db, NAME),
            lambda: gateways.close_breaker(db, NAME),
            lambda: gateways.misconfigured(db, NAME, "unauthorized"),
        ]
        for count, verb in enumerate(verbs, 1):
            await verb()
            await poll_until(lambda count=count: len(heard) == count)  # type: ignore[misc]
        # nothing changed, nothing said
        await gateways.misconfigured(db, NAME, "unauthorized")
        await gateways.close_breaker(db, NAME)
        await gateways.pause(db, NAME)
        await poll_until(lambda: len(heard) == len(verbs) + 1)


# ---- errors -------------------------------------------------------------------------------------------------------


def error(minute: int, status: int | None = None, **more: Any) -> dict[str, Any]:
    """One error of a kind that its status tells."""
    at = f"2026-01-31T09:{minute:02}:00.000000Z"
    usual = {"at": at, "first_at": at, "count": 1, "message_id": minute, "detail": f"words {minute}"}
    return {**usual, "outcome": "unknown", "status_code": status, "reason": None, **more}


async def test_errors_of_a_kind_are_one_with_the_newest_s_words(db: Pool) -> None:
    """A thousand of one kind do not push out the one of another, and those of another replica come late."""
    await gateways.note_errors(db, NAME, [error(1, 500), error(3, 502, count=4, first_at=error(2)["at"])])
    await gateways.note_errors(db, NAME, [])
    await gateways.note_errors(db, NAME, [error(9, 502, count=1_000, first_at=error(5)["at"]), error(4)])
    await gateways.note_errors(db, NAME, [error(0, 502)])
    assert (await gateways.get(db, NAME)).last_errors == [
        error(9, 502, count=1_005, first_at=error(0)["at"]),
        error(4),
        error(1, 500),
    ]


async def test_the_last_ten_kinds_are_kept_newest_first(db: Pool) -> None:
    await gateways.note_errors(db, NAME, [error(minute, 500 + minute) for minute in range(12)])
    await gateways.note_errors(db, NAME, [error(30, 540)])
    kept = (await gateways.get(db, NAME)).last_errors
    assert [each["status_code"] for each in kept] == [540, *range(511, 502, -1)]


# ---- identity -----------------------------------------------------------------------------------------------------


async def test_a_refusal_counts_only_with_the_newest_identity(db: Pool) -> None:
    await gateways.identify(db, NAME, "old")
    await gateways.identify(db, NAME, "new")
    await gateways.misconfigured(db, NAME, "unauthorized", "refused", "old")
    assert (await gateways.get(db, NAME)).state == "running"
    await gateways.misconfigured(db, NAME, "unauthorized", "refused", "new")
    gateway = await gateways.get(db, NAME)
    assert (gateway.state, gateway.detail) == ("misconfigured", "refused")


@pytest.mark.parametrize("state_before", ["misconfigured", "paused"])
async def test_another_identity_ends_a_refusal_but_no_pause_by_hand(db: Pool, state_before: str) -> None:
    await gateways.identify(db, NAME, "old")
    await state(db, state=state_before, reason="x", detail="words")
    before = await gateways.get(db, NAME)
    await gateways.identify(db, NAME, "old")  # a restart with the same
    assert await gateways.get(db, NAME) == replace(before, now=ANY)
    await gateways.identify(db, NAME, "new")
    after = await gateways.get(db, NAME)
    if state_before == "paused":
        assert (after.state, after.reason, after.version) == ("paused", "x", before.version)
    else:
        assert (after.state, after.reason, after.detail, after.version) == ("running", None, None, before.version + 1)


async def test_what_was_refused_before_identities_were_known_stays_so(db: Pool) -> None:
    await gateways.misconfigured(db, NAME, "unauthorized")
    await gateways.identify(db, NAME, "first")
    assert (await gateways.get(db, NAME)).state == "misconfigured"
