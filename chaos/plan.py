"""The plan of a storm: what happens and when, all of it drawn from a seed, without looking at the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random
from typing import Any, NamedTuple

REPLICAS = 3
STORM, QUIET = 33.0, 12.0
"""Seconds of a stretch of faults, and about what the stretch without takes that follows."""
LONGEST_PAUSE = 15.0


class Step(NamedTuple):
    """What to do ``at`` seconds after the beginning of its stretch: a method of `storm.Storm` and what it is given."""

    at: float
    kind: str
    given: dict[str, Any]


class Stretch(NamedTuple):
    """``seconds`` of faults; ``quiet``: after that a stretch without, in which a take-over is timed."""

    seconds: float
    steps: list[Step]
    quiet: bool


class Fault(NamedTuple):
    """A kind of step, about once ``every`` so many seconds, and how its details are drawn."""

    every: float
    kind: str
    draw: Callable[[Random], dict[str, Any]]


def _slot(rng: Random) -> int:
    return rng.randrange(REPLICAS)


def _pause(rng: Random) -> dict[str, Any]:
    seconds = rng.uniform(0.5, 3.0) if rng.random() < 0.7 else rng.uniform(8.0, LONGEST_PAUSE)
    return {"slot": _slot(rng), "seconds": round(seconds, 2)}


# Parts of statements: the record, a claim, the load, an adoption, planning, an edit, and the ends of transactions.
STATEMENTS = (
    *("WITH given AS", "WITH turn AS", "unnest($1::bigint[], $2::smallint[])", "WITH left_behind AS"),
    *("INSERT INTO messages", "INSERT INTO slices", "UPDATE mailings", "COMMIT", "COMMIT", "COMMIT"),
)

ANSWERS: tuple[dict[str, Any], ...] = (
    {"kind": "status", "status": 500},
    {"kind": "status", "status": 502, "accept": True},
    {"kind": "status", "status": 503},
    {"kind": "status", "status": 503, "headers": {"Retry-After": "1"}},
    {"kind": "status", "status": 429, "headers": {"Retry-After": "1"}},
    {"kind": "status", "status": 429},
    {"kind": "status", "status": 408},
    {"kind": "status", "status": 422},
    {"kind": "hang"},
    {"kind": "hang", "accept": True},
    {"kind": "reset"},
    {"kind": "reset", "accept": True},
    {"kind": "drip", "every": 200},
    {"kind": "body", "text": "<html>It works!</html>"},
    {"kind": "body", "text": '{"code": "0"}', "accept": True},
    {"kind": "code", "code": 7, "message": "not now"},
    {"kind": "wrong_length"},
    {"kind": "chunked_broken"},
    {"kind": "huge", "bytes": 1_000_000},
    {"kind": "delay", "ms": 800},
)
REFUSALS = ({"kind": "status", "status": 401}, {"kind": "status", "status": 404})


def _script(rng: Random) -> dict[str, Any]:
    rules = []
    if rng.random() < 0.5:
        for answer in rng.sample(ANSWERS, rng.randrange(1, 4)):
            rules.append({"share": rng.choice((0.02, 0.02, 0.1, 0.1, 0.1, 0.3, 1.0)), "do": answer})
    elif rng.random() < 0.15:
        rules.append({"share": 0.1, "times": 5, "do": rng.choice(REFUSALS)})
    return {"rules": rules, "latency": rng.choice((0, 20, 50, 200)), "jitter": rng.choice((0, 30, 100))}


VERBS = {"pause": 4, "resume": 5, "cancel": 0.5, "delete": 0.5, "text": 5, "window": 2, "ends_at": 1, "priority": 2}


def _hours(rng: Random) -> list[int] | None:
    """From and to in minutes from now: some open or close while the storm lasts."""
    start = rng.choice((-120, -2, -1, 1))
    return None if rng.random() < 0.5 else [start, start + rng.choice((2, 3, 240))]


def _edit(rng: Random) -> dict[str, Any]:
    editors = []
    for _ in range(2):
        verb = rng.choices(list(VERBS), list(VERBS.values()))[0]
        value = {"window": _hours(rng), "priority": rng.randrange(-5, 11), "text": rng.randrange(10**12)}.get(verb)
        editors.append([_slot(rng), verb, value])
    return {"pick": rng.random(), "editors": editors}


def _mailing(rng: Random) -> dict[str, Any]:
    what, seconds = rng.choice(("urgent", "steady", "windowed", "ending", "later")), rng.uniform(4, 12)
    return {"what": what, "hours": _hours(rng), "priority": rng.randrange(-5, 6), "seconds": seconds} | _call(rng)


def _call(rng: Random) -> dict[str, Any]:
    return {"slot": _slot(rng), "salt": rng.randrange(10**8)}


def _resolve(rng: Random) -> dict[str, Any]:
    decisions = [rng.choice(("sent", "failed", "again")) for _ in range(2)]
    return {"slots": [_slot(rng), _slot(rng)], "salt": rng.randrange(10**8), "decisions": decisions}


def _lose(rng: Random) -> dict[str, Any]:
    times, reaches = rng.choice((1, 1, 3)), rng.random() < 0.7
    return {"slot": _slot(rng), "match": rng.choice(STATEMENTS), "times": times, "reaches": reaches}


FAULTS = (
    Fault(6.5, "kill", lambda rng: {"slots": [_slot(rng)]}),
    Fault(20.0, "kill", lambda rng: {"slots": rng.sample(range(REPLICAS), 2)}),
    Fault(11.0, "pause", _pause),
    Fault(11.0, "replace", lambda rng: {"slot": _slot(rng)}),
    Fault(15.0, "restart", lambda rng: {"mode": rng.choice(("fast", "immediate"))}),
    Fault(11.0, "terminate", lambda rng: {"count": rng.randrange(1, 6), "salt": rng.randrange(10**8)}),
    Fault(11.0, "cut", lambda rng: {"slot": _slot(rng), "refuse": rng.choice((0, 0, 0.5, 3.0))}),
    Fault(11.0, "stall", lambda rng: {"slot": _slot(rng), "seconds": rng.choice((0.3, 1.0, 1.5, 3.0, 7.0))}),
    Fault(16.0, "slow", lambda rng: {"slot": _slot(rng), "delay": rng.choice((0.02, 0.1)), "seconds": 4.0}),
    Fault(4.0, "lose", _lose),
    Fault(4.0, "gateway", _script),
    Fault(16.0, "gateway_dead", lambda rng: {"seconds": rng.uniform(0.5, 3.0)}),
    Fault(1.5, "edit", _edit),
    Fault(5.0, "mailing", _mailing),
    Fault(2.0, "feed", _call),
    Fault(8.0, "clients", lambda rng: {"erase": rng.randrange(6), "add": rng.randrange(9)} | _call(rng)),
    Fault(4.0, "resolve", _resolve),
    Fault(10.0, "rate", lambda rng: {"rate": rng.choice((None, None, 50, 200, 500)), "slot": _slot(rng)}),
    Fault(20.0, "gateway_state", lambda rng: {"verb": "pause", "slot": _slot(rng)}),
    Fault(4.0, "gateway_state", lambda rng: {"verb": "resume", "slot": _slot(rng)}),
)


def plan(seed: int, seconds: float) -> list[Stretch]:
    """What will be done: as many stretches as fit, at least one, each with the faults that its time asks for."""
    rng = Random(seed)
    rounds = int(seconds // (STORM + QUIET))
    lengths = [(STORM, True)] * rounds or [(seconds, False)]
    return [Stretch(length, sorted(_steps(rng, length), key=lambda step: step.at), quiet) for length, quiet in lengths]


def _steps(rng: Random, length: float) -> Iterator[Step]:
    for fault in FAULTS:
        for _ in range(max(1, round(length / fault.every))):
            yield Step(round(rng.uniform(0, length), 3), fault.kind, fault.draw(rng))
