"""Clocks that step, and local hours on the days that have none or two of them: rows 9 and 10 of the fault matrix."""

from __future__ import annotations

import os
import struct
import tempfile
import time
import zoneinfo
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from chaos.databases import unharmed
from chaos.oracle import Version
from chaos.stage import Stage, on_stage, until
from chaos.verdict import Figures, Lacking, Row, judge, together, watching
from notifier.simulator import Entry

TEXT = "Until then"
KNOWN_AFTER = 2.0
"""Seconds after a step in which a replica may go by the clock as it was: it reads it several times a second."""

LIBRARIES = ("/usr/lib/*/faketime/libfaketime.so.1", "/usr/lib*/faketime/libfaketime.so.1")


def libfaketime() -> Path:
    """The library that lies about the time."""
    for pattern in LIBRARIES:
        for found in Path("/").glob(pattern[1:]):
            return found
    raise Lacking("there is no libfaketime; apt-get install libfaketime")


class Clock:
    """The database's clock: this machine's and ``offset`` seconds, which may be set at any time."""

    def __init__(self, folder: Path, offset: float = 0.0) -> None:
        self._file = folder / "clock"
        self._steps: list[tuple[datetime, float]] = []
        self.set(offset)

    @property
    def environment(self) -> dict[str, str]:
        """What the processes need that go by it."""
        return {
            "LD_PRELOAD": str(libfaketime()),
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }

    def set(self, offset: float) -> None:
        """Step to so many seconds beside the truth."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{offset:+f}\n", "ascii")
        new.chmod(0o644)
        new.rename(self._file)
        self._steps.append((datetime.now(UTC), offset))
        self.offset = offset

    def stand(self, at: datetime) -> None:
        """Step to that moment; time goes on from there."""
        self.set((at - datetime.now(UTC)).total_seconds())

    def now(self) -> datetime:
        """What it shows."""
        return datetime.now(UTC) + timedelta(seconds=self.offset)

    def shown(self, at: datetime) -> datetime:
        """What it showed at a moment of the true time."""
        offset = next((offset for since, offset in reversed(self._steps) if since <= at), self._steps[0][1])
        return at + timedelta(seconds=offset)


@contextmanager
def on_stage_with_clock(offset: float = 0.0, **given: Any) -> Iterator[tuple[Stage, Clock]]:
    """A stage whose database goes by a clock of its own."""
    with tempfile.TemporaryDirectory(prefix="notifier-clock-") as folder:
        Path(folder).chmod(0o711)
        clock = Clock(Path(folder), offset)
        with on_stage(environment=clock.environment, **given) as stage:
            yield stage, clock


def _text(at: datetime) -> str:
    return at.isoformat()


# ---- row 9 -----------------------------------------------------------------------------------------------------------


def steps(hold: float = 10.0, step: float = 600.0, clients: int = 4_000) -> Figures:
    """The database's clock steps ahead and back under load, and the replicas' own clocks are an hour off both ways."""
    with on_stage_with_clock(gateway={"latency": 100}) as (stage, clock):
        first, _ = (
            stage.begin_replica(
                gateway_concurrency=10,
                environment=clock.environment | {"FAKETIME_TIMESTAMP_FILE": "", "FAKETIME": f"{off:+d}"},
            )
            for off in (3_600, -3_600)
        )
        stage.listening()
        stage.clients(clients, tag="many")
        stage.clients(50, first=clients + 1, tag="few")
        half, few, many = timedelta(seconds=step / 2), {"tags": ["few"]}, {"tags": ["many"]}
        begun = _text(clock.now() - timedelta(hours=1))
        with watching(stage) as watched:
            going = stage.mailing(first, filter=many, starts_at=begun)
            ending = stage.mailing(first, text=TEXT, filter=many, starts_at=begun, ends_at=_text(clock.now() + half))
            soon = stage.mailing(first, filter=few, starts_at=_text(clock.now() + half))
            never = stage.mailing(first, filter=few, starts_at=_text(clock.now() + 3 * half))
            until(lambda: len(stage.gateway.entries()) > 100)
            time.sleep(hold)
            assert _status(stage, soon) == "scheduled", "begun before its start"
            clock.set(step)
            stepped = datetime.now(UTC)
            stage.done(ending)
            stage.done(soon)
            time.sleep(hold)
            clock.set(0)
            time.sleep(hold)
            clock.set(-step)
            late = stage.mailing(first, filter=few, starts_at=_text(clock.now() + timedelta(seconds=2)))
            stage.done(late)
            time.sleep(hold)
            clock.set(0)
            stage.done(going)
            assert _status(stage, never) == "scheduled", "begun before its start"
        # Its end came early for the requests that were on their way; how early they stop is looked at here.
        last = max(entry.at for entry in _entries(stage, ending))
        assert last <= stepped + timedelta(seconds=KNOWN_AFTER), f"sent {last - stepped} after the end"
        known = Version(clock.now(), clock.now(), _utc("2000-01-01"), _utc("2099-01-01"), None, TEXT)
        figures = judge(stage, watched, shown=clock.shown, versions={ending: [known]})
        numbers = stage.numbers(ending)
        assert numbers.keys() == {"sent", "expired"}, numbers
        unharmed(stage, figures, clients + 2 * 50 + numbers["sent"])
        failed = [event for replica in stage.replicas for event in replica.events() if event["level"] == "error"]
        # PostgreSQL's timeouts go by the clock that steps: ahead, they cut off what is under way at that moment.
        cut = [event for event in failed if event.get("status") == 503]
        assert len(cut) <= 2 * len(stage.replicas), f"{len(cut)} calls were cut off by two steps ahead"
        assert failed == cut, next(event for event in failed if event not in cut)
        figures.notes.append(f"{numbers['sent']} sent before the end came early, {numbers['expired']} expired")
        return figures


def _status(stage: Stage, mailing: int) -> str:
    return str(stage.database.value("SELECT status FROM mailings WHERE id = %s", mailing))


# ---- row 10 ----------------------------------------------------------------------------------------------------------


class Night(NamedTuple):
    """Clients of ``zone`` whose window is shut when the database's clock shows ``eve``, and opens at ``opens``."""

    name: str
    zone: str
    window: tuple[str, str]
    eve: str
    opens: str


NIGHTS = (
    Night("a gap", "Europe/Berlin", ("02:30", "03:30"), "2027-03-28 00:59:57", "2027-03-28 01:00:00"),
    Night("an overlap of 30 min", "Australia/Lord_Howe", ("01:30", "01:45"), "2027-04-03 14:59:57", "2027-04-03 15:00"),
    Night("half an hour", "Asia/Kolkata", ("23:30", "00:30"), "2027-06-01 17:59:57", "2027-06-01 18:00:00"),
    Night("45 minutes", "Asia/Kathmandu", ("00:00", "00:15"), "2027-06-02 18:14:57", "2027-06-02 18:15:00"),
    Night("a gap of 30 min", "Australia/Lord_Howe", ("02:15", "03:00"), "2027-10-02 15:29:57", "2027-10-02 15:30:00"),
    Night("an overlap", "Europe/Berlin", ("02:00", "02:30"), "2027-10-31 00:59:57", "2027-10-31 01:00:00"),
)


def _utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def nights(cases: Sequence[Night] = NIGHTS, clients: int = 50) -> Figures:
    """The database's clock stands just before windows open that clock changes, half hours and midnight make odd."""
    with on_stage_with_clock(gateway={"latency": 10}) as (stage, clock):
        clock.stand(_utc(cases[0].eve) - timedelta(days=1))
        replica = stage.replica(gateway_concurrency=20)
        for position, night in enumerate(cases):
            stage.clients(clients, first=1 + position * clients, timezone=night.zone, tag=night.name)
        for night in cases:
            clock.stand(_utc(night.eve))
            mailing = stage.mailing(replica, filter={"tags": [night.name]}, window=_window(night.window))
            stage.done(mailing)
            first = min(clock.shown(entry.at) for entry in _entries(stage, mailing))
            assert first >= _utc(night.opens), f"{night.name}: {first}"
        figures = judge(stage, shown=clock.shown)
        unharmed(stage, figures, clients * len(cases))
        return figures


def twice_open(clients: int = 200) -> Figures:
    """A window that an overlap opens twice shuts in the middle of a mailing: the rest is sent the second time."""
    with on_stage_with_clock(gateway={"latency": 200}) as (stage, clock):
        clock.stand(_utc("2027-10-31 00:20:00"))
        replica = stage.replica(gateway_concurrency=5)
        stage.clients(clients, timezone="Europe/Berlin")
        mailing = stage.mailing(replica, window=_window(("02:00", "02:30")))
        until(lambda: stage.numbers(mailing).get("sent", 0) > clients / 10)
        clock.stand(_utc("2027-10-31 00:29:59"))
        until(lambda: clock.now() > _utc("2027-10-31 00:30:01") and stage.gateway.state()["in_flight"] == 0)
        before = stage.numbers(mailing)
        assert 0 < before["sent"] < clients, before
        clock.stand(_utc("2027-10-31 00:59:58"))
        stage.done(mailing)
        figures = judge(stage, shown=clock.shown)
        unharmed(stage, figures, clients)
        figures.notes.append(f"{before['sent']} sent in the first hour, the rest in the second")
        return figures


def rules_change(clients: int = 100) -> Figures:
    """The rules of a zone change between planning and start: it is sent by the new ones."""
    zone, window = "Asia/Kolkata", ("15:00", "16:00")  # opened at 09:30:00 UTC, and opens now at 09:30:04
    later = timedelta(seconds=4)
    with on_stage_with_clock(gateway={"latency": 10}) as (stage, clock):
        clock.stand(_utc("2027-06-01 08:00"))
        rules = stage.folder / "zoneinfo"
        (rules / zone).parent.mkdir(parents=True)
        (rules / zone).write_bytes(_fixed_zone(5 * 3_600 + 1_800 - later.seconds))
        path = [str(rules), *zoneinfo.TZPATH]
        planner = stage.replica()
        stage.clients(clients, timezone=zone)
        mailing = stage.mailing(planner, window=_window(window))
        until(lambda: stage.numbers(mailing) == {"waiting": clients})
        due = stage.database.value("SELECT min(due_at) FROM batches")
        assert due == _utc("2027-06-01 09:30"), due
        assert planner.stop() == 0
        stage.replica(environment={"PYTHONTZPATH": os.pathsep.join(path)})
        clock.stand(due - timedelta(seconds=2))
        stage.done(mailing)
        first = min(clock.shown(entry.at) for entry in stage.gateway.entries())
        assert first >= due + later, f"sent by the old rules, at {first}"
        with _zones(path):
            figures = judge(stage, shown=clock.shown)
        assert figures.sent == clients, figures
        return figures


def _window(hours: tuple[str, str]) -> dict[str, str]:
    return {"from": hours[0], "to": hours[1]}


def _entries(stage: Stage, mailing: int) -> list[Entry]:
    ids = {row["id"] for row in stage.database.query("SELECT id FROM messages WHERE mailing_id = %s", mailing)}
    return [entry for entry in stage.gateway.entries() if entry.id in ids]


def _fixed_zone(offset: int) -> bytes:
    """A TZif file (RFC 8536, version 1) of a zone that is always ``offset`` seconds ahead of UTC."""
    counts = (0, 0, 0, 0, 1, 4)  # no leap seconds, no transitions; one type, and the four bytes of its name
    return struct.pack(">4s16x6l", b"TZif", *counts) + struct.pack(">lBB4s", offset, 0, 0, b"NEW")


@contextmanager
def _zones(path: Sequence[str]) -> Iterator[None]:
    """Let this process go by the zone data of that path."""
    before = zoneinfo.TZPATH
    zoneinfo.reset_tzpath(path)
    ZoneInfo.clear_cache()
    try:
        yield
    finally:
        zoneinfo.reset_tzpath(before)
        ZoneInfo.clear_cache()


ROWS = (
    Row(9, "database's clock steps, process clocks are off", steps),
    Row(10, "odd local hours", lambda: together([nights(), twice_open(), rules_change()])),
)
