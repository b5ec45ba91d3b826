"""The start page: all mailings in numbers, what is under way, and the gateway."""

from __future__ import annotations

from notifier.models import MailingStatus
from notifier.storage import gateways, mailings, statistics
from notifier.web.gateways import shown as shown_gateway
from notifier.web.mailings import shown
from notifier.web.pages.base import Page
from notifier.web.pages.progress import Progress, progress_of

SHOWN = 10


class Overview(Page):
    SECTION = "overview"

    async def get(self) -> None:
        totals = await statistics.totals(self.db)
        groups = []
        for status in (MailingStatus.RUNNING, MailingStatus.PAUSED, MailingStatus.SCHEDULED):
            found = await mailings.page(self.db, status=status, before=None, limit=SHOWN)
            groups += await shown(self.db, self.context, found)
        latest = [] if groups else await mailings.page(self.db, status=None, before=None, limit=5)
        gateway = shown_gateway(await gateways.get(self.db, "default"), self.context.gateway)
        self.show(
            "overview/live.html" if self.is_live else "overview/show.html",
            totals=Progress(totals.audience, totals.messages),
            groups=groups,
            latest=latest,
            progress=await progress_of(self.db, [*groups, *latest]),
            gateway=gateway,
        )
