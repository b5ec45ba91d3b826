"""People who change their minds while it is being sent, and clients who are erased: chaos/people.py at a small size."""

from __future__ import annotations

import pytest

from chaos import people


@pytest.mark.parametrize("seed", [11])
def test_two_editors_at_once_make_no_illegal_step(seed: int) -> None:
    figures = people.edits(mailings=4, messages=400, calls=60, seed=seed, skew=5.0)
    assert figures.breaches == []


def test_pause_and_cancel_hold_at_once_and_write_one_row() -> None:
    figures = people.pause_and_cancel(few=100, many=4_000, replicas=2, concurrency=5, within=10.0)
    assert figures.breaches == []


def test_who_is_erased_while_queued_is_not_texted_and_leaves_no_phone() -> None:
    soon = {"cluster.detector.SETTLED_AFTER": 5.0, "delivery.chores.PURGE_EVERY": 0.5}
    figures = people.erased(messages=100, each=3, constants=soon)
    assert figures.breaches == []
    assert figures.sent == 94
