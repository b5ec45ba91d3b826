"""Logging in with an API token, and out."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import ClassVar

from notifier.web.base import digest_of
from notifier.web.pages.base import HOME, SESSION_DAYS, Form, Page

DELAY = 1.0
"""Seconds that a wrong token costs: with `GUESSES` at once, five guesses a second from one address."""
GUESSES = 5


class Login(Page):
    SECTION = "login"
    guessing: ClassVar[Counter[str | None]] = Counter()
    """Log-ins being answered, by address."""

    async def get(self) -> None:
        if self.caller is not None:
            self.redirect(self._next, status=303)
            return
        self._show(Form({"token": ""}))

    async def post(self) -> None:
        # Before the token is looked at: else a right one could be told from the wrong ones without waiting.
        address = self.request.remote_ip
        if self.guessing[address] >= GUESSES:
            self.set_status(429)
            self.set_header("Retry-After", "1")
            self._refuse("Too many wrong tokens at once. Wait a moment, then try again.")
            return
        self.guessing[address] += 1
        try:
            digest = digest_of(self.get_body_argument("token", ""))
            caller = await self.context.tokens(digest)
            if caller is None:
                await asyncio.sleep(DELAY)
        finally:
            self.guessing[address] -= 1
            if not self.guessing[address]:
                del self.guessing[address]
        if caller is None:
            self.set_status(403)
            self._refuse("This token is not known. Check that all of it was pasted.")
            return
        self.set_signed_cookie("session", digest.hex(), expires_days=SESSION_DAYS)
        self.redirect(self._next, status=303)

    @property
    def _next(self) -> str:
        """Where to go then: only ever a page of ours."""
        path = self.get_argument("next", HOME)
        return path if path.startswith(HOME) and path.isprintable() and "\\" not in path else HOME

    def _refuse(self, message: str) -> None:
        self._show(Form({"token": ""}, {"token": [message]}))

    def _show(self, form: Form) -> None:
        self.show("session/login.html", form=form, next=self._next)


class Logout(Page):
    async def post(self) -> None:
        self.clear_cookie("session")
        self.go("/admin/login", "You are logged out.")
