"""Mailings over HTTP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from notifier.models import Mailing, MailingStatus, StatusReason
from notifier.storage import mailings, queue
from notifier.storage.database import Db
from notifier.web import schemas
from notifier.web.context import Context
from notifier.web.handlers import Handler
from notifier.web.operations import operation

SALE = {
    "name": "Spring sale",
    "text": "Two days only: everything at half the price.",
    "filter": {"operator_codes": ["916", "926"], "tags": ["vip"]},
    "starts_at": "2030-01-01T09:00:00+03:00",
    "ends_at": "2030-01-02T21:00:00+03:00",
    "window": {"from": "09:00", "to": "21:00"},
    "priority": 0,
}
# No example may go to everybody: it takes one press of Execute.
NOW = {"text": "The water is off until six.", "filter": {"tags": ["staff"]}, "ends_at": "2030-01-01T00:00:00Z"}
AWAITING = (MailingStatus.SCHEDULED, MailingStatus.RUNNING)
# Reasons that pass by themselves, so what a person has to change comes before them.
PASSING = (StatusReason.GATEWAY_UNAVAILABLE, StatusReason.GATEWAY_THROTTLED)


async def shown(db: Db, context: Context, found: Sequence[Mailing]) -> list[Mailing]:
    """Return the mailings, each with what keeps it from being sent where nothing else is said of it."""
    awaiting = [mailing for mailing in found if mailing.status in AWAITING]
    silent = [mailing for mailing in awaiting if mailing.status_reason in (None, *PASSING)]
    reasons: dict[int, str] = {}
    if context.gateway.url is None:
        reasons = {mailing.id: StatusReason.GATEWAY_UNCONFIGURED for mailing in awaiting}
    elif context.pause_all:
        reasons = {mailing.id: StatusReason.PAUSED_BY_SETTINGS for mailing in silent}
    elif silent and await context.hold.reason() is not None:
        reasons = {mailing.id: StatusReason.HELD_AS_COPY for mailing in silent}
    elif windows := [m.id for m in silent if m.window and m.audience and m.status_reason is None]:
        reasons = dict.fromkeys(await queue.hours_open_at(db, windows), StatusReason.WINDOW)
    return [replace(m, status_reason=reasons[m.id]) if m.id in reasons else m for m in found]


class MailingHandler(Handler):
    """What the handlers of mailings share."""

    TAG = "Mailings"

    async def answer_mailing(self, mailing: Mailing, *, location: str | None = None) -> None:
        """Answer with the mailing as it is shown."""
        [mailing] = await shown(self.db, self.context, [mailing])
        self.answer(mailing, location=location)

    async def act(self, mailing_id: int, verb: str) -> None:
        """Do what the address says and answer with the mailing."""
        mailing = await mailings.act(self.db, mailing_id, verb, if_match=self.if_match)
        self.wake()
        await self.answer_mailing(mailing)


class Mailings(MailingHandler):
    @operation("listMailings", query=schemas.MailingsQuery, answer=schemas.page_of(schemas.MailingOut))
    async def get(self) -> None:
        """List mailings, newest first.

        Archived ones only with `archived=true`.
        """
        status, cursor, limit = (self.params[name] for name in ("status", "cursor", "limit"))
        found = await mailings.page(
            self.db,
            status=status and MailingStatus(status),
            before=cursor[0] if cursor else None,
            limit=limit + 1,
            archived=self.params["archived"],
        )
        page = found[:limit]
        self.answer_page(await shown(self.db, self.context, page), [page[-1].id] if len(found) > limit else None)

    @operation(
        "createMailing",
        body=schemas.MailingIn,
        answer=schemas.MailingOut,
        status=201,
        examples={"a draft": {**SALE, "draft": True}, "later": SALE, "now": NOW},
    )
    async def post(self) -> None:
        """Make a mailing.

        It starts by itself when `starts_at` comes, at once if that has passed; `"draft": true` holds it back. Its
        audience are the clients that match when it starts.
        """
        mailing = await mailings.create(self.db, **self.body)
        self.wake()
        await self.answer_mailing(mailing, location=f"/api/v1/mailings/{mailing.id}")


class OneMailing(MailingHandler):
    @operation("getMailing", answer=schemas.MailingOut, errors=(404,))
    async def get(self, mailing_id: int) -> None:
        """Show a mailing."""
        await self.answer_mailing(await mailings.get(self.db, mailing_id))

    @operation(
        "updateMailing",
        body=schemas.MailingEditIn,
        answer=schemas.MailingOut,
        errors=(404, 409, 412),
        examples={"text": {"text": "One day left."}, "at any hour": {"window": None}},
    )
    async def patch(self, mailing_id: int) -> None:
        """Change a mailing.

        Everything before its start; `name`, `text`, `ends_at`, `window` and `priority` also later, for what is not
        sent yet. 409 for the others then, and for anything once it is over.
        """
        mailing = await mailings.edit(self.db, mailing_id, self.body, if_match=self.if_match)
        self.wake()
        await self.answer_mailing(mailing)

    @operation("deleteMailing", status=204, errors=(404, 412))
    async def delete(self, mailing_id: int) -> None:
        """Delete a mailing with its messages.

        One that runs is stopped first. For 30 days it can be restored; then its rows are removed for good.
        """
        await mailings.delete(self.db, mailing_id, if_match=self.if_match)
        self.wake()
        self.answer()


class MailingStart(MailingHandler):
    @operation("startMailing", answer=schemas.MailingOut, errors=(404, 409, 412))
    async def post(self, mailing_id: int) -> None:
        """Start a draft.

        It is sent when `starts_at` comes, at once if that has passed. 409 for what is no draft, or over.
        """
        await self.act(mailing_id, "start")


class MailingPause(MailingHandler):
    @operation("pauseMailing", answer=schemas.MailingOut, errors=(404, 409, 412))
    async def post(self, mailing_id: int) -> None:
        """Pause a mailing.

        Within a second no new message goes out. 409 unless it is scheduled or running.
        """
        await self.act(mailing_id, "pause")


class MailingResume(MailingHandler):
    @operation("resumeMailing", answer=schemas.MailingOut, errors=(404, 409, 412))
    async def post(self, mailing_id: int) -> None:
        """Resume a paused mailing.

        409 unless it is paused.
        """
        await self.act(mailing_id, "resume")


class MailingCancel(MailingHandler):
    @operation("cancelMailing", answer=schemas.MailingOut, errors=(404, 409, 412))
    async def post(self, mailing_id: int) -> None:
        """Cancel a mailing for good.

        Within a second no new message goes out; what was not sent becomes cancelled. 409 when it is over.
        """
        await self.act(mailing_id, "cancel")


class MailingArchive(MailingHandler):
    @operation("archiveMailing", answer=schemas.MailingOut, errors=(404, 409, 412))
    async def post(self, mailing_id: int) -> None:
        """Archive a mailing.

        It leaves the lists; everything stays readable, and counts in the totals. 409 unless it is finished or
        cancelled; one that is archived stays so.
        """
        await self.answer_mailing(await mailings.archive(self.db, mailing_id, True, if_match=self.if_match))


class MailingUnarchive(MailingHandler):
    @operation("unarchiveMailing", answer=schemas.MailingOut, errors=(404, 409, 412))
    async def post(self, mailing_id: int) -> None:
        """Bring an archived mailing back into the lists.

        409 unless it is finished or cancelled; one that is not archived stays so.
        """
        await self.answer_mailing(await mailings.archive(self.db, mailing_id, False, if_match=self.if_match))


class MailingRestore(MailingHandler):
    @operation("restoreMailing", answer=schemas.MailingOut, errors=(404, 412))
    async def post(self, mailing_id: int) -> None:
        """Restore a deleted mailing.

        Within 30 days, with all its messages. One that was deleted while it ran comes back cancelled. 404 after that;
        one that is not deleted stays as it is.
        """
        await self.answer_mailing(await mailings.restore(self.db, mailing_id, if_match=self.if_match))
