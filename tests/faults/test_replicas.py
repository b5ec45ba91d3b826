"""Replicas that die, stand still, are sent away, or lose a part of themselves: chaos/replicas.py at a small size."""

from __future__ import annotations

import pytest

from chaos import replicas

# Small batches, so that each of the replicas has some.
SMALL = {"storage.queue.BATCH_SIZE": 50, "storage.audience.BATCH_SIZE": 50}
# Whoever is gone is known by the lock at once, or by a heartbeat that is missed soon.
LOCK = {"cluster.control.TRUSTED_AFTER": 0.5}
HEARTBEAT = {"delivery.scheduler.BEAT": 0.3, "cluster.detector.DEAD_AFTER": 3.0}


@pytest.mark.parametrize(
    ("policy", "deaths", "hint"),
    [
        (
            "retry",
            (
                "after 2 storage.queue.claim",
                "before 40 delivery.gateway.Gateway.send",
                "after 4 storage.recording.record",
            ),
            LOCK,
        ),
        (
            "hold",
            (
                "after 2 storage.queue.load",
                "after 40 delivery.gateway.Gateway.send",
                "before 4 storage.recording.record",
            ),
            HEARTBEAT | replicas.WITHOUT_HINT,
        ),
    ],
    ids=["retry, by the lock", "hold, by the heartbeat"],
)
def test_whoever_lives_takes_over_from_who_was_killed_at_any_step(
    policy: str, deaths: tuple[str, ...], hint: dict[str, float]
) -> None:
    figures = replicas.deaths_of_one(
        policy,
        [deaths],
        messages=600,
        survivors=1,
        concurrency=10,
        timeout=1,
        constants=SMALL | hint,
        within=60.0,
        watch=False,
    )
    assert figures.breaches == []
    assert figures.sent == 600 if policy == "retry" else figures.sent <= 600


def test_after_the_death_of_all_new_ones_go_on() -> None:
    figures = replicas.cold_start(
        messages=600, replicas=2, concurrency=10, timeout=1, watch=False, constants=SMALL | LOCK
    )
    assert figures.breaches == []
    assert figures.sent == 600


def test_sigterm_under_load_leaves_nothing_in_doubt() -> None:
    figures = replicas.sent_away(messages=100, latency=2_000, concurrency=20)
    assert figures.breaches == []
    assert (figures.sent, figures.in_doubt) == (100, 0)


def test_whoever_was_stopped_starts_nothing_and_tells_what_came_of_the_rest() -> None:
    figures = replicas.stands_still(
        "hold", messages=150, seconds=0, replicas=2, concurrency=10, timeout=25, watch=False,
        constants=SMALL | HEARTBEAT, latency=300,
    )  # fmt: skip
    assert figures.breaches == []


def test_a_lost_coroutine_is_missed_by_nobody() -> None:
    figures = replicas.loses_parts(messages=250, every=0.15)
    assert figures.breaches == []
    assert figures.sent == figures.messages


def test_a_row_that_is_refused_holds_nobody_up() -> None:
    figures = replicas.refused_row(messages=300)
    assert figures.breaches == []
    assert figures.sent == 299
