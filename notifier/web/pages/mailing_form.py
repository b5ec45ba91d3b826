"""The form of a mailing: a new one, a change of one, and the question who is to get what."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from notifier import windows
from notifier.errors import Conflict, Invalid, Stale
from notifier.models import OVER, Mailing, MailingStatus
from notifier.storage import audience, mailings
from notifier.web import schemas
from notifier.web.pages.base import Page
from notifier.web.pages.forms import Form, as_text, changes, read_time, several, show_time
from notifier.web.pages.progress import progress_of
from notifier.web.pages.words import title_of
from notifier.web.sentences import sentence

FIELDS = (
    "name", "text", "audience", "operator_codes", "tags",
    "starts_at", "ends_at", "window_from", "window_to", "priority",
)  # fmt: skip
# JSON pointer → field, and field → key of the body
POINTERS = {
    "filter/operator_codes": "operator_codes",
    "filter/tags": "tags",
    "filter": "audience",
    "window/from": "window_from",
    "window/to": "window_to",
    "window": "window_from",
}
KEYS = {
    "audience": "filter",
    "operator_codes": "filter",
    "tags": "filter",
    "window_from": "window",
    "window_to": "window",
}


@dataclass(frozen=True, slots=True)
class Missed:
    """Clients of one zone whose local hours begin, at ``opens_at``, only after the mailing's end."""

    zone: str
    count: int
    opens_at: datetime


def _begun(mailing: Mailing) -> bool:
    """Whether the audience and the start are settled, as far as can be told from here; storage has the last word."""
    if mailing.status is MailingStatus.PAUSED:
        return mailing.planned or mailing.audience > 0
    return mailing.status not in (MailingStatus.DRAFT, MailingStatus.SCHEDULED)


class MailingPage(Page):
    SECTION = "mailings"

    def form_of(self, mailing: Mailing) -> Form:
        """The form as the mailing fills it."""
        window = mailing.window
        return Form(
            {
                "name": mailing.name or "",
                "text": mailing.text,
                "audience": "some" if mailing.filter.as_json() else "everybody",
                "operator_codes": as_text(mailing.filter.operator_codes),
                "tags": as_text(mailing.filter.tags),
                "starts_at": show_time(mailing.starts_at, self.zone),
                "ends_at": show_time(mailing.ends_at, self.zone),
                "window_from": f"{window.start:%H:%M}" if window else "",
                "window_to": f"{window.end:%H:%M}" if window else "",
                "priority": str(mailing.priority),
            }
        )

    def read(self, form: Form) -> dict[str, Any]:
        """Return the body of the API that the form stands for, and note in the form what has no such body."""
        values = form.values
        body: dict[str, Any] = {"name": values["name"] or None, "text": values["text"], "filter": {}, "window": None}
        lists = {name: several(values[name]) for name in ("operator_codes", "tags") if values[name]}
        body["filter"] = {name: members for name, members in lists.items() if members}
        if values["audience"] == "everybody" and body["filter"]:
            form.refuse("audience", "Everybody is chosen, but operator codes or tags are given: empty them.")
        elif values["audience"] != "everybody" and not body["filter"]:
            form.refuse("audience", "Give an operator code or a tag, or choose everybody.")
        for name in ("starts_at", "ends_at"):
            if values[name]:
                try:
                    body[name] = read_time(values[name], self.zone)
                except ValueError as error:
                    form.refuse(name, str(error))
                else:
                    # Storage has the last word, by its own clock; said here it stands beside all other errors.
                    if name == "ends_at" and datetime.fromisoformat(body[name]) <= datetime.now(UTC):
                        form.refuse(name, "This lies in the past: the mailing would be over already.")
            elif name == "ends_at":
                form.refuse(name, "This is required.")
        times = {"from": values["window_from"], "to": values["window_to"]}
        if any(times.values()):
            body["window"] = {name: value for name, value in times.items() if value}
        number = values["priority"] or "0"
        body["priority"] = int(number) if number.removeprefix("-").isdecimal() and len(number) < 5 else number
        return body

    async def show_form(self, form: Form, *, mailing: Mailing | None = None, once: str = "") -> None:
        """Answer with the form, for ``mailing`` or a new one, whose key is ``once`` where it has one already."""
        fixed = mailing is not None and _begun(mailing)
        self.show(
            "mailings/form.html",
            form=form,
            mailing=mailing,
            progress=(await progress_of(self.db, [mailing])).get(mailing.id) if mailing and fixed else None,
            fixed=fixed,
            title=f"Edit {title_of(mailing)}" if mailing else "New mailing",
            once=once or secrets.token_hex(16),
        )

    async def ask(self, mailing: Mailing, title: str, form: Form | None = None, once: str = "") -> None:
        """Answer with who is to get what; ``form`` is what made a new mailing, which is stored only after this."""
        zones = await audience.by_zone(self.db, mailing.filter)
        now = await mailings.clock(self.db)
        self.show(
            "mailings/start.html",
            mailing=mailing,
            title=title,
            form=form,
            once=once,
            matching=sum(zones.values()),
            missed=self._missed(mailing, max(mailing.starts_at, now), zones),
            at_once=mailing.starts_at <= now,
        )

    def _missed(self, mailing: Mailing, start: datetime, zones: dict[str | None, int]) -> list[Missed]:
        """Return who will not be texted because no local hours begin between start and end, largest zone first."""
        if mailing.window is None:
            return []
        missed: dict[str, Missed] = {}
        for name, count in zones.items():
            zone = windows.zone(name, self.zone)
            opens_at = windows.opens_at(start, mailing.window, zone)
            if opens_at >= mailing.ends_at:
                before = missed.get(zone.key)
                missed[zone.key] = Missed(zone.key, count + (before.count if before else 0), opens_at)
        return sorted(missed.values(), key=lambda each: (-each.count, each.zone))


class NewMailing(MailingPage):
    async def get(self) -> None:
        end = (datetime.now(UTC) + timedelta(days=1)).replace(minute=0)
        values = {**dict.fromkeys(FIELDS, ""), "audience": "some", "priority": "0"}
        await self.show_form(Form({**values, "ends_at": show_time(end.replace(second=0), self.zone)}))


class EditMailing(MailingPage):
    async def get(self, mailing_id: int) -> None:
        mailing = await mailings.get(self.db, mailing_id)
        if mailing.status in OVER:
            self.go(f"/admin/mailings/{mailing_id}", "It is over: nothing can be changed any more.", wrong=True)
            return
        await self.show_form(self.form_of(mailing), mailing=mailing)

    async def post(self, mailing_id: int) -> None:
        mailing = await mailings.get(self.db, mailing_id)
        before = self.form_of(mailing)
        given = self.typed(*FIELDS)
        if _begun(mailing):  # these fields are not in the form
            given |= {name: before.values[name] for name in ("audience", "operator_codes", "tags", "starts_at")}
        form = Form(given)
        try:
            if self.version() != mailing.version:
                raise Stale
            body = changes(form, before, KEYS, self.read(form))
            loaded = form.check(schemas.MailingEditIn, POINTERS, body)
            mailing = await mailings.edit(self.db, mailing_id, loaded, if_match=mailing.version)
        except Invalid as error:
            if not form.errors:
                form.blame(error, POINTERS)
            self.set_status(422)
            await self.show_form(form, mailing=mailing)
        except Stale:
            await self._show_conflict(await mailings.get(self.db, mailing_id), form)
        except Conflict as error:
            form.refuse("", sentence(error))
            mailing = await mailings.get(self.db, mailing_id)
            self.set_status(409)
            await self.show_form(form, mailing=mailing)
        else:
            self.wake()
            what = f"“{title_of(mailing)}” is changed."
            if "text" in body and _begun(mailing):
                what += " Messages that are not sent yet get the new text."
            self.go(f"/admin/mailings/{mailing_id}", what)

    async def _show_conflict(self, mailing: Mailing, form: Form) -> None:
        newer = {name: value for name, value in self.form_of(mailing).values.items() if value != form.values[name]}
        self.set_status(412)
        form.refuse("", "Somebody changed this mailing while you did. Nothing is saved yet: see below what it says "
                        "now, and save again to put your values in its place.")  # fmt: skip
        await self.show_form(Form(form.values, form.errors, newer), mailing=mailing)
