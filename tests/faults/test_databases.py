"""Databases that restart, cut off, fill up and refuse, at a small size; `make chaos ONLY=5,6,13,14,15` is all of it."""

from __future__ import annotations

from chaos import databases
from chaos.verdict import Figures
from tests.faults.conftest import skipped_where_lacking

# Behind a pooler in transaction mode the heartbeat alone tells who is dead.
SOON = {"delivery.scheduler.BEAT": 0.3, "cluster.detector.DEAD_AFTER": 3.0}


def unbroken(figures: Figures) -> None:
    assert figures.breaches == []
    assert figures.lost == figures.doubled == 0


def test_a_database_that_restarts_costs_nobody_a_message_or_a_life() -> None:
    figures = databases.restarts(times=2, between=50)
    unbroken(figures)
    assert figures.in_doubt == 0


def test_connections_that_are_lost_inside_a_statement_leave_the_books_balanced() -> None:
    unbroken(databases.lost_in_commit(clients=60, rounds=1, matches=("INSERT INTO attempts", "COMMIT")))


def test_nothing_is_sent_while_nothing_can_be_written() -> None:
    unbroken(databases.read_only(seconds=1.0, clients=1_200))


def test_nothing_is_sent_while_the_disk_is_full() -> None:
    with skipped_where_lacking():
        unbroken(databases.disk_full(seconds=1.0, clients=1_200))


def test_a_replica_killed_inside_a_migration_does_not_stop_the_next() -> None:
    unbroken(databases.killed_inside_a_migration(clients=50))


def test_behind_a_pooler_in_transaction_mode_no_lock_speaks_for_a_replica() -> None:
    with skipped_where_lacking():
        unbroken(databases.pooled(clients=900, constants=SOON))


def test_a_claim_does_not_read_what_an_old_snapshot_keeps() -> None:
    databases.old_snapshot(waiting=20_000, clients=2_000, rounds=1, seconds=0.5, old=1.0, at_least=0.0)
