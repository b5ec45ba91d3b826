"""The page of a gateway."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from notifier.errors import Invalid, NotFound, Stale
from notifier.storage import gateways
from notifier.web import schemas
from notifier.web.gateways import shown
from notifier.web.pages.base import Page
from notifier.web.pages.forms import Form

FIELDS = ("concurrency", "rate")
DONE = {"pause": "The gateway is paused: nothing is sent.", "resume": "The gateway is resumed."}


class GatewayPage(Page):
    SECTION = "gateways"

    def form_of(self, gateway: gateways.Gateway) -> Form:
        """The form as the gateway's row fills it; empty is what the settings say."""
        rate = "" if gateway.rate is None else f"{gateway.rate:g}"
        return Form({"concurrency": str(gateway.concurrency or ""), "rate": rate})

    def show_gateway(self, gateway: gateways.Gateway, form: Form) -> None:
        """Answer with the page."""
        self.show(
            "gateways/live.html" if self.is_live else "gateways/show.html",
            gateway=shown(gateway, self.context.gateway),
            defaults=self.context.gateway,
            errors=[
                each | {name: datetime.fromisoformat(each[name]) for name in ("first_at", "at")}
                for each in gateway.last_errors
            ],
            waits=gateway.paused_until is not None and gateway.paused_until > gateway.now,
            form=form,
            here=self.link(),
        )


class OneGateway(GatewayPage):
    async def get(self, name: str) -> None:
        gateway = await gateways.get(self.db, name)
        self.show_gateway(gateway, self.form_of(gateway))

    async def post(self, name: str) -> None:
        gateway = await gateways.get(self.db, name)
        form = Form(self.typed(*FIELDS))
        body = {key: _number(form.values[key]) for key in FIELDS}
        try:
            loaded = schemas.load(schemas.GatewayEditIn, body)
            await gateways.edit(self.db, name, loaded, if_match=self.version())
        except Invalid as error:
            form.blame(error, {})
            self.set_status(422)
            self.show_gateway(gateway, form)
        except Stale:
            gateway = await gateways.get(self.db, name)
            now = self.form_of(gateway).values
            newer = {key: value or "as the settings say" for key, value in now.items() if value != form.values[key]}
            form.refuse("", "Somebody changed this gateway while you did. Nothing is saved yet: save again to put your "
                            "values in its place.")  # fmt: skip
            self.set_status(412)
            self.show_gateway(gateway, Form(form.values, form.errors, newer))
        else:
            self.wake()
            self.go(f"/admin/gateways/{name}", "The limits are changed; they are in force at once.")


def _number(text: str) -> Any:
    """The number that was typed; what is none goes on as text, for the schema to refuse; empty is null."""
    if not text:
        return None
    try:
        return int(text) if text.isdecimal() and len(text) < 18 else float(text.replace(",", "."))
    except ValueError:
        return text


class GatewayAction(GatewayPage):
    async def post(self, name: str, verb: str) -> None:
        if verb not in DONE:
            raise NotFound
        await (gateways.pause if verb == "pause" else gateways.resume)(self.db, name)
        self.wake()
        self.go(f"/admin/gateways/{name}", DONE[verb])
