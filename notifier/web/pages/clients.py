"""The pages of clients."""

from __future__ import annotations

import json
import secrets
from typing import Any

from markupsafe import Markup

from notifier.errors import Invalid, PhoneTaken, Stale
from notifier.models import Client
from notifier.storage import clients, mailings, messages
from notifier.storage.database import Connection
from notifier.web import schemas
from notifier.web.pages import words
from notifier.web.pages.base import Page
from notifier.web.pages.forms import Form, as_text, changes, several

PAGE, MESSAGES = 50, 25
FIELDS = ("phone", "operator_code", "tags", "timezone", "attributes")
SEARCH = ("phone", "operator_code", "tag")


def _line(key: str, value: Any) -> str | None:
    """An attribute as a line of the form; None where no line can say it."""
    plain = isinstance(value, str) and "\n" not in f"{key}{value}" and "\r" not in f"{key}{value}"
    if not plain or ":" in key or key != key.strip() or value != value.strip() or not key:
        return None
    return f"{key}: {value}"


def attribute_lines(attributes: dict[str, Any]) -> str:
    """Those attributes that are plain text, a line each."""
    lines = (_line(key, value) for key, value in attributes.items())
    return "\n".join(line for line in lines if line is not None)


def kept(attributes: dict[str, Any]) -> dict[str, Any]:
    """Those that a form cannot show: they stay as they are."""
    return {key: value for key, value in attributes.items() if _line(key, value) is None}


class ClientPage(Page):
    SECTION = "clients"

    def form_of(self, client: Client) -> Form:
        """The form as the client fills it."""
        return Form(
            {
                "phone": words.phone(client.phone),
                "operator_code": client.operator_code,
                "tags": as_text(client.tags),
                "timezone": client.timezone or "",
                "attributes": attribute_lines(client.attributes),
            }
        )

    def read(self, form: Form, client: Client | None = None) -> dict[str, Any]:
        """Return the body of the API that the form stands for, and note in the form what has no such body."""
        values = form.values
        attributes = kept(client.attributes) if client else {}
        for line in filter(None, map(str.strip, values["attributes"].split("\n"))):
            key, colon, value = line.partition(":")
            if not colon or not key.strip():
                form.refuse("attributes", f"“{line[:40]}” has no colon: write a name, a colon and a value.")
            elif key.strip() in attributes:
                form.refuse("attributes", f"“{key.strip()[:40]}” is there already.")
            attributes[key.strip()] = value.strip()
        body = {
            "phone": values["phone"],
            "tags": several(values["tags"]),
            "timezone": values["timezone"] or None,
            "attributes": attributes,
        }
        return body | ({"operator_code": values["operator_code"]} if values["operator_code"] else {})

    def refuse_phone(self, form: Form, error: PhoneTaken) -> None:
        """Say who has the phone."""
        link = Markup('Another client has this phone: <a href="{}/admin/clients/{}">client {}</a>.')
        form.refuse("phone", link.format(self.context.public.prefix, error.client_id, error.client_id))

    async def show_form(self, form: Form, status: int = 200) -> None:
        """Answer with the form of a new client."""
        self.set_status(status)
        zones = await clients.zones(self.db)
        self.show("clients/new.html", form=form, zones=zones, once=secrets.token_hex(16))


class Clients(ClientPage):
    async def get(self) -> None:
        given = {name: self.get_query_argument(name, "") for name in SEARCH}
        form = Form(given)
        found: list[Client] = []
        following = None
        # Empty fields of the search are none.
        arguments = {name: values for name, values in self.request.query_arguments.items() if any(values)}
        try:
            query = self.read_query(schemas.ClientsQuery, arguments)
        except Invalid as error:
            form.blame(error, {})
            self.set_status(422)
        else:
            cursor = query.pop("cursor")
            found, before = await clients.page(
                self.db, before=cursor[0] if cursor else None, **{**query, "limit": PAGE}
            )
            following = self.next_cursor(None if before is None else [before], query)
        words_given = {name: value or None for name, value in given.items()}
        self.show(
            "clients/list.html",
            form=form,
            clients=found,
            searched=any(given.values()),
            first="cursor" not in arguments,
            here=self.link(**words_given),
            older=self.link(**words_given, cursor=following) if following else None,
        )

    async def post(self) -> None:
        form = Form(self.typed(*FIELDS))

        async def create(connection: Connection) -> str:
            client = await clients.create(connection, **form.check(schemas.ClientIn, {}, self.read(form)))
            return f"/admin/clients/{client.id}"

        try:
            path = await self.once(create)
        except Invalid as error:
            if not form.errors:
                form.blame(error, {})
            await self.show_form(form, 422)
        except PhoneTaken as error:
            self.refuse_phone(form, error)
            await self.show_form(form, 409)
        else:
            self.go(path, "The client is added.")


class NewClient(ClientPage):
    async def get(self) -> None:
        await self.show_form(Form(dict.fromkeys(FIELDS, "")))


class OneClient(ClientPage):
    async def get(self, client_id: int) -> None:
        client = await clients.get(self.db, client_id)
        await self._show(client, self.form_of(client))

    async def post(self, client_id: int) -> None:
        client = await clients.get(self.db, client_id)
        form = Form(self.typed(*FIELDS))
        try:
            if self.version() != client.version:
                raise Stale
            given = self.read(form, client)
            body = changes(form, self.form_of(client), {}, given)
            if not form.values["operator_code"]:  # a phone brings its own
                body["phone"] = given["phone"]
            loaded = form.check(schemas.ClientEditIn, {}, body)
            client = await clients.edit(self.db, client_id, loaded, if_match=client.version)
        except Invalid as error:
            if not form.errors:
                form.blame(error, {})
            await self._show(client, form, 422)
        except PhoneTaken as error:
            self.refuse_phone(form, error)
            await self._show(client, form, 409)
        except Stale:
            client = await clients.get(self.db, client_id)
            newer = {name: value for name, value in self.form_of(client).values.items() if value != form.values[name]}
            form.refuse("", "Somebody changed this client while you did. Nothing is saved yet: see below what it says "
                            "now, and save again to put your values in its place.")  # fmt: skip
            await self._show(client, Form(form.values, form.errors, newer), 412)
        else:
            self.go(f"/admin/clients/{client_id}", "The client is changed.")

    async def _show(self, client: Client, form: Form, status: int = 200) -> None:
        arguments = {"cursor": self.request.query_arguments["cursor"]} if self.get_query_argument("cursor", "") else {}
        query = self.read_query(schemas.PageQuery, arguments)
        found, following = await messages.of_client(self.db, client.id, query["cursor"], MESSAGES)
        self.set_status(status)
        self.show(
            "clients/show.html",
            client=client,
            form=form,
            kept=json.dumps(kept(client.attributes), ensure_ascii=False) if kept(client.attributes) else "",
            zones=await clients.zones(self.db),
            messages=found,
            names=await mailings.names(self.db, [message.mailing_id for message in found]),
            here=self.link(),
            first=query["cursor"] is None,
            older=self.link(cursor=self.next_cursor(following, query)) if following else None,
        )


class DeleteClient(ClientPage):
    async def get(self, client_id: int) -> None:
        self.show("clients/confirm.html", client=await clients.get(self.db, client_id))

    async def post(self, client_id: int) -> None:
        await clients.delete(self.db, client_id)
        self.go("/admin/clients", "The client is deleted.")
