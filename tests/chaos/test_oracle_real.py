"""The oracle on the facts of a real run, and on those that were doctored afterwards."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from zoneinfo import ZoneInfo

from chaos.oracle import Rule, Run, Stop, check, gather, summary
from notifier.models import Status, Window
from notifier.simulator import Entry
from notifier.storage import mailings
from tests.chaos.oracle_scenes import HOUR, SECOND
from tests.delivery import conftest
from tests.delivery.conftest import World

simulator, short_waits, world = conftest.simulator, conftest.short_waits, conftest.world


async def test_a_real_run_breaks_nothing_and_a_doctored_ledger_does(world: World) -> None:
    await world.clients(400)
    world.simulator.script(
        {"match": {"attempt": 1}, "share": 0.2, "do": {"kind": "status", "status": 500}},
        {"match": {"attempt": 1}, "share": 0.1, "do": {"kind": "reset", "accept": True}},
    )
    scheduler = await world.replica(concurrency=50)
    now = datetime.now(UTC)
    mailing = await world.mailing(window=Window((now - 11 * HOUR).time(), (now + 11 * HOUR).time()))
    await world.finished(mailing)
    edited = await mailings.create(
        world.db,
        name=None,
        text="Вторая",
        filter=mailing.filter,
        starts_at=None,
        ends_at=mailing.ends_at,
        window=None,
        priority=0,
        draft=True,
    )
    await mailings.edit(world.db, edited.id, {"text": "Третья"})
    await mailings.act(world.db, edited.id, "start")
    scheduler.wake()
    await world.finished(edited)
    clients = [row["id"] for row in await world.db.fetch("SELECT id FROM clients")]
    run = Run(alive={scheduler.replica}, audiences={mailing.id: clients, edited.id: clients})

    facts = await gather(world.db, world.simulator.entries(), run, ZoneInfo("UTC"))

    assert check(facts) == []
    numbers = summary(facts, [])
    assert (numbers.messages, numbers.sent) == (800, 800)
    assert numbers.in_doubt > 0
    assert {m.window for m in facts.mailings.values()} == {mailing.window, None}
    await world.check(mailing)

    requests = Counter(entry.id for entry in facts.entries)
    one = next(
        entry
        for entry in facts.entries
        if entry.id and requests[entry.id] == 1 and facts.messages[entry.id].mailing_id == edited.id
    )
    others = [entry for entry in facts.entries if entry is not one]

    def broken(*entries: Entry) -> set[Rule]:
        return {breach.rule for breach in check(replace(facts, entries=[*others, *entries]))}

    assert broken(one) == set()
    assert broken() == {Rule.LOST}
    assert broken(one, one) == {Rule.DOUBLED}
    assert broken(one._replace(text="Вторая")) == {Rule.TEXT}
    assert broken(one._replace(phone=1)) == {Rule.STRAY}
    assert broken(one._replace(at=edited.starts_at - SECOND)) == {Rule.UNTIMELY, Rule.TEXT}  # the text came later
    stopped = replace(facts, run=replace(run, stops=[Stop(mailing.id, mailing.starts_at - 2 * SECOND, None)]))
    assert {breach.rule for breach in check(stopped)} == {Rule.STOPPED}
    dead = await gather(world.db, facts.entries, replace(run, alive=()), ZoneInfo("UTC"))
    assert check(dead) == []


async def test_a_message_under_the_mark_of_the_dead_is_found(world: World) -> None:
    await world.clients(3)
    world.simulator.script({"match": {}, "do": {"kind": "hang"}})
    scheduler = await world.replica(timeout=50.0)
    mailing = await world.mailing()
    await world.until(mailing, sending=3)
    await world.kill(scheduler)

    facts = await gather(world.db, world.simulator.entries(), Run(alive=()), ZoneInfo("UTC"))

    assert {message.status for message in facts.messages.values()} == {Status.SENDING}
    assert {(breach.rule, breach.count) for breach in check(facts)} >= {(Rule.LOST, 3), (Rule.OWNERS, 1)}
