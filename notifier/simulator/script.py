"""The script: which request gets which answer.

A script is a JSON object; a key left out takes the value of the command line, and no ``rules`` means none::

    {"rules": [rule, …], "latency": ms, "jitter": ms, "fail": 0..1, "rate": requests a second, 0 = no limit}

A rule is ``{"match": {…}, "times": n or null, "share": 0..1, "do": {"kind": …}}``; the first that matches
wins. ``match`` may name ``id``, ``phone``, ``text_contains`` and ``attempt`` (1 = the first request with that
id); ``times`` is how often the rule applies (null = always), ``share`` how probably.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace
from typing import Any

from notifier.simulator.answers import Answer
from notifier.simulator.kinds import KINDS, nothing_left, number, take
from notifier.simulator.request import Send


@dataclass(slots=True)
class Rule:
    """Which requests get which answer, and how often that happened (``used``)."""

    given: dict[str, Any]
    answer: Answer
    before_body: bool
    id: int | None
    phone: int | None
    text_contains: str | None
    attempt: int | None
    times: int | None
    share: float
    used: int = 0

    @classmethod
    def parse(cls, raw: Any) -> Rule:
        """Return the rule that a JSON object describes; raises ValueError."""
        if not isinstance(raw, dict):
            raise ValueError("a rule is an object")
        given = dict(raw)
        match, do = dict(take(given, "match", dict, {})), dict(take(given, "do", dict, {}))
        kind = take(do, "kind", str, None)
        if kind not in KINDS:
            raise ValueError(f"do.kind: must be one of {', '.join(KINDS)}, not {kind!r}")
        accept = take(do, "accept", bool, False)
        answer = KINDS[kind](do)
        nothing_left(do)
        rule = cls(
            given=raw,
            answer=replace(answer, status=200, code=0) if accept else answer,
            before_body=kind == "close",
            id=take(match, "id", int, None),
            phone=take(match, "phone", int, None),
            text_contains=take(match, "text_contains", str, None),
            attempt=take(match, "attempt", int, None),
            times=take(given, "times", int, None),
            share=number(given, "share", 1, 1),
        )
        nothing_left(match)
        nothing_left(given)
        if rule.before_body and (rule.phone is not None or rule.text_contains is not None):
            raise ValueError("close acts before the body is read: it can match id and attempt only")
        return rule

    def applies(self, send: Send, luck: random.Random) -> bool:
        """Whether this request gets the rule's answer; counts it if so."""
        if (
            (self.times is not None and self.used >= self.times)
            or (self.id is not None and self.id != send.id)
            or (self.phone is not None and self.phone != send.phone)
            or (self.attempt is not None and self.attempt != send.attempt)
            or (self.text_contains is not None and self.text_contains not in (send.text or ""))
            or (self.share < 1 and luck.random() >= self.share)
        ):
            return False
        self.used += 1
        return True


@dataclass(slots=True)
class Script:
    """How the gateway behaves; ``latency`` and ``jitter`` (added evenly from 0 to it) in milliseconds."""

    rules: list[Rule] = field(default_factory=list)
    latency: float = 0
    jitter: float = 0
    fail: float = 0
    rate: int = 0

    @classmethod
    def parse(cls, raw: Any, default: Script) -> Script:
        """Return the script of a JSON object, numbers left out as in ``default``; raises ValueError."""
        if not isinstance(raw, dict):
            raise ValueError("a script is an object")
        given = dict(raw)
        script = cls(
            rules=[Rule.parse(rule) for rule in take(given, "rules", list, [])],
            latency=number(given, "latency", default.latency),
            jitter=number(given, "jitter", default.jitter),
            fail=number(given, "fail", default.fail, 1),
            rate=int(number(given, "rate", default.rate, 10**6)),
        )
        nothing_left(given)
        return script
