"""Who is dead and what is stuck, as one observer judges it."""

from __future__ import annotations

from notifier.cluster.detector import DEAD_AFTER, FREE_FOR, LOST_CLAIM, SETTLED_AFTER, FailureDetector
from notifier.storage.queue import Owned

ME, PEER, STUCK_AFTER = 1, 2, 30.0


def batch(number: int, replica: int = PEER, *, watermark: int = 5, over: bool = False) -> Owned:
    return Owned(number, number * 100, replica, watermark, 0, 10, over)


def watched(seconds: float, *batches: Owned, beating: bool = True, me: int = ME) -> FailureDetector:
    """An observer who looked every second for so long; the peer's heart beats, unless it does not."""
    watch = FailureDetector()
    for now in range(int(seconds) + 1):
        watch.observe({me: now, PEER: now if beating else 0}, list(batches), 1_000.0 + now)
    return watch


def test_who_does_not_beat_is_dead_and_its_batches_are_taken() -> None:
    theirs = batch(1)
    assert watched(DEAD_AFTER - 1, theirs, beating=False).to_reclaim(ME, (), STUCK_AFTER) == []
    watch = watched(DEAD_AFTER, theirs, beating=False)
    assert watch.dead() == {PEER}
    assert watch.to_reclaim(ME, (), STUCK_AFTER) == [theirs]


def test_batches_of_nobody_who_is_registered_are_taken_when_they_stand_still() -> None:
    # not at once: it may have registered after the counters were read, or have been struck off while it was stopped
    nobodys = batch(1, replica=99)
    assert watched(DEAD_AFTER - 1, nobodys).to_reclaim(ME, (), STUCK_AFTER) == []
    assert watched(DEAD_AFTER, nobodys).to_reclaim(ME, (), STUCK_AFTER) == [nobodys]


def test_who_was_struck_off_while_it_was_stopped_does_not_take_from_itself() -> None:
    # its first beat puts it back on the list, but reads the list as it was before
    own = batch(1, ME)
    watch = FailureDetector()
    watch.observe({PEER: 0}, [own], 1_000.0)
    assert watch.to_reclaim(ME, (own.id,), STUCK_AFTER) == []


def test_what_makes_no_progress_is_taken_from_the_living_and_from_oneself() -> None:
    theirs, own = batch(1), batch(2, ME)
    assert watched(STUCK_AFTER - 1, theirs, own).to_reclaim(ME, (2,), STUCK_AFTER) == []
    assert watched(STUCK_AFTER, theirs, own).to_reclaim(ME, (2,), STUCK_AFTER) == [theirs, own]


def test_where_there_could_be_no_progress_nothing_is_stuck_yet() -> None:
    watch = watched(STUCK_AFTER, batch(1), batch(2, replica=99))
    watch.forget_batches()
    assert watch.to_reclaim(ME, (), STUCK_AFTER) == []
    watch.observe({ME: 99, PEER: 99}, [batch(1)], 1_000.0 + STUCK_AFTER + 3)
    assert watch.to_reclaim(ME, (), STUCK_AFTER) == []
    assert watch.to_reclaim(ME, (), 3) == [batch(1)]


def test_progress_is_any_change_of_a_batch() -> None:
    watch = FailureDetector()
    for now in range(100):
        watch.observe({ME: now, PEER: now}, [batch(1, watermark=now // 20)], 1_000.0 + now)
        assert watch.to_reclaim(ME, (), STUCK_AFTER) == []


def test_long_after_the_end_progress_does_not_count() -> None:
    watch = FailureDetector()
    for now in range(int(SETTLED_AFTER) + 1):
        assert watch.to_reclaim(ME, (), STUCK_AFTER) == []
        watch.observe({ME: now, PEER: now}, [batch(1, watermark=now, over=True)], 1_000.0 + now)
    assert len(watch.to_reclaim(ME, (), STUCK_AFTER)) == 1


def test_a_claim_whose_answer_was_lost_is_found_again() -> None:
    lost, held, theirs = batch(1, ME), batch(2, ME), batch(3)
    assert watched(LOST_CLAIM - 1, lost, held, theirs).to_reclaim(ME, (2,), STUCK_AFTER) == []
    assert watched(LOST_CLAIM, lost, held, theirs).to_reclaim(ME, (2,), STUCK_AFTER) == [lost]


def test_who_was_cut_off_knows_nothing_and_watches_anew() -> None:
    # the database was away for a minute: nobody is dead for that, nothing is stuck
    watch = watched(3, batch(1), batch(2, ME), beating=False)
    watch.observe({ME: 3, PEER: 0}, [batch(1), batch(2, ME)], 1_063.0)
    assert watch.dead() == set()
    assert watch.to_reclaim(ME, (), STUCK_AFTER) == []


def test_whose_lock_is_free_at_two_looks_is_dead() -> None:
    watch = watched(1)
    watch.observe_locks({PEER}, 1_000.0)
    assert watch.dead() == set()
    watch.observe_locks({PEER}, 1_000.0 + FREE_FOR)
    assert watch.dead() == {PEER}


def test_a_lock_that_was_held_again_or_not_looked_at_between_says_nothing() -> None:
    watch = watched(1)
    for free, now in (({PEER}, 0.0), (set(), 0.4), ({PEER}, 0.8), (None, 1.2), ({PEER}, 1.6), ({PEER}, 60.0)):
        watch.observe_locks(free, 1_000.0 + now)
        assert watch.dead() == set()


def test_a_heart_that_beats_overrules_a_free_lock_until_it_is_held_again() -> None:
    watch = watched(1)  # the last beat was seen at 1_001
    for second in range(2, 10):
        watch.observe_locks({PEER}, 1_000.5 + second)
        watch.observe({ME: second, PEER: second}, [], 1_001.0 + second)
        watch.observe_locks({PEER}, 1_001.4 + second)
        assert (PEER in watch.dead()) == (second == 2)  # that beat may have been its last
    watch.observe_locks(set(), 1_011.0)
    for now in (1_011.5, 1_012.3):
        watch.observe_locks({PEER}, now)
    assert watch.dead() == {PEER}


def test_what_was_seen_of_the_locks_long_ago_says_nothing() -> None:
    watch = watched(1)
    for now in (1_001.0, 1_002.0):
        watch.observe_locks({PEER}, now)
    assert watch.dead() == {PEER}
    watch.observe({ME: 9, PEER: 1}, [], 1_006.0)
    assert watch.dead() == set()


def test_the_living_replica_with_the_lowest_number_leads() -> None:
    """It hands over when it is dead, and nobody leads for one that knows nothing yet."""
    detector = FailureDetector()
    assert not detector.is_leader(1)
    detector.observe({1: 5, 2: 5}, [], 100.0)
    assert detector.is_leader(1)
    assert not detector.is_leader(2)
    for second in range(1, 10):
        detector.observe({1: 5, 2: 5 + second}, [], 100.0 + second)
    assert detector.is_leader(2)
    assert not detector.is_leader(1)
