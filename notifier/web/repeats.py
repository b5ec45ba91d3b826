"""Repeated requests: a ``post`` with an ``Idempotency-Key`` is done once, and answered again as before."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from functools import wraps
from typing import Any, TypeVar

from notifier.errors import NotifierError
from notifier.storage import idempotency
from notifier.storage.database import Connection, transaction
from notifier.web.base import Base
from notifier.web.problems import BadRequest, problem_of

Verb = TypeVar("Verb", bound=Callable[..., Awaitable[None]])


class Repeatable(Base):
    """A handler whose ``post`` can be repeated."""

    kept = b""
    """What a personal `operation` has stored of its answer's body."""

    async def answer_again(self, stored: idempotency.Answer, **ids: int) -> None:
        """Answer a repeated ``post`` that is personal from what there is now and was stored of the first answer."""
        raise NotImplementedError

    def _as_stored(self, personal: bool) -> idempotency.Answer:
        names = ("Content-Type", "Location", "ETag")
        headers = {name: self._headers[name] for name in names if name in self._headers}
        is_personal = personal and self.get_status() < 400
        body = self.kept if is_personal else b"".join(self._write_buffer)
        return idempotency.Answer(self.get_status(), headers, body)

    async def _replay(self, stored: idempotency.Answer, personal: bool, **ids: int) -> None:
        self.set_header("Idempotency-Replayed", "true")
        if personal and stored.status < 400:
            await self.answer_again(stored, **ids)
            return
        self.set_status(stored.status)
        for name, value in stored.headers.items():
            self.set_header(name, value)
        if stored.body:
            self.write(stored.body)


def idempotent(verb: Verb, *, personal: bool) -> Verb:
    """Answer a repeated request as the first one was answered: for 24 h, per token and path.

    Not stored are answers after which nothing stands: 400, 422 (so that the corrected body may use the same key) and
    from 500 on. ``personal`` as for `operation`.
    """

    @wraps(verb)
    async def once(self: Repeatable, **kwargs: Any) -> None:
        text = self.request.headers.get("Idempotency-Key")
        if text is None:
            return await verb(self, **kwargs)
        if not re.fullmatch(r"[\x21-\x7e]{1,255}", text):
            raise BadRequest("Idempotency-Key: 1 to 255 visible ASCII characters, please")
        key, body = self.once_key(text)

        async def make(connection: Connection) -> idempotency.Answer:
            try:
                async with transaction(connection) as inner:
                    self.db = inner
                    await verb(self, **kwargs)
            except NotifierError as error:
                problem = problem_of(error)
                if problem["status"] in (400, 422) or problem["status"] >= 500:
                    raise
                self.write_problem(problem)
            return self._as_stored(personal)

        stored, replayed = await idempotency.once(self.context.db, key, body, make)
        if replayed:
            await self._replay(stored, personal, **kwargs)

    return once  # type: ignore[return-value]
