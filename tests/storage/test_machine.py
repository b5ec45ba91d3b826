"""A state machine over the verbs of storage: whatever is done in whatever order, the books balance after every step.

Hypothesis draws the steps, against a real PostgreSQL. Three replicas work as the delivery engine does, but each step
of theirs is one verb, so that any other may come in between: they claim, load, ask for watermarks, start requests,
record, lose the answer to a record, are taken over, come late, and are killed. Meanwhile people create, edit, pause,
cancel, resolve and delete, and time passes by moving the times in the tables. What was put on the wire is kept, and is
compared with the ledger. The verbs are in `tests/storage/machine`, the steps and what must hold after each are here.

`make test` runs a fixed set of examples. ``NOTIFIER_TEST_EXAMPLES=2000`` runs so many longer ones, other ones each
time; a failure is printed as the steps that lead to it, and is tried first with the next run.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule, run_state_machine_as_test
from tornado.ioloop import IOLoop

from notifier.delivery.reclaim import settle
from notifier.errors import Conflict
from notifier.models import IN_DOUBT, OPEN_STATES, OVER, MailingStatus, MessageState, OnUnknown, Outcome
from notifier.storage import audience, mailing_lifecycle, mailings, queue, statistics
from notifier.storage.database import Db, Pool
from tests.storage.ledger_errors import ledger_errors
from tests.storage.machine.knowledge import GIVES_UP, HEIR, STEPS, UNDER_WAY, WAIT, ZONES, Seen, look
from tests.storage.machine.people import People
from tests.storage.machine.planning import Planning
from tests.storage.machine.replicas import Replicas
from tests.storage.machine.verbs import VERBS, WINDOW, Call, calls
from tests.storage.races import waiting_for_a_lock
from tests.storage.scenes import insert_clients, let_a_month_pass

EXAMPLES = int(os.environ.get("NOTIFIER_TEST_EXAMPLES", "0"))
PROFILE = settings(
    max_examples=EXAMPLES or 40,
    stateful_step_count=80 if EXAMPLES else 50,
    derandomize=not EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
)
# A failure is made small before it is shown: up to five minutes of hypothesis's own. A pass takes some 20 s.
TIMEOUT = 600 + 5 * EXAMPLES

ONE_AFTER_THE_OTHER = {"record", "append_late"}
"""What a replica never does at once."""

TABLES = "clients, mailings, mailing_texts, messages, slices, batches, attempts, counters, failures, series, erasures"


class Machine(People, Planning, Replicas):
    # ---- a new world -------------------------------------------------------------------------------------------------

    @initialize(policy=st.sampled_from(OnUnknown), count=st.integers(1, 6), window=WINDOW, started=st.integers(0, 4))
    def begin_with_a_mailing(self, policy: OnUnknown, count: int, window: str | None, started: int) -> None:
        """Planned, and so many of its messages on the wire."""
        self.policy = policy
        self.run(self.reset(count, window, started))

    async def reset(self, count: int, window: str | None, started: int) -> None:
        # measured: 2 ms; TRUNCATE … RESTART IDENTITY takes 180 of that many tables and indexes
        await self.db.execute(";".join(f"DELETE FROM {table}" for table in TABLES.split(", ")))
        self.now = await mailings.clock(self.db)
        await insert_clients(self.db, count, tags=["a"], timezone=ZONES[0])
        await self.store_mailing(window=window)
        await audience.begin_due(self.db)
        while await audience.unplanned(self.db):
            await self.plan(self.db, 0, 3)
        self.seen = await look(self.db)
        if started:
            self.take(await self.claim(self.db, 1, retries=False, limit=1, loaded=4, lost=False))
            await self.alone(self.record(self.db, 0, lost=False, started=started))

    # ---- steps -------------------------------------------------------------------------------------------------------

    # One rule for all verbs: hypothesis leaves most rules out of each example, and these need each other. What is drawn
    # hangs on nothing that is in the database: on a slow machine the same steps may lead elsewhere, and hypothesis
    # takes a test that then draws something else for a broken one.
    @rule(data=st.data(), beside=st.integers(0, 9))
    def step(self, data: st.DataObject, beside: int) -> None:
        call = self.first_of(
            data.draw(calls()), lambda verb: self.used[verb] < VERBS[verb].most and VERBS[verb].when(self)
        )
        others = data.draw(calls()) if beside >= 8 else []
        other = None
        if call is None:
            return
        first, one = call
        self.used[first] += 1
        if others and VERBS[first].beside:
            if beside == 9 and first in ("append_late", "resolve", "plan"):
                others = [("close", {})]  # who adds a batch, and who looks whether there is none left
            other = self.first_of(others, lambda verb: VERBS[verb].beside and not {verb, first} <= ONE_AFTER_THE_OTHER)
        if other is None:
            self.run(self.alone(VERBS[first].do(self, self.db, **one)))
            return
        second, two = other
        self.run(self.beside(lambda db: VERBS[first].do(self, db, **one), lambda db: VERBS[second].do(self, db, **two)))

    @staticmethod
    def first_of(calls: Sequence[Call], fits: Callable[[str], bool]) -> Call | None:
        return next((call for call in calls if fits(call[0])), None)

    async def beside(self, first: Callable[[Db], Any], second: Callable[[Db], Any]) -> None:
        """The second begins when the first is done and not committed, and ends after that if it has to wait for it."""
        self.sound, self.steps = False, 2
        async with self.db.acquire() as one, self.db.acquire() as other:
            async with one.transaction():
                effect = await first(one)
                task = asyncio.ensure_future(second(other))
                waits = asyncio.ensure_future(waiting_for_a_lock(self.db, other))
                await asyncio.wait({task, waits}, return_when=asyncio.FIRST_COMPLETED)
                waits.cancel()
            then = await task
        self.take(effect)
        self.take(then)
        self.granted = []  # the other may have written after the watermark was granted

    # ---- what must hold ----------------------------------------------------------------------------------------------

    @invariant()
    def everything_adds_up(self) -> None:
        if not self.sound:
            self.run(self.check())
            self.sound = True

    async def check(self) -> None:
        assert not await ledger_errors(self.db)
        before, self.seen = self.seen, await look(self.db)
        self.transitions_are_legal(before)
        self.completed_means_complete(before)
        self.archived_means_over()
        self.wire_agrees()

    def transitions_are_legal(self, before: Seen) -> None:
        for mailing_id in self.seen.mailings.keys() & before.mailings.keys():
            reached = {before.status(mailing_id)}
            for _ in range(self.steps):
                reached |= {target for source, target in STEPS if source in reached}
            status = self.seen.status(mailing_id)
            assert status in reached, f"mailing {mailing_id}: {before.status(mailing_id)} → {status}"
            old, new = before.mailings[mailing_id], self.seen.mailings[mailing_id]
            assert all(new[key] >= old[key] for key in ("version", "audience", "planned")), f"{old} → {new}"
        for message_id, (mailing_id, rows) in before.messages.items():
            if message_id in self.seen.messages:
                assert self.seen.messages[message_id][1][: len(rows)] == rows, f"message {message_id}'s past changed"
            else:
                assert before.mailings[mailing_id]["expired"], f"message {message_id} vanished"

    def archived_means_over(self) -> None:
        for mailing_id, mailing in self.seen.mailings.items():
            assert not mailing["archived"] or self.seen.status(mailing_id) in OVER, f"{mailing_id} goes on, archived"

    def completed_means_complete(self, before: Seen) -> None:
        """Nothing was left when it was closed, and nothing came since, but for what came after the end."""
        for mailing_id in self.seen.shown():
            mailing, old = self.seen.mailings[mailing_id], before.mailings.get(mailing_id)
            if (mailing["status"], mailing["status_reason"]) != ("finished", "completed"):
                continue
            if mailing["ended"] and (self.steps > 1 or (old is not None and old["status"] == "finished")):
                continue
            assert mailing["planned"]
            for message_id, (of, _) in self.seen.messages.items():
                state = self.seen.state(message_id)
                assert of != mailing_id or state not in OPEN_STATES, f"completed; {message_id} is {state}"

    def wire_agrees(self) -> None:
        copies = Counter(request.message_id for request in self.requests if request.maybe_sent)
        for request in self.requests:
            if (found := self.seen.messages.get(request.message_id)) is None:
                continue
            known = len(found[1]) >= request.seq or (request.message_id, request.seq) in self.seen.marked
            assert known or self.seen.mailings[found[0]]["deleted"], f"nobody knows of {request}"
        for message_id, (_, rows) in self.seen.messages.items():
            doubts = sum(outcome in IN_DOUBT for outcome, _ in rows)
            assert copies[message_id] <= 1 + doubts, f"{copies[message_id]} copies of {message_id}, {rows}"
            most = GIVES_UP[self.policy] + self.asked_again[message_id]
            assert copies[message_id] <= most, f"{copies[message_id]} copies of {message_id}, {rows}"
            if any(outcome is Outcome.ACCEPTED for outcome, _ in rows):
                assert rows[-1][1] is MessageState.SENT, f"{message_id} was accepted and is {rows[-1][1]}"

    # ---- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        if self.sound:
            self.run(self.come_to_an_end())

    async def come_to_an_end(self) -> None:
        """When the dead are taken over and every message is answered, nothing is left."""
        self.hands = []
        for mailing_id in self.seen.shown():
            for name in ("start", "resume"):
                try:
                    await mailings.act(self.db, mailing_id, name)
                except Conflict:
                    pass
        await self.db.execute("UPDATE mailings SET starts_at = now() - interval '1 hour' WHERE ends_at > now()")
        await audience.begin_due(self.db)
        while await audience.unplanned(self.db):
            await self.plan(self.db, 0, 3)
        for batch in await queue.reclaim(self.db, HEIR, await queue.owned(self.db)):
            await settle(self.db, HEIR, [batch], self.policy, WAIT)
        await self.db.execute("UPDATE batches SET due_at = now()")
        self.steps = 9
        await self.check()
        while claimed := await queue.claim(self.db, HEIR, after=0, limit=8):
            self.hands = self.held(HEIR, claimed)
            for hand in list(self.hands):
                await self.through(hand, ["accepted"])
            assert not self.hands
        await mailing_lifecycle.finish_ended(self.db)
        for mailing_id in await mailing_lifecycle.worked_off(self.db):
            assert await mailing_lifecycle.close(self.db, mailing_id)
        await self.check()
        for line in await statistics.of_mailings(self.db, None, 100):
            assert line.status in OVER | {MailingStatus.DRAFT}, f"mailing {line.id} is {line.status}"
            assert not any(line.messages[status] for status in UNDER_WAY), f"mailing {line.id}: {line.messages}"
        await let_a_month_pass(self.db)
        while await mailing_lifecycle.purge(self.db):
            pass
        self.seen = await look(self.db)
        assert len(self.seen.shown()) == len(self.seen.mailings)
        assert all(mailing_id in self.seen.mailings for mailing_id, _ in self.seen.messages.values())


@pytest.mark.timeout(TIMEOUT)
def test_whatever_is_done_in_whatever_order_the_books_balance(db: Pool, io_loop: IOLoop) -> None:
    run_state_machine_as_test(type("Machine", (Machine,), {"db": db, "loop": io_loop}), settings=PROFILE)
