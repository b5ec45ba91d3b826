"""Logging in with an API token, and out."""

from __future__ import annotations

from urllib.parse import unquote

import structlog

from notifier.web.auth import digest_of
from notifier.web.pages.base import HOME, Page
from notifier.web.pages.forms import Form
from notifier.web.problems import TooMany

KEPT = "kept-"
"""Before the name of a field that is carried along to be sent again."""
NEXT_MAX = 2000
"""Characters of the address that a log-in leads to."""

log = structlog.get_logger("notifier.web")


class Login(Page):
    SECTION = "login"

    async def get(self) -> None:
        if self.caller is not None:
            self.redirect(self._next, status=303)
            return
        self._show(Form({"token": ""}))

    async def post(self) -> None:
        caller = await self.context.tokens(digest_of(self.get_body_argument("token", "")))
        if caller is None:
            self._refuse_token()
            return
        await self.begin_session(caller)
        log.info("login", address=self.client.address, token=caller.name, request_id=self.request_id)
        if again := self._again:
            self.show("session/again.html", again=again, kept=self._kept_before())
            return
        self.redirect(self._next, status=303)

    def _refuse_token(self) -> None:
        try:
            self.count_failure("login refused")
        except TooMany as error:
            self.set_status(429)
            self.set_header("Retry-After", str(error.seconds))
            self._refuse(str(error))
            return
        self.set_status(403)
        self._refuse("This token is not known. Check that all of it was pasted.")

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
    if not path.startswith(HOME) or len(path) > NEXT_MAX or not path.isprintable() or "\\" in path:
        return ""
    steps = unquote(path.partition("?")[0]).split("/")
    return "" if {".", ".."}.intersection(steps) else path


class Logout(Page):
    async def post(self) -> None:
        caller = self.caller
        await self.end_session()
        if caller is not None:
            log.info("logout", address=self.client.address, token=caller.name, request_id=self.request_id)
        self.set_header("Clear-Site-Data", '"cache"')
        self.go("/admin/login", "You are logged out.")
