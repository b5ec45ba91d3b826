"""The oracle of the chaos runs: for every rule facts that break just it, beside the nearest that do not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from chaos.oracle import SHOWN, Rule, Run, check, summary
from notifier.models import MailingStatus, MessageState, Outcome, Reason, Status
from tests.chaos.oracle_scenes import (
    ACCEPTED,
    HELD,
    INTERRUPTED,
    MAILING,
    NOON,
    NOT_STARTED,
    PHONE,
    REJECTED,
    SAID_TO_BE_SENT,
    SECOND,
    SENT_AGAIN,
    START,
    UNKNOWN,
    Row,
    Scene,
)

# ---- lost


@pytest.mark.parametrize("row", [(), (UNKNOWN,), (NOT_STARTED,)], ids=["waiting", "in doubt", "given back"])
def test_a_message_without_a_final_status_is_lost(row: tuple[Row, ...]) -> None:
    assert Scene().message(1, *row).broken() == []
    assert Scene(status=MailingStatus.RUNNING).message(1, *row).broken() == [(Rule.LOST, 1)]


def test_a_message_that_counts_as_under_way_is_lost() -> None:
    scene = Scene().message(1)
    scene.messages[1] = scene.messages[1]._replace(status=Status.SENDING)
    assert scene.broken() == [(Rule.LOST, 1)]


def test_what_is_left_over_by_a_mailing_that_finished_before_its_end_is_lost() -> None:
    closed = Scene(over_at=NOON).message(1, UNKNOWN).sent(2)
    assert closed.broken() == [(Rule.LOST, 1)]
    assert Scene(over_at=NOON, status=MailingStatus.CANCELLED).message(1, UNKNOWN).sent(2).broken() == []
    assert Scene(over_at=NOON).message(1, HELD, UNKNOWN, reason=Reason.LATE).sent(2).broken() == []


def test_what_was_never_accepted_is_not_sent() -> None:
    assert Scene().message(1, ACCEPTED).asked(1).broken() == []
    assert Scene().message(1, ACCEPTED).asked(1, status=500, code=None).broken() == [(Rule.LOST, 1)]
    assert Scene().message(1, ACCEPTED).broken() == [(Rule.LOST, 1)]
    assert Scene().message(1, HELD, SAID_TO_BE_SENT).broken() == []
    assert Scene().message(1, ACCEPTED, SAID_TO_BE_SENT).broken() == [(Rule.LOST, 1)]


def test_what_was_accepted_is_sent_or_in_doubt() -> None:
    assert Scene().message(1, HELD).asked(1).broken() == []
    assert Scene().message(1, INTERRUPTED, REJECTED).asked(1).broken() == []
    assert Scene().message(1, REJECTED).asked(1).broken() == [(Rule.LOST, 1)]
    refused = (Outcome.ACCEPTED, MessageState.UNKNOWN)
    assert Scene().message(1, refused, reason=Reason.UNRECORDABLE).asked(1).broken() == []
    assert Scene().message(1, refused).asked(1).broken() == [(Rule.LOST, 1)]


def test_every_one_of_the_audience_has_a_message() -> None:
    assert Scene(audience=2).sent(1).sent(2).broken() == []
    assert Scene(audience=2, shown={Status.SENT: 1}).sent(1).broken() == [(Rule.LOST, 1)]
    running = Scene(status=MailingStatus.RUNNING, planned=False).sent(1)
    assert running.broken() == [(Rule.LOST, 1)]


@pytest.mark.parametrize(
    ("expected", "broken"), [({1, 2}, []), ({1, 2, 3}, [(Rule.LOST, 1)]), ({1}, [(Rule.STRAY, 1)])]
)
def test_the_caller_may_know_who_is_of_the_audience(expected: set[int], broken: list[tuple[Rule, int]]) -> None:
    assert Scene(Run(alive={1}, audiences={MAILING: expected})).sent(1).sent(2).broken() == broken


# ---- doubled


@pytest.mark.parametrize(
    ("rows", "copies", "broken"),
    [
        ((UNKNOWN, ACCEPTED), 2, []),
        ((UNKNOWN, INTERRUPTED, ACCEPTED), 3, []),
        ((REJECTED, ACCEPTED), 2, [(Rule.DOUBLED, 1)]),
        ((UNKNOWN, REJECTED, ACCEPTED), 3, [(Rule.DOUBLED, 1)]),
        ((UNKNOWN, UNKNOWN, INTERRUPTED, ACCEPTED), 4, [(Rule.DOUBLED, 1)]),
        ((UNKNOWN, UNKNOWN, HELD, SENT_AGAIN, ACCEPTED), 4, []),
    ],
    ids=["explained", "explained twice", "not explained", "explained once only", "more than three", "by an operator"],
)
def test_each_copy_needs_an_attempt_in_doubt(rows: Sequence[Row], copies: int, broken: list[Any]) -> None:
    scene = Scene().message(1, *rows)
    for _ in range(copies):
        scene.asked(1)
    assert scene.broken() == broken


def test_no_request_without_a_row_in_the_books() -> None:
    refused: dict[str, Any] = {"status": 400, "code": None}
    assert Scene().message(1, REJECTED).asked(1, **refused).broken() == []
    assert Scene().message(1, REJECTED).asked(1, **refused).asked(1, **refused).broken() == [(Rule.DOUBLED, 1)]
    assert Scene(status=MailingStatus.CANCELLED).message(1, NOT_STARTED).asked(1, **refused).broken() == [
        (Rule.DOUBLED, 1)
    ]


def test_one_id_for_each_client_and_phone() -> None:
    scene = Scene().sent(1).sent(2)
    same_phone = scene.messages[2].attempts[0]._replace(phone=PHONE + 1)
    scene.messages[2] = scene.messages[2]._replace(phone=PHONE + 1, attempts=(same_phone,))
    scene.entries[1] = scene.entries[1]._replace(phone=PHONE + 1)
    assert scene.broken() == [(Rule.DOUBLED, 2)]
    scene = Scene().sent(1).sent(2)
    scene.messages[2] = scene.messages[2]._replace(client_id=1)
    assert scene.broken() == [(Rule.DOUBLED, 2)]


# ---- stray


def test_a_request_is_that_of_a_message() -> None:
    assert Scene().sent(1).asked(2).broken() == [(Rule.STRAY, 1)]
    assert Scene().sent(1).asked(0, id=None, status=400, code=None).broken() == [(Rule.STRAY, 1)]


def test_requests_of_a_mailing_that_was_purged_are_known_by_their_text() -> None:
    purged = Run(alive={1}, purged={"Gone"})
    assert Scene(purged).sent(1).asked(2, text="Gone").broken() == []
    assert Scene(deleted=True).sent(1).asked(2).broken() == []  # its purge is under way
    scene = Scene(purged).sent(1).asked(2, text="Gone").asked(2, text="Gone").asked(2, text="Gone")
    assert scene.broken() == []
    assert scene.asked(2, text="Gone").broken() == [(Rule.DOUBLED, 1)]
    scene.run = Run(alive={1}, purged={"Gone"}, again=[2])
    assert scene.broken() == []


def test_a_message_goes_to_its_clients_phone() -> None:
    assert Scene().message(1, ACCEPTED).asked(1, phone=PHONE + 2).broken() == [(Rule.STRAY, 1)]
    edited = Scene().message(1, ACCEPTED, phone=PHONE + 2).asked(1, phone=PHONE + 2)
    assert edited.broken() == []
    erased = Scene().message(1, ACCEPTED, phone=None).asked(1)
    erased.messages[1] = erased.messages[1]._replace(phone=None, zone=None)
    assert erased.broken() == []


# ---- text


def test_the_text_is_one_of_the_mailing() -> None:
    assert Scene().message(1, ACCEPTED).asked(1, text="Ho").broken() == [(Rule.TEXT, 1), (Rule.TEXT, 1)]


@pytest.mark.parametrize(
    ("text", "version", "after", "broken"),
    [
        ("Hi", 1, -1.0, 0),
        ("Ho", 2, -5.0, 1),
        ("Ho", 2, 0.5, 0),
        ("Hi", 1, 2.5, 0),  # on its way for two seconds at most, and a second in which the edit takes effect
        ("Hi", 1, 3.5, 1),
    ],
)
def test_the_text_was_in_force(text: str, version: int, after: float, broken: int) -> None:
    scene = Scene(texts=((START, "Hi"), (NOON, "Ho")))
    scene.message(1, ACCEPTED, text_version=version).asked(1, NOON + after * SECOND, text=text)
    assert scene.broken() == [(Rule.TEXT, 1)] * broken


def test_the_books_name_the_text_that_was_sent() -> None:
    scene = Scene(texts=((START, "Hi"), (NOON, "Ho")))
    assert scene.message(1, ACCEPTED, text_version=2).asked(1).broken() == [(Rule.TEXT, 1)]
    assert scene.message(1, UNKNOWN, ACCEPTED, text_version=2).broken() == []
    assert scene.message(1, INTERRUPTED, text_version=None).broken() == []


# ---- the rest


def test_a_kill_leaves_a_bounded_number_in_doubt() -> None:
    assert Scene(Run(alive={1}, concurrency=20, kills=[420, 0])).broken() == []
    assert Scene(Run(alive={1}, concurrency=20, kills=[421, 0])).broken() == [(Rule.IN_DOUBT, 1)]


def test_the_books_are_those_of_the_audit_and_of_the_statistics() -> None:
    assert Scene(Run(alive={1}, audit=["gaps", "counters"])).sent(1).broken() == [(Rule.OWN_ENTRIES, 1)] * 2
    assert Scene(shown={Status.SENT: 1, Status.FAILED: 1}).sent(1).broken() == [(Rule.OWN_ENTRIES, 1)]
    assert Scene(shown={}, deleted=True, audience=5).sent(1).broken() == []
    assert Scene().sent(1).broken(orphans=[5, 6]) == [(Rule.OWN_ENTRIES, 2)]


def test_the_dead_own_nothing() -> None:
    assert Scene(Run(alive={1, 2})).broken(owned={1: 3, 2: 1}) == []
    assert Scene(Run(alive={1})).broken(owned={1: 3, 2: 1}) == [(Rule.OWNERS, 1)]


def test_the_api_answers_99_of_100_in_time() -> None:
    assert Scene(Run(alive={1}, latencies=[0.01] * 99 + [5.0])).broken() == []
    assert Scene(Run(alive={1}, latencies=[0.01] * 98 + [0.3, 5.0])).broken() == [(Rule.API, 2)]
    assert Scene(Run(alive={1}, latencies=[0.01] * 97 + [5.0])).broken() == []


def test_the_most_serious_comes_first_with_a_few_ids_and_the_count() -> None:
    scene = Scene(Run(alive=set(), latencies=[1.0] * 100))
    for message_id in range(1, 31):
        scene.message(message_id, ACCEPTED)
    scene.sent(31).asked(31)
    facts = scene.facts()
    breaches = check(facts)
    assert [breach.rule for breach in breaches] == [Rule.LOST, Rule.DOUBLED, Rule.DOUBLED, Rule.OWNERS, Rule.API]
    assert breaches[0].count == 30
    assert breaches[0].ids == tuple(range(1, SHOWN + 1))
    assert str(breaches[0]).startswith("lost: 30 × sent messages that the gateway never accepted: 1, 2, 3,")
    assert summary(facts, breaches) == (31, 31, 30, 2, 0)


def test_the_summary_counts_possible_copies() -> None:
    facts = Scene().sent(1).message(2, UNKNOWN, HELD).asked(2).message(3, INTERRUPTED, ACCEPTED).asked(3).facts()
    assert check(facts) == []
    assert summary(facts, []) == (3, 2, 0, 0, 3)
