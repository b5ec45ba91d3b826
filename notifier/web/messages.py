"""Messages over HTTP: those of a mailing, those of a client, one with its timeline."""

from __future__ import annotations

from notifier.models import Status
from notifier.storage import ledger, messages
from notifier.storage.idempotency import Answer
from notifier.web import schemas
from notifier.web.handlers import Handler
from notifier.web.operations import operation


class MailingMessages(Handler):
    TAG = "Messages"

    @operation(
        "listMailingMessages", query=schemas.MessagesQuery, answer=schemas.page_of(schemas.MessageOut), errors=(404,)
    )
    async def get(self, mailing_id: int) -> None:
        """List the messages of a mailing, newest first.

        With `status` only those that have it now. Such a page looks at 10,000 messages at most, so it may be short,
        or empty, and go on.
        """
        status = self.params["status"]
        self.answer_page(
            *await messages.of_mailing(
                self.db, mailing_id, status and Status(status), self.params["cursor"], self.params["limit"]
            )
        )


class ClientMessages(Handler):
    TAG = "Messages"

    @operation("listClientMessages", query=schemas.PageQuery, answer=schemas.page_of(schemas.MessageOut), errors=(404,))
    async def get(self, client_id: int) -> None:
        """List what a client was sent, or shall be, newest first.

        The messages outlive the client, without the phone.
        """
        self.answer_page(*await messages.of_client(self.db, client_id, self.params["cursor"], self.params["limit"]))


class OneMessage(Handler):
    TAG = "Messages"

    @operation("getMessage", answer=schemas.MessageWithTimelineOut, errors=(404,))
    async def get(self, message_id: int) -> None:
        """Show a message with its timeline."""
        self.answer(await messages.get(self.db, message_id))


class MessageResolve(Handler):
    TAG = "Messages"

    @operation(
        "resolveMessage",
        body=schemas.ResolveIn,
        answer=schemas.MessageWithTimelineOut,
        errors=(404, 409),
        examples={name: {"as": name} for name in ("sent", "failed", "again")},
        personal=True,
    )
    async def post(self, message_id: int) -> None:
        """Decide about an unknown message.

        `sent` or `failed` when somebody knows; `again` to try once more. 409 unless it is unknown, and for `again`
        after the mailing's end.
        """
        await ledger.resolve(self.db, message_id, self.body["decision"])
        self.wake()
        self.answer(await messages.get(self.db, message_id))

    async def answer_again(self, stored: Answer, **ids: int) -> None:
        self.answer(await messages.get(self.db, ids["message_id"]))
