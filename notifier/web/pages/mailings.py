"""The pages of mailings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from notifier.errors import Conflict, Invalid, NotFound, Stale
from notifier.models import MAILING_TRANSITIONS, OVER, Mailing, MailingStatus, Status, StatusReason
from notifier.storage import mailings, messages, queue, statistics
from notifier.storage.database import Connection
from notifier.web import schemas
from notifier.web.mailings import shown
from notifier.web.pages import words
from notifier.web.pages.forms import Form
from notifier.web.pages.mailing_form import FIELDS, POINTERS, MailingPage
from notifier.web.pages.progress import Progress, progress_of
from notifier.web.pages.words import title_of
from notifier.web.sentences import sentence

PAGE, MESSAGES = 20, 25
LIVE = (MailingStatus.SCHEDULED, MailingStatus.RUNNING, MailingStatus.PAUSED)
TROUBLES = {"failed": Status.FAILED, "unknown": Status.UNKNOWN}
"""What the list can be narrowed to beside a status."""
DONE = {
    "start": "“{}” was started.",
    "pause": "“{}” is paused. What is under way is finished; nothing new goes out.",
    "resume": "“{}” goes on.",
    "cancel": "“{}” is cancelled. What was not sent stays unsent.",
    "archive": "“{}” is archived: it is in no list but that of the archived ones.",
    "unarchive": "“{}” is back in the lists.",
}


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
            self.go(f"/admin/mailings/{mailing_id}", sentence(error), wrong=True)
            return
        self.wake()
        self.go(f"/admin/mailings/{mailing_id}", DONE[verb].format(title_of(mailing)))
