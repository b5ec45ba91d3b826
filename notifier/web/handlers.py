"""The handler of the JSON API.

A handler's verb is a function with an `operation`, which says what comes in and what goes out; the same words check
the request, shape the answer and become the OpenAPI document. By the time the verb runs, the token is known to
suffice, ``self.params`` holds the checked query, ``self.body`` the checked body, and ids in the path are integers.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import orjson
from marshmallow import Schema

from notifier.web import schemas
from notifier.web.auth import PUBLIC, digest_of
from notifier.web.base import path_value
from notifier.web.conditional import asked_version, is_known
from notifier.web.operations import operation_of
from notifier.web.problems import Encoded, Forbidden, Unauthorized
from notifier.web.repeats import Repeatable
from notifier.web.showing import show

LARGE = 64 * 1024
"""Bytes of JSON from which on a thread parses it, so that the loop goes on (8 MB take 0.2 s)."""


class Handler(Repeatable):
    """A handler of the JSON API; ``params`` is the checked query, ``body`` the checked body."""

    params: dict[str, Any]
    body: dict[str, Any]

    async def prepare(self) -> None:
        super().prepare()
        await self.authorize()
        if self.request.body and self.request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise Encoded
        self.path_kwargs = {name: path_value(name, text) for name, text in self.path_kwargs.items()}
        self.operation = operation_of(getattr(self, self.verb.lower()))
        if self.operation is not None:
            self.params = self.read_query(self.operation.query)
            self.body = await self._read_body(self.operation.body)

    async def authorize(self) -> None:
        """Raise unless the token has the scope."""
        scope = self.access[self.verb]
        if scope == PUBLIC:
            return
        kind, _, token = self.request.headers.get("Authorization", "").partition(" ")
        if kind.lower() != "bearer" or not token.strip():
            raise Unauthorized
        self.caller = await self.context.tokens(digest_of(token.strip()))
        if self.caller is None:
            self.count_failure("token refused")
            raise Unauthorized("The token is not known.")
        if scope not in self.caller.scopes:
            self.note("scope refused", token=self.caller.name, scope=scope)
            raise Forbidden(f"The token lacks the scope {scope}.")

    async def _read_body(self, schema: type[Schema] | None) -> dict[str, Any]:
        body = self.request.body
        if schema is None and (not body or self.verb in ("GET", "DELETE")):
            return {}
        if len(body) < LARGE:
            value = schemas.parse(body)
        else:
            async with self.context.large_bodies.turn(len(body)):
                value = await asyncio.to_thread(schemas.parse, body)
        return schemas.load(schema or schemas.NoBody, value)

    @property
    def if_match(self) -> int | None:
        """The version that ``If-Match`` asks for; see `conditional.asked_version`."""
        return asked_version(self.request.headers)

    def answer(self, value: Any = None, *, location: str | None = None) -> None:
        """Answer with ``value`` as the operation's schema shows it, its ``version`` as the ETag, and its status.

        ``location`` is a path of ours.
        """
        assert self.operation is not None
        self.set_status(self.operation.status)
        if location is not None:
            self.set_header("Location", self.context.public.prefix + location)
        version = getattr(value, "version", None)
        if version is not None:
            self.set_header("ETag", f'"{version}"')
            if self.operation.cacheable and is_known(self.request.headers, version):
                self.set_status(304)
                self.set_header("Vary", "Accept-Encoding")  # as the whole answer has it
                return
        if self.operation.answer is not None:
            self.set_header("Content-Type", "application/json")
            self.write(orjson.dumps(show(self.operation.answer, value)))

    def answer_page(self, items: list[Any], next_cursor: Sequence[int] | None) -> None:
        """Answer with a page of a list; ``next_cursor`` holds the integers where the next one begins."""
        self.answer({"items": items, "next_cursor": self.next_cursor(next_cursor, self.params)})
