"""What the simulated gateway remembers, and how it decides about a request.

The order for a request: 401, 400, rules, ``rate`` (429), a repeated id (the same success again), ``fail``
(500), success.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson

from notifier.simulator.answers import FAILED, OK, TOO_MANY, UNAUTHORIZED, Answer, json_answer
from notifier.simulator.ledger import read_ledger
from notifier.simulator.request import INT64, SEND, Send, read_body
from notifier.simulator.script import Script


class Gateway:
    """What the gateway knows: accepted ids, the script, the ledger, counts."""

    def __init__(
        self, script: Script, *, token: str | None = None, seed: int | None = None, ledger: Path | None = None
    ) -> None:
        """Continue ``ledger`` if it exists; raises OSError, and ValueError when it is none."""
        self.original = script
        self.token = token
        self.luck = random.Random(seed)
        self.accepted: set[int] = set()
        self.attempts: dict[int, int] = {}
        self.requests = self.accepted_now = self.repeated = self.in_flight = self.max_in_flight = 0
        self.transports: set[asyncio.Transport] = set()
        self.failure: OSError | None = None
        self.stop = asyncio.Event()
        self._lines: list[bytes] = []
        self._answers: list[tuple[Callable[[Answer], None], Answer]] = []
        self._ledger = None if ledger is None else self._continue(ledger)
        self.behave(script)

    def behave(self, script: Script) -> None:
        """Follow another script from the next request on; its rules count anew."""
        for rule in script.rules:
            rule.used = 0
        self.script = script
        self._recent: deque[float] = deque(maxlen=script.rate)

    def state(self) -> dict[str, Any]:
        """Return the script with the use of each rule, and the counts since the start."""
        script = self.script
        return {
            "simulation": True,
            "rules": [{**rule.given, "used": rule.used} for rule in script.rules],
            **{name: getattr(script, name) for name in ("latency", "jitter", "fail", "rate")},
            "requests": self.requests,
            "accepted": self.accepted_now,
            "repeated": self.repeated,
            "in_flight": self.in_flight,
            "max_in_flight": self.max_in_flight,
        }

    def arrived(self, target: str, headers: dict[bytes, bytes]) -> Send:
        """Return the request as far as its head tells, counted as an attempt of its id."""
        scheme, _, token = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        authorized = scheme.lower() == "bearer" and bool(token) and self.token in (None, token)
        number = target[len(SEND) :].partition("?")[0]
        id = int(number) if number.isascii() and number.isdecimal() and len(number) < 20 else None
        if id is None or id not in INT64:
            return Send(None, 1, authorized, datetime.now(UTC))
        attempt = self.attempts[id] = self.attempts.get(id, 0) + 1
        return Send(id, attempt, authorized, datetime.now(UTC))

    def early(self, send: Send) -> Answer | None:
        """Return the answer that does not wait for the body, if a rule asks for one."""
        for rule in self.script.rules:
            if rule.before_body and rule.applies(send, self.luck):
                return rule.answer
        return None

    def decide(self, send: Send, headers: dict[bytes, bytes], body: bytes) -> Answer:
        """Return the answer to a whole request, in the order that the module's docstring gives."""
        problem = read_body(send, headers, body)
        if not send.authorized:
            return UNAUTHORIZED
        if problem is not None:
            return json_answer(400, {"error": problem})
        for rule in self.script.rules:
            if not rule.before_body and rule.applies(send, self.luck):
                return rule.answer
        if self.script.rate and self._too_many():
            return TOO_MANY
        if send.id in self.accepted:
            return OK
        if self.script.fail and self.luck.random() < self.script.fail:
            return FAILED
        return OK

    def _too_many(self) -> bool:
        now = time.monotonic()
        if len(self._recent) == self.script.rate and now - self._recent[0] < 1:
            return True
        self._recent.append(now)
        return False

    def settle(self, play: Callable[[Answer], None], send: Send, answer: Answer) -> None:
        """Enter the request into the ledger; once it is written, ``play`` is called with the answer."""
        repeat = send.id in self.accepted
        self.requests += 1
        self.repeated += repeat
        if send.id is not None and answer.status == 200 and answer.code == 0 and not repeat:
            self.accepted.add(send.id)
            self.accepted_now += 1
        if self._ledger is not None:
            line = {
                "at": send.at.isoformat(timespec="microseconds")[:26] + "Z",
                "id": send.id,
                "phone": send.phone,
                "text": send.text,
                "authorized": send.authorized,
                "repeat": repeat,
                "status": answer.status,
                "code": answer.code,
            }
            self._lines.append(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        if not self._answers:
            asyncio.get_running_loop().call_soon(self._flush)
        self._answers.append((play, answer))

    def _flush(self) -> None:
        lines, self._lines = b"".join(self._lines), []
        answers, self._answers = self._answers, []
        if self._ledger is not None:
            try:
                while lines:
                    lines = lines[os.write(self._ledger, lines) :]
            except OSError as error:
                # Nothing may be answered that is not written down.
                self.failure = error
                self.stop.set()
                return
        loop = asyncio.get_running_loop()
        for play, answer in answers:
            delay = answer.delay + (self.script.latency + self.script.jitter * self.luck.random()) / 1000
            if delay:
                loop.call_later(delay, play, answer)
            else:
                play(answer)

    def _continue(self, path: Path) -> int:
        ledger = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)  # it has phones in it
        if path.is_file():  # a device or a pipe remembers nothing
            for entry in read_ledger(path):
                if entry.id is not None:
                    self.attempts[entry.id] = self.attempts.get(entry.id, 0) + 1
                    if entry.accepted:
                        self.accepted.add(entry.id)
            os.ftruncate(ledger, path.read_bytes().rfind(b"\n") + 1)
        return ledger
