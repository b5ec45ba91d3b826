"""The pages of mailings."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from notifier import windows
from notifier.errors import Conflict, Invalid, NotFound, Stale
from notifier.models import MAILING_TRANSITIONS, OVER, Mailing, MailingStatus, Status, StatusReason
from notifier.storage import audience, mailings, messages, queue, statistics
from notifier.storage.database import Connection, Db
from notifier.web import schemas
from notifier.web.mailings import shown
from notifier.web.pages import words
from notifier.web.pages.base import Form, Page, Progress, as_text, changes, read_time, several, show_time

PAGE, MESSAGES = 20, 25
LIVE = (MailingStatus.SCHEDULED, MailingStatus.RUNNING, MailingStatus.PAUSED)
TROUBLES = {"failed": Status.FAILED, "unknown": Status.UNKNOWN}
"""What the list can be narrowed to beside a status."""
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
DONE = {
    "start": "“{}” was started.",
    "pause": "“{}” is paused. What is under way is finished; nothing new goes out.",
    "resume": "“{}” goes on.",
    "cancel": "“{}” is cancelled. What was not sent stays unsent.",
    "archive": "“{}” is archived: it is in no list but that of the archived ones.",
    "unarchive": "“{}” is back in the lists.",
}


@dataclass(frozen=True, slots=True)
class Missed:
    """Clients of one zone whose local hours begin, at ``opens_at``, only after the mailing's end."""

    zone: str
    count: int
    opens_at: datetime


def title_of(mailing: Mailing | statistics.Line) -> str:
    """The name, or a number where there is none."""
    return mailing.name or f"Mailing {mailing.id}"


async def progress_of(db: Db, found: Sequence[Mailing]) -> dict[int, Progress]:
    """How far each of these mailings has come; those deleted meanwhile are left out."""
    lines = await statistics.of_mailings(db, None, len(found), ids=[mailing.id for mailing in found])
    return {line.id: Progress(line.audience, line.messages) for line in lines}


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


class Mailings(MailingPage):
    async def get(self) -> None:
        arguments = dict(self.request.query_arguments)
        trouble = TROUBLES.get(self.get_query_argument("with", ""))
        arguments.pop("with", None)
        query = self.read_query(schemas.MailingsQuery, arguments)
        status = query["status"] and MailingStatus(query["status"])
        before = query["cursor"][0] if query["cursor"] else None
        archived = query["archived"]
        if trouble is None:
            found = await mailings.page(self.db, status=status, before=before, limit=PAGE + 1, archived=archived)
        else:
            found = await mailings.troubled(self.db, trouble, before=before, limit=PAGE + 1)
        page = await shown(self.db, self.context, found[:PAGE])
        here = {
            "status": query["status"],
            "with": trouble,
            "archived": "true" if archived else None,
            "cursor": self.get_query_argument("cursor", None),
        }
        self.show(
            "mailings/live_list.html" if self.is_live else "mailings/list.html",
            mailings=page,
            progress=await progress_of(self.db, page),
            status=status,
            trouble=trouble,
            statuses=list(MailingStatus),
            archived=archived,
            deleted=False,
            live_now=any(mailing.status in LIVE for mailing in page),
            here=self.link(**here),
            first=before is None,
            newest=self.link(**{**here, "cursor": None}),
            older=self.link(**{**here, "cursor": self.next_cursor([page[-1].id], query)})
            if len(found) > PAGE
            else None,
        )

    async def post(self) -> None:
        form = Form(self.typed(*FIELDS))
        once = self.get_body_argument("once", "")
        draft, sure, back = (bool(self.get_body_argument(button, "")) for button in ("draft", "sure", "back"))
        if back:
            await self.show_form(form, once=once)
            return

        async def create(connection: Connection) -> Mailing:
            body = self.read(form)
            return await mailings.create(
                connection, **form.check(schemas.MailingIn, POINTERS, {**body, "draft": draft})
            )

        async def create_path(connection: Connection) -> str:
            return f"/admin/mailings/{(await create(connection)).id}"

        try:
            if not draft and not sure:
                await self.ask(await self._tried(create), form.values["name"], form, once)
                return
            path = await self.once(create_path)
        except Invalid as error:
            if not form.errors:
                form.blame(error, POINTERS)
            self.set_status(422)
            await self.show_form(form)
            return
        self.wake()
        name = f"“{form.values['name'][:80]}”" if form.values["name"] else "The mailing"
        ahead = "is kept as a draft" if draft else "starts by itself" if form.values["starts_at"] else "was started"
        self.go(path, f"{name} {ahead}.")

    async def _tried(self, create: Callable[[Connection], Awaitable[Mailing]]) -> Mailing:
        """Return what would be made, taken back at once: so all that storage checks is checked before anybody asks."""
        async with self.context.db.acquire() as connection:
            attempt = connection.transaction()
            await attempt.start()
            try:
                return await create(connection)
            finally:
                await attempt.rollback()


class DeletedMailings(MailingPage):
    """Those that can be restored, for whoever has closed the page that follows the deletion."""

    async def get(self) -> None:
        query = self.read_query(schemas.PageQuery, dict(self.request.query_arguments))
        before = query["cursor"][0] if query["cursor"] else None
        found = await mailings.deleted(self.db, before=before, limit=PAGE + 1)
        page = found[:PAGE]
        self.show(
            "mailings/deleted.html",
            mailings=page,
            statuses=list(MailingStatus),
            deleted=True,
            status=None,
            trouble=None,
            archived=False,
            first=before is None,
            newest=self.link(),
            older=self.link(cursor=self.next_cursor([page[-1][0].id], query)) if len(found) > PAGE else None,
        )


class NewMailing(MailingPage):
    async def get(self) -> None:
        end = (datetime.now(UTC) + timedelta(days=1)).replace(minute=0)
        values = {**dict.fromkeys(FIELDS, ""), "audience": "some", "priority": "0"}
        await self.show_form(Form({**values, "ends_at": show_time(end.replace(second=0), self.zone)}))


class OneMailing(MailingPage):
    async def get(self, mailing_id: int) -> None:
        # Newest ids are sent last: the head of the whole list would show nothing but what waits.
        arguments = dict(self.request.query_arguments)
        whole = arguments.pop("all", None) is not None
        query = self.read_query(schemas.MessagesQuery, arguments)
        [mailing] = await shown(self.db, self.context, [await mailings.get(self.db, mailing_id)])
        numbers = await statistics.of_mailing(self.db, mailing_id)
        hours = await queue.hours_open_at(self.db, [mailing_id]) if mailing.status_reason == StatusReason.WINDOW else {}
        status = query["status"] and Status(query["status"])
        cursor = query["cursor"]
        latest = mailing.status in LIVE and status is None and cursor is None and not whole
        if latest and (started := await messages.started_last(self.db, mailing_id, MESSAGES)):
            found, following = started, None
        else:
            latest = False
            found, following = await messages.of_mailing(self.db, mailing_id, status, cursor, MESSAGES)
        here = {
            "status": query["status"],
            "all": "1" if whole else None,
            "cursor": self.get_query_argument("cursor", None),
        }
        self.show(
            "mailings/live.html" if self.is_live else "mailings/show.html",
            mailing=mailing,
            title=title_of(mailing),
            numbers=numbers,
            progress=Progress(numbers.audience, numbers.messages),
            live_now=mailing.status in LIVE,
            verbs={verb for verb, (sources, _) in MAILING_TRANSITIONS.items() if mailing.status in sources},
            over=mailing.status in OVER,
            opens_at=hours.get(mailing_id),
            messages=found,
            latest=latest,
            status=status,
            tabs=[each for each in Status if numbers.messages[each] or each is status],
            meanings=words.MEANINGS,
            here=self.link(**here),
            first=cursor is None,
            older=self.link(**{**here, "cursor": self.next_cursor(following, query)}) if following else None,
        )


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
            form.refuse("", str(error))
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


def _begun(mailing: Mailing) -> bool:
    """Whether the audience and the start are settled, as far as can be told from here; storage has the last word."""
    if mailing.status is MailingStatus.PAUSED:
        return mailing.planned or mailing.audience > 0
    return mailing.status not in (MailingStatus.DRAFT, MailingStatus.SCHEDULED)


class MailingAction(MailingPage):
    """One of the verbs; those that cannot be taken back ask first."""

    async def get(self, mailing_id: int, verb: str) -> None:
        if verb not in ("start", "cancel", "delete", "restore"):
            raise NotFound
        if verb == "restore":
            mailing = await mailings.get_deleted(self.db, mailing_id)
            self.show("mailings/restore.html", mailing=mailing, title=title_of(mailing))
            return
        mailing = await mailings.get(self.db, mailing_id)
        if verb == "start":
            if mailing.status is MailingStatus.DRAFT:
                await self.ask(mailing, title_of(mailing))
            else:
                self.go(f"/admin/mailings/{mailing_id}", "It is started already.", wrong=True)
            return
        progress = await progress_of(self.db, [mailing])
        self.show(
            "mailings/confirm.html",
            mailing=mailing,
            title=title_of(mailing),
            verb=verb,
            progress=progress[mailing.id],
        )

    async def post(self, mailing_id: int, verb: str) -> None:
        if verb == "delete":
            mailing = await mailings.get(self.db, mailing_id)
            await mailings.delete(self.db, mailing_id)
            self.wake()
            self.go(f"/admin/mailings/{mailing_id}/restore", f"“{title_of(mailing)}” is deleted.")
            return
        if verb == "restore":
            mailing = await mailings.restore(self.db, mailing_id)
            self.go(f"/admin/mailings/{mailing_id}", f"“{title_of(mailing)}” is restored.")
            return
        if verb not in DONE:
            raise NotFound
        try:
            # What is started is what was shown.
            seen = self.version() if verb == "start" else None
            if verb in ("archive", "unarchive"):
                mailing = await mailings.archive(self.db, mailing_id, verb == "archive")
            else:
                mailing = await mailings.act(self.db, mailing_id, verb, if_match=seen)
        except Stale:
            self.go(f"/admin/mailings/{mailing_id}/start", "The draft was changed meanwhile: look again.", wrong=True)
            return
        except Conflict as error:
            self.go(f"/admin/mailings/{mailing_id}", str(error), wrong=True)
            return
        self.wake()
        self.go(f"/admin/mailings/{mailing_id}", DONE[verb].format(title_of(mailing)))
