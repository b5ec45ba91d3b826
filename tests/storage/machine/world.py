"""What all verbs share: the state of the machine, and how a verb is run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable
from datetime import datetime, timedelta
from typing import Any, TypeVar

from hypothesis.stateful import RuleBasedStateMachine
from tornado.ioloop import IOLoop

from notifier.errors import Conflict, NotFound
from notifier.models import Filter, OnUnknown, Window
from notifier.storage import mailings, queue
from notifier.storage.database import Pool
from notifier.storage.queue import Loaded
from notifier.storage.recording import Result
from tests.storage.machine.knowledge import HEIR, REPLICAS, Hand, Request, Seen
from tests.storage.machine.verbs import Effect
from tests.storage.scenes import AT

T = TypeVar("T")


class World(RuleBasedStateMachine):
    db: Pool
    loop: IOLoop
    now: datetime
    """The time of the database when the example began."""
    policy: OnUnknown

    def __init__(self) -> None:
        super().__init__()
        self.hands: list[Hand] = []
        self.late: dict[int, list[tuple[int, Result]]] = {who: [] for who in (*REPLICAS, HEIR)}  # their batch was lost
        self.gone: list[tuple[Hand, Request]] = []  # under way, their batch is lost or finished
        self.requests: list[Request] = []
        self.granted: list[tuple[Hand, Loaded]] = []  # by the present step
        self.asked_again: Counter[int] = Counter()
        self.ticks = 0
        self.used: Counter[str] = Counter()
        self.sound = False
        self.steps = 1
        self.seen = Seen({}, {}, set(), set())

    def run(self, work: Awaitable[T]) -> T:
        found: T = self.loop.run_sync(lambda: work)
        return found

    async def alone(self, doing: Awaitable[Effect | None]) -> None:
        """One verb with nothing beside it; then a watermark is granted only to what nobody wrote a row for."""
        self.sound, self.steps = False, 1
        self.take(await doing)
        if self.granted:
            for hand, _ in self.granted:
                mailing = self.seen.mailings[hand.batch.mailing_id]
                assert mailing["status"] == "running", f"a watermark while the mailing is {mailing['status']}"
                assert not mailing["ended"], "a watermark after the end"
            ids = [message.id for _, message in self.granted]
            for message in await queue.load(self.db, ids, [hand.batch.seq for hand, _ in self.granted]):
                assert not message.recorded, f"a watermark over {message.id}, whose row is there already"
            self.granted = []

    def take(self, effect: Effect | None) -> None:
        if effect is not None:
            effect()

    async def store_mailing(
        self, *, window: str | None = None, draft: bool = False, tagged: bool = False, later: bool = False, **given: Any
    ) -> None:
        values: dict[str, Any] = {"name": None, "text": "Hi", "priority": 0, "ends_at": self.now + timedelta(hours=48)}
        await mailings.create(
            self.db,
            filter=Filter(tags=["a"]) if tagged else Filter(),
            starts_at=self.now + timedelta(hours=1) if later else None,
            window=self.window(window),
            draft=draft,
            **values | given,
        )

    def window(self, name: str | None) -> Window | None:
        """Hours that are open or closed now, in the first zone."""
        if name is None:
            return None
        start, end = (-6, 6) if name == "open" else (6, 9)
        return Window(*((self.now + timedelta(hours=hours)).time() for hours in (start, end)))

    def some(self, **values: Any) -> bool:
        """Whether there is a mailing like that."""
        return any(all(m[key] == value for key, value in values.items()) for m in self.seen.mailings.values())

    def pick(self, items: list[T], number: int) -> T:
        return items[number % len(items)]

    def tick(self) -> datetime:
        """When a request is started: never the same twice."""
        self.ticks += 1
        return AT + timedelta(microseconds=self.ticks)

    async def allowed(self, doing: Awaitable[T], legal: bool) -> T | None:
        """What it returns, None when it is refused; which of the two is known unless something is done beside it."""
        try:
            found = await doing
        except (Conflict, NotFound):
            assert self.steps > 1 or not legal, "refused against the rules"
            return None
        assert self.steps > 1 or legal, "allowed against the rules"
        return found
