"""The page that lets a database send which looks like a copy."""

from __future__ import annotations

from notifier.storage import installation
from notifier.web.pages.base import HOME, Page


class Release(Page):
    async def get(self) -> None:
        found = await self.context.hold.found()
        if found is None or found.difference is None:
            self.go(HOME, "This database is not held: its mailings are sent.")
            return
        mailings, messages = await installation.would_send(self.db)
        self.show("release/confirm.html", found=found, mailings=mailings, messages=messages)

    async def post(self) -> None:
        await self.context.hold.release()
        self.wake()
        self.go(HOME, "The database is released: its mailings are sent.")
