"""The page of one message."""

from __future__ import annotations

from notifier.errors import Conflict
from notifier.models import Status
from notifier.storage import ledger, mailings, messages
from notifier.web import schemas
from notifier.web.pages.base import Page
from notifier.web.pages.progress import OPEN
from notifier.web.pages.words import title_of
from notifier.web.sentences import sentence

DONE = {
    "sent": "The message counts as sent.",
    "failed": "The message counts as failed.",
    "again": "The message is tried again.",
}


class OneMessage(Page):
    SECTION = "mailings"

    async def get(self, message_id: int) -> None:
        message = await messages.get(self.db, message_id)
        mailing = await mailings.get(self.db, message.mailing_id)
        self.show(
            "messages/live.html" if self.is_live else "messages/show.html",
            message=message,
            mailing=mailing,
            title=title_of(mailing),
            live_now=message.status in OPEN,
            unknown=message.status is Status.UNKNOWN,
            here=self.link(),
        )


class ResolveMessage(Page):
    async def post(self, message_id: int) -> None:
        path = f"/admin/messages/{message_id}"
        body = schemas.load(schemas.ResolveIn, {"as": self.get_body_argument("as", "")})
        try:
            await ledger.resolve(self.db, message_id, body["decision"])
        except Conflict as error:
            self.go(path, sentence(error), wrong=True)
            return
        self.wake()
        self.go(path, DONE[body["decision"]])
