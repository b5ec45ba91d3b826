"""Rows 11 and 12: people who change their minds while it is being sent, two at once, and clients who are erased."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, time, timedelta
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

from chaos.oracle import EVER, NEVER, TAKES_EFFECT, Stop, Version
from chaos.replicas import at_work, clients, count
from chaos.stage import Replica, Stage, on_stage, until
from chaos.verdict import Figures, Row, judge, together
from notifier.models import MAILING_TRANSITIONS, OVER, MailingStatus, Window

LEGAL = {200, 204, 404, 409, 412, 422}
# What the scheduler may have made of a status since an answer showed it.
BECOMES = {
    MailingStatus.DRAFT: {MailingStatus.DRAFT},
    MailingStatus.SCHEDULED: {MailingStatus.SCHEDULED, MailingStatus.RUNNING, MailingStatus.FINISHED},
    MailingStatus.RUNNING: {MailingStatus.RUNNING, MailingStatus.FINISHED},
    MailingStatus.PAUSED: {MailingStatus.PAUSED, MailingStatus.FINISHED},
    MailingStatus.FINISHED: {MailingStatus.FINISHED},
    MailingStatus.CANCELLED: {MailingStatus.CANCELLED},
}
# Milliseconds, so that a request is in the gateway's ledger soon after its start.
LATENCY = 20


class Change(NamedTuple):
    """A call that changed a mailing: what was asked for, when, and the mailing as the answer shows it."""

    verb: str
    asked: datetime
    answered: datetime
    version: int
    shown: Mapping[str, Any]

    @property
    def status(self) -> MailingStatus:
        """What the mailing became."""
        return MailingStatus(self.shown["status"])


@dataclass(slots=True)
class Editor:
    """Somebody who does this and that to some mailings over one replica's API, as a seed says."""

    replica: Replica
    seed: str
    mailings: Sequence[int]
    changes: dict[int, list[Change]] = field(default_factory=lambda: defaultdict(list))
    deleted: dict[int, datetime] = field(default_factory=dict)  # when that was answered
    statuses: list[int] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def work(self, calls: int) -> None:
        """So many calls, without a pause between."""
        chance = random.Random(self.seed)
        seen: dict[int, int] = {}
        for number in range(calls):
            mailing = chance.choice(self.mailings)
            verb = chance.choices(("edit", "pause", "resume", "cancel", "delete"), (8, 5, 6, 0.1, 0.1))[0]
            match = seen.get(mailing) if chance.random() < 0.3 else None
            body = self._edit(chance, f"{mailing} {self.seed} {number}") if verb == "edit" else None
            if change := self.change(mailing, verb, body, match):
                seen[mailing] = change.version

    @staticmethod
    def _edit(chance: random.Random, name: str) -> dict[str, Any]:
        now = datetime.now(UTC)
        return chance.choice(
            [
                {"text": f"Здравствуйте! {name}"},
                {"name": name, "priority": chance.randint(-10, 10)},
                {"window": _hours(-1, 2)},
                {"window": _hours(2, 5)},
                {"window": None},
                {"ends_at": (now + timedelta(days=chance.randint(1, 300))).isoformat()},
                {"ends_at": (now - timedelta(seconds=1)).isoformat()},
                {"filter": {"tags": [name]}},
            ]
        )

    def change(self, mailing: int, verb: str, body: Any = None, match: int | None = None) -> Change | None:
        """One call; the change that it made, None when it made none."""
        path = f"/api/v1/mailings/{mailing}"
        method = {"edit": "PATCH", "delete": "DELETE"}.get(verb, "POST")
        headers = {} if match is None else {"If-Match": f'"{match}"'}
        asked = datetime.now(UTC)
        place = f"{path}/{verb}" if method == "POST" else path
        reply = self.replica.call(method, place, body, headers=headers)
        answered = datetime.now(UTC)
        self.statuses.append(reply.status)
        if reply.status not in LEGAL or (reply.status == 412 and match is None):
            self.wrong.append(f"{verb} of {mailing} (If-Match {match}): {reply.status} {reply.body}")
        if reply.status == 204:
            self.deleted[mailing] = answered
        if reply.status != 200:
            return None
        change = Change(verb, asked, answered, int(reply.headers["Etag"].strip('"')), reply.body)
        self.changes[mailing].append(change)
        if match is not None and change.version != match + 1:
            self.wrong.append(f"{verb} of {mailing}: If-Match {match} gave version {change.version}")
        return change


def edits(
    *, mailings: int, messages: int, calls: int, seed: int | None = None, skew: float = 0.0, **given: Any
) -> Figures:
    """Two editors, each at a replica of its own, do ``calls`` calls at random while ``mailings`` are being sent."""
    seed = random.SystemRandom().randrange(10**6) if seed is None else seed
    with on_stage(gateway={"latency": LATENCY}) as stage:
        stage.clients(messages)
        for _ in range(2):
            stage.begin_replica(gateway_concurrency=20, **given)
        at_work(stage)
        everybody = clients(stage)
        first: dict[int, Change] = {}
        for number in range(mailings):
            asked = datetime.now(UTC)
            mailing = stage.mailing(stage.replicas[number % 2], text=f"Здравствуйте! {number}")
            shown = stage.replicas[0].call("GET", f"/api/v1/mailings/{mailing}").body
            first[mailing] = Change("create", asked, datetime.now(UTC), 1, shown)
        editors = [Editor(replica, f"{seed}/{n}", list(first)) for n, replica in enumerate(stage.replicas)]
        threads = [threading.Thread(target=editor.work, args=(calls,)) for editor in editors]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for mailing in first:  # whatever is still to be sent may be sent now
            editors[0].change(mailing, "edit", {"window": None, "ends_at": "2099-01-01T00:00:00Z"})
            editors[0].change(mailing, "resume")
        _all_over(stage, seed)
        history = {mailing: [change, *_in_order(editors, mailing)] for mailing, change in first.items()}
        deleted = {mailing: at for editor in editors for mailing, at in editor.deleted.items()}
        wrong = [word for editor in editors for word in editor.wrong]
        wrong += [word for mailing, changes in history.items() for word in _illegal(mailing, changes, deleted)]
        assert not wrong, f"seed {seed}: {'; '.join(wrong[:5])}"
        narrowed = {mailing for mailing, changes in history.items() if any(c.shown["filter"] for c in changes)}
        _nothing_after(stage, history, deleted, transit=2.0 + skew)
        figures = judge(
            stage,
            versions={mailing: _versions(changes) for mailing, changes in history.items()},
            stops=[stop for mailing, changes in history.items() for stop in _stops(mailing, changes)],
            audiences={m: everybody for m in history if m not in narrowed and m not in deleted},
            skew=skew,
            purged=[str(change.shown["text"]) for mailing in deleted for change in history[mailing]],
        )
    made = sum(len(changes) - 1 for changes in history.values())
    refused = sum(len(editor.statuses) for editor in editors) - made - len(deleted)
    figures.notes.append(f"seed {seed}: {made} changes and {len(deleted)} deletions made, {refused} refused")
    return figures


def _all_over(stage: Stage, seed: int) -> None:
    try:
        until(lambda: not count(stage, "mailings", "over_at IS NULL"), every=0.1)
        until(lambda: not count(stage, "batches", "owner IS NOT NULL"), every=0.1)
    except AssertionError:
        left = stage.database.query(
            "SELECT m.id, m.status::text, m.planned, m.window_from, b.seq, b.due_at, b.size, b.watermark, b.replica "
            "FROM mailings m LEFT JOIN batches b ON b.mailing_id = m.id WHERE m.over_at IS NULL OR b.owner IS NOT NULL"
        )
        raise AssertionError(f"seed {seed}: not over: {[tuple(map(str, row.values())) for row in left[:10]]}") from None


def _in_order(editors: Sequence[Editor], mailing: int) -> list[Change]:
    """The changes of all, in the order in which the database made them."""
    return sorted((c for editor in editors for c in editor.changes[mailing]), key=lambda change: change.version)


def _illegal(mailing: int, changes: Sequence[Change], deleted: Mapping[int, datetime]) -> list[str]:
    """What must not have happened: a step that the models do not know, two changes that made one version."""
    found = []
    for before, change in pairwise(changes):
        word = f"mailing {mailing}, version {before.version} {before.status} → {change.verb} {change.version}"
        if change.version != before.version + 1:
            found.append(f"{word}: versions are not 1 apart")
        sources = MAILING_TRANSITIONS[change.verb][0] if change.verb != "edit" else set(MailingStatus) - OVER
        if not sources & BECOMES[before.status]:
            found.append(f"{word}: illegal")
        if mailing in deleted and change.asked > deleted[mailing]:
            found.append(f"{word}: after it was deleted")
    return found


def _versions(changes: Sequence[Change]) -> list[Version]:
    versions = []
    for change in changes:
        versions.append(
            Version(
                asked=change.asked if change.version > 1 else NEVER,
                answered=change.answered,
                starts_at=datetime.fromisoformat(change.shown["starts_at"]),
                ends_at=datetime.fromisoformat(change.shown["ends_at"]),
                window=_window(change.shown["window"]),
                text=change.shown["text"],
            )
        )
    return versions


def _window(shown: Mapping[str, str] | None) -> Window | None:
    return None if shown is None else Window(*(time.fromisoformat(shown[end]) for end in ("from", "to")))


def _stops(mailing: int, changes: Sequence[Change]) -> list[Stop]:
    """When the mailing must have stood still: from a pause or cancel to the next resume."""
    stops = []
    for position, change in enumerate(changes):
        if change.verb in ("pause", "cancel"):
            resumed = [later.asked for later in changes[position + 1 :] if later.verb == "resume"]
            stops.append(Stop(mailing, change.answered, resumed[0] if resumed else None))
    return stops


def _nothing_after(
    stage: Stage, history: Mapping[int, Sequence[Change]], deleted: Mapping[int, datetime], transit: float
) -> None:
    """Nothing of a deleted mailing, which only its texts tell, reached the gateway after that took effect."""
    ends = {change.shown["text"]: at for mailing, at in deleted.items() for change in history[mailing]}
    late = [
        entry.id
        for entry in stage.gateway.entries()
        if entry.at > ends.get(entry.text, EVER - timedelta(days=1)) + TAKES_EFFECT + timedelta(seconds=transit)
    ]
    assert not late, f"sent after their mailing was deleted: {late[:10]}"


# ---- row 11: promise 9


def pause_and_cancel(*, few: int, many: int, replicas: int, concurrency: int, within: float, **given: Any) -> Figures:
    """A pause writes as many rows for ``few`` messages as for ``many``; pause and cancel of the many hold soon.

    ``within``: seconds after the answer in which the last request may start.
    """
    with on_stage(gateway={"latency": LATENCY}) as stage:
        stage.clients(few, tag="few")
        stage.clients(many - few, first=few + 1)
        for _ in range(replicas):
            stage.begin_replica(gateway_concurrency=concurrency, **given)
        at_work(stage)
        here, later = stage.replicas[0], _hours(2, 5)
        small = stage.mailing(here, filter={"tags": ["few"]}, window=later)
        large = stage.mailing(here, window=later)
        until(lambda: count(stage, "mailings", "planned") == 2)
        rows = {mailing: _rows_written(stage, here, mailing, ("pause", "resume")) for mailing in (small, large)}
        assert rows[small] == rows[large] == 1, f"rows written by pause and resume: {rows}"
        assert _rows_written(stage, here, small, ("cancel",)) == 1, "cancel wrote more than a row"
        editor = Editor(here, "", [large])
        editor.change(large, "edit", {"window": None})
        lags = {}
        for verb in ("pause", "resume", "cancel"):
            if verb != "resume":
                known = stage.gateway.state()["requests"]
                until(partial(_asked_more, stage, known + concurrency))
            change = editor.change(large, verb)
            assert change, f"{verb} was refused: {editor.statuses}"
            if verb != "resume":
                until(lambda: not count(stage, "batches", "owner IS NOT NULL"))
                lags[verb] = _last_start(stage, large, change.answered)
        assert max(lags.values()) <= within, f"requests started so many seconds after the answer: {lags}"
        numbers = stage.numbers(large)
        assert numbers["cancelled"], f"it was over before it was cancelled: {numbers}"
        changes = editor.changes[large]
        never = _versions(changes)[0]._replace(asked=NEVER, answered=changes[0].asked, window=_window(later))
        figures = judge(stage, versions={large: [never, *_versions(changes)]}, skew=max(0.0, within - 1),
                        stops=_stops(large, changes))  # fmt: skip
    figures.notes.append(
        f"a pause writes {rows[small]} row for {few:,} and {rows[large]} for {many:,} messages; last start "
        f"{lags['pause'] * 1000:.0f} ms after the answer to pause, {lags['cancel'] * 1000:.0f} ms to cancel"
    )
    return figures


def _asked_more(stage: Stage, known: int) -> bool:
    return bool(stage.gateway.state()["requests"] > known)


def _hours(first: int, last: int) -> dict[str, str]:
    """A window of UTC's local hours from so many hours after now to so many."""
    now = datetime.now(UTC)
    return {end: (now + timedelta(hours=shift)).strftime("%H:00") for end, shift in (("from", first), ("to", last))}


def _rows_written(stage: Stage, replica: Replica, mailing: int, verbs: Sequence[str]) -> int:
    """How many rows of all tables were written and deleted by these calls and by all who heard of them.

    The heartbeats of the replicas are left out. A row that was written twice counts once.
    """
    tables = [
        row["name"]
        for row in stage.database.query(
            "SELECT relname AS name FROM pg_stat_user_tables WHERE relname <> 'replicas' AND relname !~ 'yoyo'"
        )
    ]
    everything = " UNION ALL ".join(f"SELECT xmin::text::bigint AS written FROM {table}" for table in tables)
    before = stage.database.query(
        f"SELECT count(*) AS n, pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next FROM ({everything}) rows"
    )[0]
    for verb in verbs:
        reply = replica.call("POST", f"/api/v1/mailings/{mailing}/{verb}")
        assert reply.status == 200, reply
    after = stage.database.query(
        f"SELECT count(*) AS n, count(*) FILTER (WHERE written >= %s) AS new FROM ({everything}) rows", before["next"]
    )[0]
    return int(after["new"] + max(0, before["n"] - after["n"]))


def _last_start(stage: Stage, mailing: int, answered: datetime) -> float:
    """How many seconds after an answer the last request was started, by the books."""
    last = stage.database.value(
        "SELECT max(started_at) FROM attempts WHERE mailing_id = %s AND duration_ms IS NOT NULL", mailing
    )
    return max(0.0, float((last - answered).total_seconds()))


# ---- row 12


def erased(*, messages: int, each: int = 3, **given: Any) -> Figures:
    """Clients are erased while their message waits, waits for another try, or is under way: ``each`` so many."""
    with on_stage(gateway={"latency": LATENCY}) as stage:
        stage.clients(messages)
        replica = stage.replica(gateway_concurrency=20, **given)
        assert replica.call("POST", "/api/v1/gateways/default/pause").status == 200
        mailing = stage.mailing(replica)
        until(lambda: count(stage, "messages", "true") == messages)
        everybody = clients(stage)
        rows = stage.database.query(
            "SELECT c.id AS client, c.phone, m.id FROM messages m JOIN clients c ON c.id = m.client_id ORDER BY m.id"
        )
        middle = rows[messages // 2 : messages // 2 + 3 * each]
        waiting, retrying, under_way = middle[:each], middle[each : 2 * each], middle[2 * each :]
        stage.gateway.script(
            *({"match": {"phone": row["phone"]}, "do": {"kind": "code", "code": 7}} for row in retrying),
            *({"match": {"phone": row["phone"]}, "do": {"kind": "delay", "ms": 3000}} for row in under_way),
            latency=LATENCY,
        )
        _erase(replica, waiting)
        assert replica.call("POST", "/api/v1/gateways/default/resume").status == 200
        until(lambda: {row["phone"] for row in retrying + under_way} <= _asked(stage))
        until(lambda: count(stage, "attempts", "outcome = 'declined'") >= each)
        _erase(replica, retrying + under_way)
        stage.done(mailing)
        until(lambda: not any(_traces(stage, row["phone"]) for row in middle), every=0.2)
        for row in middle:
            shown = replica.call("GET", f"/api/v1/messages/{row['id']}").body
            wanted = ("sent", None) if row in under_way else ("suppressed", "client_deleted")
            assert (shown["status"], shown["reason"]) == wanted, shown
            assert shown["phone"] is None, shown
        forbidden = _asked(stage) & {row["phone"] for row in waiting}
        assert not forbidden, f"sent to clients who had been erased: {forbidden}"
        got = {entry.phone for entry in stage.gateway.entries() if entry.accepted}
        assert not got & {row["phone"] for row in retrying}, "a retry went to a client who had been erased"
        log = replica.log.read_text(errors="replace")
        assert not [row for row in middle if str(row["phone"]) in log], "a log names the phone of an erased client"
        figures = judge(stage, audiences={mailing: everybody})
    figures.notes.append(f"{2 * each} suppressed, {each} were under way; no phone is left")
    return figures


def _erase(replica: Replica, rows: Sequence[Mapping[str, Any]]) -> None:
    for row in rows:
        path = f"/api/v1/clients/{row['client']}"
        assert replica.call("DELETE", path).status == 204
        assert replica.call("GET", path).status == 404


def _asked(stage: Stage) -> set[int | None]:
    return {entry.phone for entry in stage.gateway.entries()}


def _traces(stage: Stage, phone: int) -> list[str]:
    """The tables in which some row still has that phone."""
    tables = [row["name"] for row in stage.database.query("SELECT relname AS name FROM pg_stat_user_tables")]
    return [table for table in tables if count(stage, f"{table} t", f"t::text LIKE '%%{phone}%%'")]


def _row_11() -> Figures:
    return together(
        [
            edits(mailings=6, messages=4_000, calls=400),
            pause_and_cancel(few=1_000, many=100_000, replicas=3, concurrency=100, within=1.0),
        ]
    )


ROWS: tuple[Row, ...] = (
    Row(11, "two editors while it is sent", _row_11),
    Row(12, "clients erased while queued", partial(erased, messages=3_000, each=5)),
)
