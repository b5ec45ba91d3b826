"""What all pages share: who is logged in, how a page is made, and errors as pages."""

from __future__ import annotations

import hmac
import json
import re
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, ClassVar
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

from notifier.errors import Code, NotFound, Stale
from notifier.storage import idempotency, sessions
from notifier.storage.database import AWAY, Connection
from notifier.web.addresses import as_in_origin
from notifier.web.auth import PUBLIC, Caller, digest_of
from notifier.web.base import RETRY_AFTER, SMALL_BODY, Base, path_value
from notifier.web.conditional import INT32_MAX
from notifier.web.pages import words
from notifier.web.pages.forms import Form
from notifier.web.pages.templates import ENVIRONMENT
from notifier.web.problems import Forbidden, Unauthorized, problem_of

# Pico draws its arrows and ticks from data: URLs.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SESSION, FLASH = "notifier", "notifier-flash"
"""Names of the cookies; over https they begin with ``__Host-``, so that no other host can plant them."""
FLASH_DAYS = 5 / 24 / 60
"""Five minutes: who comes back later need not hear of it."""
HOME = "/admin/"
KEPT_MAX = SMALL_BODY // 2
"""Bytes of a form that are kept over a log-in: as much as the form of the log-in can carry along."""


class LoggedOut(Unauthorized):
    """Nobody is logged in."""


class CrossSite(Forbidden):
    """A form that another site has sent."""

    def __init__(self, site: str) -> None:
        super().__init__(
            f"This form did not come from these pages but from {site[:100]}. If it did, the proxy in front does not"
            " pass the header Host on: set PUBLIC_URL."
        )


class StaleForm(Forbidden):
    """A form of another session."""

    def __init__(self) -> None:
        super().__init__("It was opened too long ago, or somewhere else. Go back, reload the page and try again.")


def sealed(session: str, digest: bytes) -> bytes:
    """Return a token's SHA-256 so that only who has the session's secret can read it, and back again.

    The pad is as long as what it covers, as random as the secret, and used once: who reads the database learns nothing.
    """
    pad = hmac.digest(session.encode(), b"token", "sha256")
    return bytes(a ^ b for a, b in zip(digest, pad, strict=True))


class Page(Base):
    """A page. Its route says which scope it takes; the session's token must have it."""

    SECTION: ClassVar[str] = ""
    """Which link of the menu leads here."""

    session: str | None = None
    """The secret of the session."""
    held: str | None = None
    """Why nothing is sent from this database, in a sentence."""

    async def prepare(self) -> None:
        super().prepare()
        await self.authorize()
        self.held = await self.context.hold.reason()
        if self.verb != "GET" and self.access[self.verb] != PUBLIC and not self._is_of_this_session():
            self.note("form refused", reason="of another session")
            if not {"Sec-Fetch-Site", "Origin"}.intersection(self.request.headers):
                raise StaleForm
            # It is from these pages, but older than the log-in: nothing of it is lost, and nothing done unasked.
            self.set_status(403)
            self.show("session/again.html", again=self.request.path, kept=self._kept())
            return
        self.path_kwargs = {name: path_value(name, text) for name, text in self.path_kwargs.items()}

    def set_default_headers(self) -> None:
        super().set_default_headers()
        self.set_header("Content-Security-Policy", CSP)
        self.set_header("Content-Type", "text/html; charset=utf-8")

    # the session

    async def authorize(self) -> None:
        """Raise unless somebody is logged in whose token has the scope, and for a form that another site has sent."""
        self._check_site()
        self.caller = await self._logged_in()
        scope = self.access[self.verb]
        if scope == PUBLIC:
            return
        if self.caller is None:
            raise LoggedOut
        if scope not in self.caller.scopes:
            self.note("scope refused", token=self.caller.name, scope=scope)
            raise Forbidden(f"Your token lacks the scope {scope}.")

    def _check_site(self) -> None:
        """Raise for a form that a browser has sent from elsewhere.

        All of today say whence: ``Sec-Fetch-Site`` over https and on the machine itself, else ``Origin``. What says
        neither is no browser, or a very old one; then the form's token decides.
        """
        if self.verb == "GET":
            return
        headers, public = self.request.headers, self.context.public
        site, origin = headers.get("Sec-Fetch-Site"), headers.get("Origin")
        if site is not None:
            ours = site in ("same-origin", "none")
        elif origin is not None and public.scheme:
            ours = origin == public.origin
        elif origin is not None:
            ours = origin.partition("://")[2] == as_in_origin(self.request.host, self.client.scheme)
        else:
            return
        if not ours:
            self.note("form refused", reason="from another site", origin=(origin or "")[:100])
            raise CrossSite(origin or "elsewhere")

    async def _logged_in(self) -> Caller | None:
        """Who is logged in; the token that the session was begun with must still be good."""
        secret = self.get_cookie(SESSION)
        if secret is None or not re.fullmatch(r"[\w-]{43}", secret, re.ASCII):
            return None
        hash = digest_of(secret)
        found = await sessions.find(self.context.db, hash)
        if found is None:
            return None
        caller = await self.context.tokens(sealed(secret, found.token))
        if caller is None:
            await sessions.end(self.context.db, hash)
            return None
        self.session = secret
        if found.due and not self.is_live:  # a page that is only open polls: nobody need be there
            with suppress(*AWAY):  # where nothing can be written pages can be looked at all the same
                await sessions.touch(self.context.db, hash)
        return caller

    async def begin_session(self, caller: Caller) -> None:
        """Log in; the session of before, if there was one, ends."""
        if self.session is not None:
            await sessions.end(self.context.db, digest_of(self.session))
        secret = secrets.token_urlsafe(32)
        await sessions.begin(self.context.db, digest_of(secret), sealed(secret, caller.digest))
        self.set_cookie(SESSION, secret, expires_days=sessions.HOURS / 24)
        self.session, self.caller = secret, caller

    async def end_session(self) -> None:
        """Log out."""
        if self.session is not None:
            await sessions.end(self.context.db, digest_of(self.session))
        self.clear_cookie(SESSION)

    @property
    def form_token(self) -> str:
        """What a form of this session carries; empty without one."""
        return "" if self.session is None else hmac.digest(self.session.encode(), b"form", "sha256").hex()

    def _is_of_this_session(self) -> bool:
        return hmac.compare_digest(self.get_body_argument("_xsrf", "").encode(), self.form_token.encode())

    def _to_login(self) -> None:
        if self.is_live:
            self._reload()
            return
        if self.verb != "GET":
            self.set_status(401)
            kept = self._kept() if len(self.request.body) <= KEPT_MAX else {}
            again = self.request.path if kept else ""
            self.show("session/login.html", form=Form({"token": ""}), next=HOME, lost=True, again=again, kept=kept)
            return
        query = ""
        if self.verb == "GET" and self.request.uri != HOME:
            query = f"?{urlencode({'next': self.request.uri})}"
        self.redirect(f"/admin/login{query}", status=303)

    def _kept(self) -> dict[str, str]:
        """What was entered, but for what would skip a question: time has passed."""
        given = self.request.body_arguments
        return {name: given[name][-1].decode("utf-8", "replace") for name in given if name not in ("_xsrf", "sure")}

    def set_cookie(self, name: str, value: str | bytes, *args: Any, **kwargs: Any) -> None:
        """Set a cookie; all of ours are for these pages only, and no script's business."""
        secure = self._is_secure
        path = "/" if secure else f"{self.context.public.prefix}/"  # __Host- asks for the former
        mine = {"path": path, "httponly": True, "samesite": "Lax", "secure": secure}
        super().set_cookie(self._cookie(name), value, *args, **{**kwargs, **mine})

    def get_cookie(self, name: str, default: Any = None) -> Any:
        """Return what `set_cookie` has set."""
        return super().get_cookie(self._cookie(name), default)

    @property
    def _is_secure(self) -> bool:
        public = self.context.public
        return public.is_https or (not public.scheme and self.client.scheme == "https")

    def _cookie(self, name: str) -> str:
        return f"__Host-{name}" if self._is_secure else name

    def may(self, scope: str) -> bool:
        """Whether whoever is logged in may do what takes ``scope``."""
        return self.caller is not None and scope in self.caller.scopes

    # making a page

    @property
    def is_live(self) -> bool:
        """Whether a page that is open asks for its moving part only."""
        return "HX-Request" in self.request.headers

    @property
    def zone(self) -> ZoneInfo:
        """The zone of all times here."""
        return ZoneInfo(self.context.default_timezone)

    def show(self, template: str, **values: Any) -> None:
        """Answer with a template."""
        flash = None
        if not self.is_live and (stored := self.get_signed_cookie(FLASH, max_age_days=FLASH_DAYS)):
            flash = json.loads(stored)
            self.clear_cookie(FLASH)
        page = ENVIRONMENT.get_template(template)
        self.finish(
            page.render(
                who=self.caller,
                flash=flash,
                may=self.may,
                moment=partial(words.moment, zone=self.zone),
                path=self.request.path,
                held=self.held,
                pause_all=self.context.pause_all,
                root=self.context.public.prefix,
                section=self.SECTION,
                version=self.context.version,
                xsrf=self.form_token,
                zone=self.context.default_timezone,
                **values,
            )
        )

    def link(self, **parameters: Any) -> str:
        """Return this page's address with these parameters; those that are None are left out."""
        query = urlencode({name: value for name, value in parameters.items() if value is not None})
        path = self.context.public.prefix + self.request.path
        return f"{path}?{query}" if query else path

    def go(self, path: str, message: str, *, wrong: bool = False) -> None:
        """Go to another page, which shows ``message``."""
        self.set_signed_cookie(FLASH, json.dumps([message[:500], wrong]), expires_days=FLASH_DAYS)
        self.redirect(path, status=303)

    def typed(self, *names: str) -> dict[str, str]:
        """Return what was typed into these fields; line ends as one character."""
        return {
            name: self.get_body_argument(name, "", strip=name != "text").replace("\r\n", "\n").replace("\r", "\n")
            for name in names
        }

    def version(self) -> int:
        """Return the version the form was made of. Raises `Stale` for what is none."""
        text = self.get_body_argument("version", "")
        if not re.fullmatch("[0-9]{1,10}", text) or int(text) > INT32_MAX:
            raise Stale
        return int(text)

    async def once(self, create: Callable[[Connection], Awaitable[str]]) -> str:
        """Run ``create`` in a transaction and return the path it returned; for a form sent twice the first one's."""
        key, body = self.once_key(self.get_body_argument("once", "") or secrets.token_hex())

        async def answer(connection: Connection) -> idempotency.Answer:
            return idempotency.Answer(303, {"Location": await create(connection)}, b"")

        first, _ = await idempotency.once(self.context.db, key, body, answer)
        return first.headers["Location"]

    # errors

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        error = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        if isinstance(error, LoggedOut):
            self._to_login()
            return
        problem = problem_of(error, status_code)
        if self.is_live and problem["status"] in (401, 403, 404):
            self._reload()
            return
        if isinstance(error, StaleForm | CrossSite):
            problem["title"] = "This form is not valid any more"
        self.set_status(problem["status"])
        if problem["status"] == 503:
            problem["detail"] = "Nothing is lost, and what is under way is kept. Load the page again in a moment."
            self.set_header("Retry-After", str(RETRY_AFTER))
        self.show("error.html", problem=problem, request_id=self.request_id)

    def _reload(self) -> None:
        """Have htmx load the whole page: its moving part has gone, or whoever looked at it."""
        self.set_status(200)
        self.set_header("HX-Refresh", "true")
        self.finish()


class Nowhere(Page):
    """What answers under /admin/ where there is no page."""

    async def get(self, path: str = "") -> None:
        raise NotFound(Code.NO_PAGE)
