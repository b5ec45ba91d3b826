"""Clients over HTTP."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import orjson

from notifier import models
from notifier.errors import Invalid, Problem
from notifier.storage import clients
from notifier.storage.idempotency import Answer
from notifier.web import schemas
from notifier.web.base import LARGEST_BODY
from notifier.web.handlers import Handler
from notifier.web.operations import operation
from notifier.web.problems import problem_of

ANNA = {
    "phone": "+7 916 123-45-67",
    "tags": ["vip"],
    "timezone": "Europe/Moscow",
    "attributes": {"name": "Anna"},
}
BORIS = {"phone": "8 (926) 765-43-21", "tag": "new"}
TURN = 0.005
"""Seconds in which items of a batch are checked before others get their turn."""
TOLD = 10
"""Faults told of one item: a thousand items have room for more than anybody reads."""

# Of an item that would be taken by now, after an upgrade of the service between two equal requests.
REFUSED_BEFORE = Invalid([Problem("", "was refused with this Idempotency-Key; send it with a new one")])


class Clients(Handler):
    TAG = "Clients"

    @operation("listClients", query=schemas.ClientsQuery, answer=schemas.page_of(schemas.ClientOut))
    async def get(self) -> None:
        """List clients, newest first.

        With a filter by tag a page looks at 10,000 clients at most, so it may be short, or empty, and go on.
        """
        cursor = self.params.pop("cursor")
        found, before = await clients.page(self.db, before=cursor[0] if cursor else None, **self.params)
        self.answer_page(found, None if before is None else [before])

    @operation(
        "createClient",
        body=schemas.ClientIn,
        answer=schemas.ClientOut,
        status=201,
        examples={"everything": ANNA, "only a phone": {"phone": "79031234567"}},
        personal=True,
    )
    async def post(self) -> None:
        """Add a client.

        409 when another one has the phone; its `client_id` says who. A repeated request with the same
        `Idempotency-Key` shows the client as it is now; 404 when it was erased.
        """
        self._answer_created(await clients.create(self.db, **self.body))

    def _answer_created(self, client: models.Client) -> None:
        self.answer(client, location=f"/api/v1/clients/{client.id}")

    async def answer_again(self, stored: Answer, **ids: int) -> None:
        self._answer_created(await clients.get(self.db, int(stored.headers["Location"].rpartition("/")[2])))


class Client(Handler):
    TAG = "Clients"

    @operation("getClient", answer=schemas.ClientOut, cacheable=True)
    async def get(self, client_id: int) -> None:
        """Show a client."""
        self.answer(await clients.get(self.db, client_id))

    @operation(
        "updateClient",
        body=schemas.ClientEditIn,
        answer=schemas.ClientOut,
        errors=(409, 412),
        examples={"move": {"timezone": "Asia/Vladivostok"}},
    )
    async def patch(self, client_id: int) -> None:
        """Change a client.

        A new phone brings its own operator code, unless one is given.
        """
        self.answer(await clients.edit(self.db, client_id, self.body, if_match=self.if_match))

    @operation("deleteClient", status=204, errors=(412,))
    async def delete(self, client_id: int) -> None:
        """Erase a client.

        The messages stay, without the phone and the gateway's words; what is not sent yet is not sent.
        """
        await clients.delete(self.db, client_id, if_match=self.if_match)
        self.answer()


class ClientBatch(Handler):
    TAG = "Clients"
    MAX_BODY = LARGEST_BODY

    @operation(
        "upsertClients",
        body=schemas.ClientBatchIn,
        answer=schemas.ClientBatchOut,
        examples={"two": {"items": [ANNA, BORIS]}},
        personal=True,
    )
    async def post(self) -> None:
        """Add or change up to 1,000 clients by phone.

        Good items are stored beside bad ones. What an item does not name stays as it is; of two items with one phone
        the later wins.
        """
        checked = await self._checked()
        stored = iter(await clients.upsert(self.db, [each for each in checked if not isinstance(each, Invalid)]))
        results: list[dict[str, Any]] = []
        for index, each in enumerate(checked):
            result: dict[str, Any] = {"index": index, "status": "invalid", "id": None, "problem": None}
            if not isinstance(each, Invalid):
                result["id"], created = next(stored)
                result["status"] = "created" if created else "updated"
            results.append(result)
        self.kept = orjson.dumps({"items": results})
        self._answer_results(results, checked)

    async def answer_again(self, stored: Answer, **ids: int) -> None:
        self._answer_results(orjson.loads(stored.body)["items"], await self._checked())

    async def _checked(self) -> list[dict[str, Any] | Invalid]:
        """Each item as it is to be stored, or what is wrong with it."""
        checked: list[dict[str, Any] | Invalid] = []
        turn = time.monotonic()
        for item in self.body["items"]:
            if time.monotonic() - turn > TURN:
                await asyncio.sleep(0)
                turn = time.monotonic()
            try:
                checked.append(schemas.load(schemas.ClientIn, item, told=TOLD))
            except Invalid as error:
                checked.append(error)
        return checked

    def _answer_results(self, results: list[dict[str, Any]], checked: list[dict[str, Any] | Invalid]) -> None:
        """Problems are not stored, for they quote from the items: the same item has the same."""
        for result, each in zip(results, checked, strict=True):
            if result["status"] == "invalid":
                problem = problem_of(each if isinstance(each, Invalid) else REFUSED_BEFORE)
                result["problem"] = problem | {"request_id": self.request_id}
        self.answer({"items": results})
