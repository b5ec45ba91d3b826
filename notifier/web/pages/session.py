"""Logging in with an API token, and out."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import ClassVar

from notifier.web.base import digest_of
from notifier.web.pages.base import HOME, SESSION_DAYS, Form, Page

DELAY = 1.0
"""Seconds that a wrong token costs: with `GUESSES` at once, five guesses a second from one address."""
KEPT = "kept-"
"""Before the name of a field that is carried along to be sent again."""
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
        if again := self._again:
            self.caller = caller
            self.show("session/again.html", again=again, kept=self._kept_before())
            return
        self.redirect(self._next, status=303)

    @property
    def _next(self) -> str:
        """Where to go then."""
        return _ours(self.get_argument("next", HOME)) or HOME

    @property
    def _again(self) -> str:
        """Where a form was sent by whom was logged out."""
        return _ours(self.get_body_argument("again", ""))

    def _kept_before(self) -> dict[str, str]:
        given = self.request.body_arguments
        return {name[len(KEPT) :]: self.get_body_argument(name, strip=False) for name in given if name.startswith(KEPT)}

    def _refuse(self, message: str) -> None:
        self._show(Form({"token": ""}, {"token": [message]}))

    def _show(self, form: Form) -> None:
        again, kept = self._again, self._kept_before()
        self.show("session/login.html", form=form, next=self._next, lost=bool(again), again=again, kept=kept)


def _ours(path: str) -> str:
    """The path where it is one of these pages, else nothing."""
    return path if path.startswith(HOME) and path.isprintable() and "\\" not in path else ""


class Logout(Page):
    async def post(self) -> None:
        self.clear_cookie("session")
        self.go("/admin/login", "You are logged out.")
