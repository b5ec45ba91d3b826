"""Statistics over HTTP."""

from __future__ import annotations

from notifier.storage import statistics
from notifier.storage.database import transaction
from notifier.web import schemas
from notifier.web.handlers import Handler
from notifier.web.operations import operation


class MailingStatistics(Handler):
    TAG = "Statistics"

    @operation("getMailingStatistics", query=schemas.StatisticsQuery, answer=schemas.StatisticsOut, errors=(404,))
    async def get(self, mailing_id: int) -> None:
        """Show a mailing in numbers, all of one moment."""
        step = statistics.Step(self.params["step"])
        self.answer(await statistics.of_mailing(self.db, mailing_id, step))


class Overview(Handler):
    TAG = "Statistics"

    @operation("getStatistics", query=schemas.ArchivedQuery, answer=schemas.OverviewOut)
    async def get(self) -> None:
        """Show all mailings in numbers, and a page of them, all of one moment.

        Deleted mailings are left out. Archived ones count in the totals, and the page shows them with `archived=true`.
        """
        limit, cursor, archived = (self.params[name] for name in ("limit", "cursor", "archived"))
        async with transaction(self.context.db, snapshot=True) as connection:
            totals = await statistics.totals(connection)
            lines = await statistics.of_mailings(
                connection, cursor[0] if cursor else None, limit + 1, archived=archived
            )
        page = lines[:limit]
        following = self.next_cursor([page[-1].id] if len(lines) > limit else None, self.params)
        self.answer(
            {
                "audience": totals.audience,
                "messages": totals.messages,
                "mailings": {"items": page, "next_cursor": following},
            }
        )
