"""The admin as a browser without JavaScript sees it: forms, redirects, cookies, over real HTTP."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from html import unescape
from html.parser import HTMLParser
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from aiohttp import FormData

from notifier import models
from notifier.errors import Invalid, Problem
from notifier.models import Status
from notifier.storage import gateways, mailings, statistics
from notifier.storage.database import Pool
from notifier.storage.installation import Hold
from notifier.web import schemas
from notifier.web.auth import Caller, digest_of
from notifier.web.pages import words
from notifier.web.pages.base import HOME
from notifier.web.pages.forms import Form, as_text, read_time, several, show_time
from notifier.web.pages.progress import Progress
from notifier.web.routes import ROUTES
from tests.storage.message_scenes import (
    insert_attempts,
    insert_batch,
    insert_clients,
    insert_everything,
    insert_mailing,
    insert_slice,
)
from tests.web.conftest import TOKEN, Api, MakeApi

SCRIPT = "<script>alert(1)</script>"
SOON = "2200-01-01T00:00"


class Fields(HTMLParser):
    """What a browser would send back: the values of the form with this action, buttons left out."""

    def __init__(self, html: str, action: str) -> None:
        super().__init__()
        self.action, self.values, self.inside, self.area = action, dict[str, str](), False, ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self.inside = given.get("action") == self.action
        name = given.get("name") or ""
        if self.inside and tag == "input" and (given.get("type") != "radio" or "checked" in given):
            self.values[name] = given.get("value") or ""
        if self.inside and tag == "textarea":
            self.area, self.values[name] = name, ""

    def handle_data(self, data: str) -> None:
        if self.area:
            self.values[self.area] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self.area:
            self.values[self.area] = self.values[self.area].removeprefix("\n")
            self.area = ""


@dataclass
class Shown:
    """A page that was answered."""

    status: int
    headers: Any
    html: str

    @property
    def text(self) -> str:
        """What is to be read on it."""
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", self.html)).split())

    @property
    def location(self) -> str:
        assert self.status == 303, (self.status, self.text)
        return str(self.headers["Location"])

    def form(self, action: str) -> dict[str, str]:
        """The values of the form with this action."""
        values = Fields(self.html, action).values
        assert values, f"no form {action}: {self.text}"
        return values

    def error(self, name: str) -> str:
        """What is said beside a field."""
        match = re.search(rf'id="{name}-error">(.*?)</small>', self.html, re.S)
        assert match, (name, self.text)
        return unescape(re.sub(r"<[^>]*>", "", match[1]))


@dataclass
class Browser:
    """Follows no link by itself, keeps cookies."""

    api: Api
    cookies: dict[str, str] = field(default_factory=dict)

    async def call(self, method: str, path: str, headers: dict[str, str], data: FormData | None = None) -> Shown:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        self.api.token = None
        reply = await self.api.call(method, f"/{path}", data=data, headers={"Cookie": cookie} | headers)
        for line in reply.headers.getall("Set-Cookie", []):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
            if not value.strip('"'):
                del self.cookies[name]
        return Shown(reply.status, reply.headers, reply.body.decode())

    async def get(self, path: str, **headers: str) -> Shown:
        return await self.call("GET", path, headers)

    async def post(self, path: str, values: dict[str, str], **headers: str) -> Shown:
        data = FormData()
        for name, value in values.items():
            data.add_field(name, value)
        return await self.call("POST", path, headers, data)

    async def submit(self, page: str, action: str, /, **changes: str) -> Shown:
        """Open a page, change some fields of its form, and send it."""
        form = (await self.get(page)).form(action)
        return await self.post(action, form | changes)

    async def send(self, **changes: str) -> Shown:
        """Fill in the form of a new mailing, press "Make and start", and then "Send"."""
        asked = await self.submit("/admin/mailings/new", "/admin/mailings", **changes)
        return await self.post("/admin/mailings", asked.form("/admin/mailings") | {"sure": "1"})

    async def press(self, page: str, action: str, /, **changes: str) -> Shown:
        """Submit, and look at the page it leads to."""
        return await self.get((await self.submit(page, action, **changes)).location)

    async def log_in(self, token: str = TOKEN) -> Browser:
        assert (await self.submit("/admin/login", "/admin/login", token=token)).location == "/admin/"
        return self


def tile(page: Shown, name: str) -> str:
    """The tile of this class."""
    match = re.search(rf'<div class="tile {name}.*?</div>', page.html, re.S)
    assert match, page.text
    return match[0]


@pytest.fixture
def browser(api: Api) -> Browser:
    return Browser(api)


# ---- the session


async def test_every_page_needs_a_session_and_leads_back_after_the_log_in(browser: Browser) -> None:
    for route in ROUTES:
        if route.path.startswith("/admin/") and route.access.get("GET"):
            path = re.sub(r"\{\w+\}", "1", route.path)
            assert (await browser.get(path)).status == 303, path
    assert (await browser.get("/admin/clients?tag=vip")).location == "/admin/login?next=%2Fadmin%2Fclients%3Ftag%3Dvip"

    assert (await browser.get("/admin/")).location == "/admin/login"
    done = await browser.submit("/admin/login?next=%2Fadmin%2Fclients%3Ftag%3Dvip", "/admin/login", token=TOKEN)
    assert done.location == "/admin/clients?tag=vip"
    assert (await browser.get(done.location)).status == 200
    assert (await browser.get("/admin/login")).location == "/admin/"

    assert "You are logged out." in (await browser.press("/admin/", "/admin/logout")).text
    assert (await browser.get("/admin/")).status == 303


@pytest.mark.parametrize("elsewhere", ["//elsewhere.example/", "https://elsewhere.example", "/docs/", "/admin/\\x\r\n"])
async def test_the_log_in_leads_nowhere_else(browser: Browser, elsewhere: str) -> None:
    done = await browser.submit("/admin/login", "/admin/login", token=TOKEN, next=elsewhere)
    assert done.location == "/admin/"


async def test_what_was_entered_outlives_a_log_out_in_another_tab(browser: Browser) -> None:
    await browser.log_in()
    entered = (await browser.get("/admin/mailings/new")).form("/admin/mailings")
    entered |= {"name": "Ours", "text": " two\nlines <b>", "audience": "everybody", "ends_at": SOON, "draft": "1"}
    await browser.press("/admin/", "/admin/logout")
    lost = await browser.post("/admin/mailings", {**entered, "sure": "1"})
    assert lost.status == 401
    assert "You were logged out: nothing was saved." in lost.text
    wrong = await browser.post("/admin/login", lost.form("/admin/login") | {"token": "wrong"})
    assert "nothing was saved" in wrong.text
    back = await browser.post("/admin/login", wrong.form("/admin/login") | {"token": TOKEN})
    kept = back.form("/admin/mailings")
    assert kept | {"_xsrf": ""} == entered | {"_xsrf": ""}  # and nobody is sure any more
    path = (await browser.post("/admin/mailings", kept)).location
    assert "two\nlines &lt;b&gt;" in (await browser.get(path)).html


async def test_a_form_too_large_to_be_kept_is_said_to_be_lost(browser: Browser) -> None:
    await browser.log_in()
    await browser.press("/admin/", "/admin/logout")
    for size in (40_000, 100_000):
        lost = await browser.post("/admin/mailings", {"text": "x" * size})
        assert (lost.status, "nothing was saved" in lost.text) == (401, True)
        again = await browser.post("/admin/login", lost.form("/admin/login") | {"token": TOKEN, "next": "/admin/"})
        assert again.location == "/admin/"
        await browser.press("/admin/", "/admin/logout")


async def test_a_session_ends_with_its_token_and_may_what_the_token_may(make_api: MakeApi) -> None:
    known = {digest_of("reader"): Caller("reader", digest_of("reader"), frozenset({"mailings:read", "clients:read"}))}

    async def tokens(digest: bytes) -> Caller | None:
        return known.get(digest)

    browser = await Browser(make_api(tokens=tokens)).log_in("reader")
    page = await browser.get("/admin/mailings")
    assert page.status == 200
    assert "New mailing" not in page.text
    refused = await browser.get("/admin/mailings/new")
    assert refused.status == 403
    assert "lacks the scope mailings:write" in refused.text
    assert (await browser.get("/admin/gateways/default")).status == 403

    known.clear()
    assert (await browser.get("/admin/mailings")).location.startswith("/admin/login")
    live = await browser.get("/admin/mailings", **{"HX-Request": "true"})
    assert (live.status, live.headers["HX-Refresh"], live.html) == (200, "true", "")


async def test_pages_take_nothing_from_elsewhere(browser: Browser) -> None:
    await browser.log_in()
    page = await browser.get("/admin/")
    assert "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert "unsafe" not in page.headers["Content-Security-Policy"]
    assert page.headers["Cache-Control"] == "no-store"
    for address in re.findall(r'(?:src|href)="([^"]*)"', page.html):
        assert address.startswith(("/", "#")), address
        if address.startswith("/static/"):
            assert (await browser.get(address)).status == 200, address
    assert not re.search(r"<script(?![^>]*src)|\sstyle=|\son\w+=", page.html)


# ---- errors


async def test_errors_are_pages(browser: Browser) -> None:
    await browser.log_in()
    for path in ("/admin/nothing", "/admin/mailings/999", "/admin/mailings/x", "/admin/clients/0", "/admin/messages/1",
                 "/admin/gateways/%00", "/admin/gateways/none", "/admin/mailings/1/start"):  # fmt: skip
        page = await browser.get(path)
        assert page.status == 404, path
        assert "There is no" in page.text or "There is nothing" in page.text, path
        assert page.headers["Content-Type"] == "text/html; charset=utf-8"
        assert ("Log out" in page.text) == ("%00" not in path)  # that one is not even looked at
    assert (await browser.get("/admin/mailings?status=done")).status == 422
    assert (await browser.get("/admin/mailings?cursor=%00")).status == 422
    assert (await browser.get("/admin/logout")).status == 405
    assert (await browser.get("/admin/mailings/999", **{"HX-Request": "true"})).headers["HX-Refresh"] == "true"


async def test_a_database_that_is_away_is_told(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    await db.close()
    for path in ("/admin/", "/admin/mailings", "/admin/clients/1"):
        page = await browser.get(path)
        assert (page.status, page.headers["Retry-After"]) == (503, "2")
        assert "Nothing is lost" in page.text
        assert page.html.partition("<main")[2].count("The database is unavailable") == 1


# ---- mailings


async def test_a_mailing_is_made_changed_started_paused_resumed_and_cancelled(browser: Browser) -> None:
    await browser.log_in()
    assert "There are no mailings yet" in (await browser.get("/admin/mailings")).text
    made = await browser.submit(
        "/admin/mailings/new", "/admin/mailings",
        name="Spring sale", text="Half the price.\r\nTwo days.", operator_codes="916, 926,916", tags='vip, "a, b"',
        starts_at="2199-12-31T12:00", ends_at=SOON, window_from="09:00", window_to="21:00", priority="3", draft="1",
    )  # fmt: skip
    path = made.location
    page = await browser.get(path)
    assert "“Spring sale” is kept as a draft." in page.text
    for word in ("Draft", "operator 916, 926 and", "a, b", "31 Dec 2199, 12:00 UTC", "09:00–21:00", "nothing is sent"):
        assert word in page.text, word
    assert "Half the price.\nTwo days." in page.html
    assert "is kept as a draft" not in (await browser.get(path)).text
    assert len(browser.api.woken) == 1

    assert browser.api.context.default_timezone == "UTC"
    changed = await browser.press(f"{path}/edit", f"{path}/edit", name="Sale", window_from="", window_to="", tags="")
    assert "“Sale” is changed." in changed.text
    assert "Hours any" in changed.text

    assert "“Sale” was started." in (await browser.press(f"{path}/start", f"{path}/start")).text
    assert "It is started already." in (await browser.get((await browser.get(f"{path}/start")).location)).text
    assert "is paused" in (await browser.press(path, f"{path}/pause")).text
    assert "goes on" in (await browser.press(path, f"{path}/resume")).text
    assert "Cancel “Sale”?" in (await browser.get(f"{path}/cancel")).text
    assert "is cancelled" in (await browser.press(f"{path}/cancel", f"{path}/cancel")).text
    again = await browser.press(f"{path}/cancel", f"{path}/cancel")
    assert "A mailing that is cancelled cannot cancel." in again.text
    assert "It is over" in (await browser.get((await browser.get(f"{path}/edit")).location)).text

    assert "is in no list but that of the archived ones" in (await browser.press(path, f"{path}/archive")).text
    assert "Sale" not in (await browser.get("/admin/mailings")).text
    assert "Sale" in (await browser.get("/admin/mailings?archived=true")).text
    assert "is back in the lists" in (await browser.press(path, f"{path}/unarchive")).text
    assert "No mailing is archived" in (await browser.get("/admin/mailings?archived=true")).text
    assert "Sale" in (await browser.get("/admin/mailings")).text

    assert "Until then it can be restored" in (await browser.get(f"{path}/delete")).text
    deleted = await browser.press(f"{path}/delete", f"{path}/delete")
    assert "“Sale” is deleted" in deleted.text
    assert (await browser.get(path)).status == 404
    listed = await browser.get("/admin/mailings/deleted")
    assert f'<a href="{path}/restore">Sale</a>' in listed.html
    assert "Can be restored until" in listed.text
    assert "“Sale” is restored." in (await browser.press(f"{path}/restore", f"{path}/restore")).text
    assert "No deleted mailing can be restored" in (await browser.get("/admin/mailings/deleted")).text
    assert (await browser.get(f"{path}/restore")).status == 404


async def test_the_deleted_mailings_have_pages(browser: Browser) -> None:
    """21 of them, one more than a page has; a cursor of another list is refused."""
    await browser.log_in()
    db = browser.api.context.db
    made = [await insert_mailing(db) for _ in range(21)]
    other = re.search(r"\?cursor=[^\"&]+", (await browser.get("/admin/mailings")).html)
    for mailing_id in made:
        await mailings.delete(db, mailing_id)
    first = (await browser.get("/admin/mailings/deleted")).html
    assert [f"/{mailing_id}/restore" in first for mailing_id in made] == [False] + [True] * 20
    older = re.search(r'href="(/admin/mailings/deleted\?cursor=[^"]+)"', first)
    assert older is not None
    assert other is not None
    last = (await browser.get(older[1])).html
    assert [f"/{mailing_id}/restore" in last for mailing_id in made] == [True] + [False] * 20
    assert (await browser.get(f"/admin/mailings/deleted{other[0]}")).status == 422


async def test_a_mailing_to_nobody_says_so(browser: Browser) -> None:
    await browser.log_in()
    db = browser.api.context.db
    mailing_id = await insert_mailing(db)
    await db.execute("UPDATE mailings SET planned = true, status = 'running', over_at = NULL")
    assert await mailings.close(db, mailing_id)
    shown = await browser.get(f"/admin/mailings/{mailing_id}")
    assert "No client matched its filter: nobody was texted." in shown.text


async def test_errors_stand_beside_their_fields_and_the_values_stay(browser: Browser) -> None:
    await browser.log_in()
    given = {
        "name": "n" * 201, "text": "  ", "audience": "some", "operator_codes": "916, 9x6", "tags": "t" * 65,
        "starts_at": "tomorrow", "ends_at": "2020-01-01T10:00", "window_from": "09:00", "window_to": "",
        "priority": "11",
    }  # fmt: skip
    page = await browser.submit("/admin/mailings/new", "/admin/mailings", **given)
    assert page.status == 422
    assert "{" not in page.text
    assert page.error("name") == "This must have 1 to 200 characters; this has 201."
    assert page.error("text") == "This must not be empty."
    assert page.error("operator_codes").startswith("“9x6” must consist of digits")
    assert page.error("tags").startswith("“tttt")
    assert page.error("starts_at") == "This is no time: write it like 2026-01-31T09:00."
    assert page.error("window_to") == "This is required."
    assert page.error("priority") == "This must be from -10 to 10."
    assert page.form("/admin/mailings") | given == page.form("/admin/mailings")
    assert 'aria-invalid="true" aria-describedby="priority-error priority-hint"' in page.html

    good = {**given, "name": "", "text": "x", "operator_codes": "", "tags": "", "starts_at": "", "window_from": "",
            "priority": "0"}  # fmt: skip
    page = await browser.submit("/admin/mailings/new", "/admin/mailings", **good)
    assert page.error("audience") == "Give an operator code or a tag, or choose everybody."
    page = await browser.submit(
        "/admin/mailings/new", "/admin/mailings", **{**good, "tags": "a", "audience": "everybody"}
    )
    assert page.error("audience").startswith("Everybody is chosen, but")
    good["audience"] = "everybody"
    page = await browser.submit("/admin/mailings/new", "/admin/mailings", **good)
    assert page.error("ends_at") == "This lies in the past: the mailing would be over already."
    page = await browser.submit("/admin/mailings/new", "/admin/mailings", **{**good, "ends_at": ""})
    assert page.error("ends_at") == "This is required."
    times = {"starts_at": SOON, "ends_at": "2199-01-01T00:00"}
    page = await browser.submit("/admin/mailings/new", "/admin/mailings", **{**good, **times})
    assert page.error("ends_at") == "This must be after the start."
    hours = {"window_from": "09:00", "window_to": "09:00", "ends_at": SOON}
    page = await browser.submit("/admin/mailings/new", "/admin/mailings", **{**good, **hours})
    assert page.error("window_to").startswith("This must differ from the beginning")
    page = await browser.submit("/admin/mailings/new", "/admin/mailings", **{**good, "text": "Hi {{name}}"})
    assert page.error("text").startswith("This has “{{name}}” at character 4")
    page = await browser.submit("/admin/mailings/new", "/admin/mailings", **{**good, "text": "\u200b"})
    assert page.error("text") == "This has nothing that anybody sees: it consists of U+200B."
    assert not browser.api.woken


async def test_a_form_sent_twice_makes_one_mailing(browser: Browser) -> None:
    await browser.log_in()
    form = (await browser.get("/admin/mailings/new")).form("/admin/mailings")
    form |= {"text": "once", "audience": "everybody", "sure": "1"}
    replies = await asyncio.gather(*(browser.post("/admin/mailings", form) for _ in range(5)))
    assert {reply.location for reply in replies} == {replies[0].location}
    assert (await browser.get("/admin/mailings")).html.count("<tr>") == 2  # with its head

    changed = await browser.post("/admin/mailings", form | {"text": "twice"})
    assert changed.status == 422
    again = changed.form("/admin/mailings") | {"sure": "1"}
    assert (await browser.post("/admin/mailings", again)).location != replies[0].location


async def test_nobody_is_texted_before_it_was_said_how_many(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    await insert_clients(db, 1_500)
    await db.execute("UPDATE clients SET tags = '{vip}' WHERE id IN (SELECT id FROM clients ORDER BY id LIMIT 1200)")
    form = (await browser.get("/admin/mailings/new")).form("/admin/mailings")
    given = form | {"name": SCRIPT, "text": "\n“Half”\n <b>off</b> ", "tags": 'vip, "a, b"', "window_from": "09:00",
                    "window_to": "21:00"}  # fmt: skip

    asked = await browser.post("/admin/mailings", given)
    assert asked.status == 200
    assert "This goes to 1 200 clients at once, or as soon as their local hours allow." in asked.text
    assert "<b>off" not in asked.html
    for word in ("“Half”", "vip", "09:00–21:00", "Send", "Back to the form"):
        assert word in asked.text, word
    kept = asked.form("/admin/mailings")
    assert kept | {"_xsrf": ""} == given | {"_xsrf": ""}
    assert await db.fetchval("SELECT count(*) FROM mailings") == 0
    assert not browser.api.woken

    back = await browser.post("/admin/mailings", kept | {"back": "1"})
    assert back.form("/admin/mailings") | {"_xsrf": ""} == given | {"_xsrf": ""}
    done = await browser.post("/admin/mailings", kept | {"sure": "1"})
    assert "was started" in (await browser.get(done.location)).text
    assert (await browser.post("/admin/mailings", kept | {"sure": "1"})).location == done.location
    assert await db.fetchval("SELECT array_agg(text) FROM mailing_texts") == [given["text"]]


async def test_a_draft_past_its_end_is_not_offered_to_be_started(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    path = f"/admin/mailings/{await insert_mailing(db, 'draft')}"
    assert "Start…" in (await browser.get(path)).text
    await db.execute("UPDATE mailings SET ends_at = now()")
    page = await browser.get(path)
    assert "Start…" not in page.text
    assert "give it a later one before it can be started" in page.text


async def test_a_mailing_that_never_began_has_no_recipients_to_come(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    await db.execute("UPDATE mailings SET planned = false WHERE id = $1", await insert_mailing(db, "cancelled"))
    assert "No recipients yet" not in (await browser.get("/admin/mailings")).text
    await db.execute("UPDATE mailings SET status = 'running'")
    assert "No recipients yet" in (await browser.get("/admin/mailings")).text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tags": "vip", "starts_at": "2199-12-31T09:00"}, "From 31 Dec 2199, 09:00 UTC ; 1 client matches today."),
        ({"audience": "everybody", "starts_at": "2199-12-31T09:00"}, "09:00 UTC ; 2 clients match today."),
        ({"audience": "everybody"}, "This goes to 2 clients at once."),
        ({"operator_codes": "000"}, "No client matches: check operator codes and tags."),
    ],
)
async def test_a_draft_also_says_whom_it_goes_to(
    browser: Browser, db: Pool, changes: dict[str, str], said: str
) -> None:
    await browser.log_in()
    given = {"text": "x", "ends_at": SOON} | changes
    await insert_clients(db, 2)
    await db.execute("UPDATE clients SET tags = '{vip}' WHERE id = (SELECT min(id) FROM clients)")
    asked = await browser.submit("/admin/mailings/new", "/admin/mailings", **given)
    assert "Send this mailing?" in asked.text
    assert said in asked.text.replace("\xa0", " ")

    draft = (await browser.submit("/admin/mailings/new", "/admin/mailings", **given, draft="1")).location
    assert f'href="{draft}/start"' in (await browser.get(draft)).html
    asked = await browser.get(f"{draft}/start")
    assert said in asked.text.replace("\xa0", " ")
    assert f'href="{draft}/edit"' in asked.html

    await browser.press(f"{draft}/edit", f"{draft}/edit", text="changed meanwhile")
    refused = await browser.post(f"{draft}/start", asked.form(f"{draft}/start"))
    assert refused.location == f"{draft}/start"
    again = await browser.get(refused.location)
    assert "look again" in again.text
    assert "changed meanwhile" in again.text
    assert "was started" in (await browser.press(f"{draft}/start", f"{draft}/start")).text


async def test_without_any_client_everybody_is_nobody(browser: Browser) -> None:
    await browser.log_in()
    asked = await browser.submit("/admin/mailings/new", "/admin/mailings", text="x", audience="everybody")
    assert "There are no clients yet." in asked.text


async def test_the_form_says_how_long_a_text_may_be_and_whose_time_it_takes(make_api: MakeApi) -> None:
    browser = await Browser(make_api(default_timezone="Europe/Moscow")).log_in()
    page = await browser.get("/admin/mailings/new")
    assert f"up to {words.number(schemas.TEXT_MAX)} characters" in unescape(page.html)
    assert page.text.count("Times in Europe/Moscow (setting DEFAULT_TIMEZONE).") == 2
    assert 'rows="6"' in page.html
    assert page.html.count('step="any"') == 2


async def test_an_edit_of_an_older_version_shows_the_newer_values(browser: Browser) -> None:
    await browser.log_in()
    path = (await browser.submit("/admin/mailings/new", "/admin/mailings", text="a", tags="t", draft="1")).location
    form = (await browser.get(f"{path}/edit")).form(f"{path}/edit")
    await browser.press(f"{path}/edit", f"{path}/edit", text="theirs", name="Theirs")

    refused = await browser.post(f"{path}/edit", form | {"text": "mine"})
    assert refused.status == 412
    assert "Somebody changed this mailing while you did" in refused.text
    assert "Now: theirs" in refused.text
    assert refused.form(f"{path}/edit")["text"] == "mine"
    assert "theirs" in (await browser.get(path)).text

    saved = await browser.post(f"{path}/edit", refused.form(f"{path}/edit"))
    assert "mine" in (await browser.get(saved.location)).text
    for version in ("x", "", "1" * 5_000, "²"):
        assert (await browser.post(f"{path}/edit", form | {"version": version})).status == 412


async def test_an_edit_sends_only_what_was_touched(make_api: MakeApi, db: Pool) -> None:
    browser = await Browser(make_api(default_timezone="Europe/Berlin")).log_in()
    # The second 02:30 of the night the clocks go back, and a second that no field shows.
    ends_at = datetime(2199, 10, 27, 1, 30, tzinfo=UTC).replace(microsecond=123)
    mailing_id = await db.fetchval(
        "INSERT INTO mailings (starts_at, ends_at, status, filter) VALUES (now(), $1, 'draft', $2) RETURNING id",
        ends_at,
        {"tags": ["a,b"]},
    )
    await db.execute("INSERT INTO mailing_texts (mailing_id, version, text) VALUES ($1, 1, 'x')", mailing_id)
    path = f"/admin/mailings/{mailing_id}"
    assert "CET" in (await browser.get(path)).text

    await browser.press(f"{path}/edit", f"{path}/edit", name="touched")

    row = await db.fetchrow("SELECT name, ends_at, filter FROM mailings WHERE id = $1", mailing_id)
    assert row is not None
    assert dict(row) == {"name": "touched", "ends_at": ends_at, "filter": {"tags": ["a,b"]}}


async def test_after_the_start_the_audience_is_settled(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    mailing_id = await insert_everything(db, "running")
    path = f"/admin/mailings/{mailing_id}/edit"
    page = await browser.get(path)
    assert "are settled" in page.text
    numbers = await statistics.of_mailing(db, mailing_id)
    gone = sum(numbers.messages[each] for each in (Status.SENT, Status.DELIVERED, Status.UNDELIVERED))
    assert f"not sent yet ({gone} of {numbers.audience} are sent)." in page.text
    assert "operator_codes" not in page.form(path)
    done = await browser.press(path, path, text="another", audience="everybody", starts_at="2000-01-01T00:00")
    assert "is changed. Messages that are not sent yet get the new text." in done.text
    assert "new text" not in (await browser.press(path, path, name="another")).text

    await db.execute("UPDATE mailings SET status = 'finished', over_at = now()")
    late = await browser.post(path, page.form(path) | {"version": "3", "text": "too late"})
    assert late.status == 409
    assert "nothing can be changed any more" in late.text


@pytest.mark.parametrize("status", ["running", "finished"])
async def test_a_mailing_shows_its_numbers_and_its_messages_by_status(browser: Browser, db: Pool, status: str) -> None:
    await browser.log_in()
    mailing_id = await insert_everything(db, status)
    path = f"/admin/mailings/{mailing_id}"
    page = await browser.get(path)
    assert page.status == 200
    assert ('hx-trigger="every 1s"' in page.html) == (status == "running")
    live = await browser.get(path, **{"HX-Request": "true"})
    assert live.html.strip().startswith('<div id="live"')
    assert "<html" not in live.html
    for each in Status:
        listed = await browser.get(f"{path}?status={each}")
        assert listed.status == 200
        assert 'aria-current="true"' in listed.html
    if status == "running":  # what was started last comes first; the whole list has pages
        assert "Started last" in page.text
        assert 'rel="next"' not in page.html
        page = await browser.get(f"{path}?all=1")
    older = re.search(r'href="([^"]*)" rel="next"', page.html)
    assert older
    assert "« Newest" in (await browser.get(unescape(older[1]).partition("#")[0])).text
    for name in (f"/admin/mailings?status={status}", "/admin/"):
        assert f'href="{path}"' in (await browser.get(name)).html


async def test_the_tiles_add_up_to_the_messages(browser: Browser, db: Pool) -> None:
    """One mailing runs, one was cancelled and one came to its end; 5 of each wait, or never were sent."""
    await browser.log_in()
    paths = [HOME]
    stands = {"sent": 7, "delivered": 1, "undelivered": 2, "failed": 3, "unknown": 4, "suppressed": 1, "retrying": 2}
    for status in ("running", "cancelled", "finished"):
        mailing_id = await insert_mailing(db, status)
        await db.execute("UPDATE mailings SET audience = 25 WHERE id = $1", mailing_id)
        for state, count in stands.items():
            await db.execute("INSERT INTO counters VALUES ($1, 0, $2, $3, now(), now())", mailing_id, state, count)
        paths.append(f"/admin/mailings/{mailing_id}")
    for path in paths:
        html = (await browser.get(path)).html
        tiles = {
            name: int(re.sub(r"<[^>]*>", "", value))
            for name, value in re.findall(
                r'<div class="tile [^"]*"><span>(.*?)</span><strong>(.*?)</strong>', html, re.S
            )
            if name not in ("A second", "Left", "Took")
        }
        whole = tiles.pop("Messages" if path == HOME else "Recipients")
        assert sum(tiles.values()) == whole, (path, tiles)
        assert ("Cancelled" in tiles) == (path in paths[:1] + paths[2:3])


async def test_the_list_goes_on_page_by_page(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    for _ in range(21):
        await insert_mailing(db, "draft")
    page = await browser.get("/admin/mailings?status=draft")
    assert page.html.count("<tr>") == 1 + 20
    older = re.search(r'href="([^"]*)" rel="next"', page.html)
    assert older
    assert (await browser.get(unescape(older[1]))).html.count("<tr>") == 1 + 1
    assert "No mailing is paused" in (await browser.get("/admin/mailings?status=paused")).text


async def test_why_a_mailing_waits_is_said_in_words(make_api: MakeApi) -> None:
    api = make_api(pause_all=True)
    browser = await Browser(api).log_in()
    path = (await browser.send(text="a", audience="everybody")).location
    assert "paused by its settings (PAUSE_ALL)" in (await browser.get(path)).text
    await browser.press("/admin/gateways/default", "/admin/gateways/default/pause")
    assert "Waits: the gateway is paused." in (await browser.get(path)).text


async def test_a_copy_of_the_database_is_released_with_a_button(make_api: MakeApi, db: Pool) -> None:
    await Hold(db, "production").begin()
    hold = Hold(db, "staging")
    await hold.begin()
    api = make_api(hold=hold)
    browser = await Browser(api).log_in()
    path = (await browser.send(text="a", audience="everybody")).location
    assert "this database looks like a copy, and was not released" in (await browser.get(path)).text
    for page in (HOME, "/admin/clients"):
        assert "last used by the installation 'production', and INSTANCE is 'staging'" in (await browser.get(page)).text
    assert "1 mailing scheduled or running" in (await browser.get("/admin/release")).text
    moving = {"HX-Request": "true"}
    for page, state in ((HOME, "Sending: Held"), ("/admin/gateways/default", "Gateway Held")):
        assert (await browser.get(page)).text.count("This database looks like a copy") == 1
        shown = await browser.call("GET", page, moving)  # what an open page asks for every two seconds
        assert state in shown.text
        assert "looks like a copy" in shown.text
    await browser.press("/admin/release", "/admin/release")
    assert "looks like a copy" not in (await browser.get(path)).text
    for page, state in ((HOME, "Sending: Running"), ("/admin/gateways/default", "Gateway Running")):
        shown = await browser.call("GET", page, moving)
        assert state in shown.text
        assert "looks like a copy" not in shown.text
    assert (await browser.get("/admin/release")).location == HOME


# ---- messages


async def test_a_message_shows_its_timeline_and_an_unknown_one_is_resolved(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    mailing_id = await insert_mailing(db)
    clients = await insert_clients(db, 2)
    await insert_slice(db, mailing_id, 1, clients)
    await insert_attempts(db, mailing_id, 1, ("unavailable", "retrying"), ("unknown", "unknown"))
    await db.execute("UPDATE attempts SET detail = $1, reason = 'timeout', status_code = 408 WHERE seq = 2", SCRIPT)

    page = await browser.get("/admin/messages/1")
    for word in ("Gateway unavailable", "No whole answer in time", "HTTP 408", "Was it sent?"):
        assert word in page.text, word
    assert '"Outcome">Unknown<' in page.html
    assert SCRIPT not in page.html
    assert SCRIPT in page.text or "alert(1)" in page.text

    await db.execute("UPDATE mailings SET audience = 2")
    await db.execute("INSERT INTO counters VALUES ($1, 0, 'unknown', 1, now(), now())", mailing_id)
    assert 'href="/admin/mailings?with=unknown"' in tile(await browser.get("/admin/"), "unknown")
    assert f'href="/admin/mailings/{mailing_id}"' in (await browser.get("/admin/mailings?with=unknown")).html
    assert "No mailing has failed messages" in (await browser.get("/admin/mailings?with=failed")).text
    there = f"/admin/mailings/{mailing_id}?status=unknown"
    assert f'href="{there}#messages"' in (await browser.get("/admin/mailings")).html
    assert f'href="{there}#messages"' in tile(await browser.get(f"/admin/mailings/{mailing_id}"), "unknown")
    listed = await browser.get(there)
    assert "Unknown: may have been sent; nobody can know. Open a message to decide" in listed.text
    assert 'href="/admin/messages/1"' in listed.html

    done = await browser.press("/admin/messages/1", "/admin/messages/1/resolve", **{"as": "sent"})
    assert "counts as sent" in done.text
    assert "Resolved by hand" in done.text
    again = await browser.post("/admin/messages/1/resolve", page.form("/admin/messages/1/resolve") | {"as": "failed"})
    assert "Only a message that is unknown" in (await browser.get(again.location)).text
    wrong = await browser.post("/admin/messages/1/resolve", page.form("/admin/messages/1/resolve") | {"as": "x"})
    assert wrong.status == 422

    await browser.press(f"/admin/clients/{clients[0]}/delete", f"/admin/clients/{clients[0]}/delete")
    gone = await browser.get("/admin/messages/1")
    assert "Message to a deleted client" in gone.text
    assert f"/admin/clients/{clients[0]}" not in gone.html
    assert f"Client {clients[0]} (deleted)" in (await browser.get(f"/admin/mailings/{mailing_id}")).text


# ---- clients


async def test_a_client_is_added_found_changed_and_deleted(browser: Browser) -> None:
    await browser.log_in()
    assert "There are no clients yet" in (await browser.get("/admin/clients")).text
    made = await browser.submit(
        "/admin/clients/new", "/admin/clients",
        phone="8 (916) 123-45-67", tags="vip, new", timezone="Europe/Moscow", attributes="city: Kazan: old\nname: Anna",
    )  # fmt: skip
    path = made.location
    page = await browser.get(path)
    form = page.form(path)
    assert "The client is added." in page.text
    assert form["phone"] == "+7 916 123-45-67"
    assert (form["operator_code"], form["tags"]) == ("916", "vip, new")
    assert form["attributes"] == "city: Kazan: old\nname: Anna"

    for query in ("phone=%2B79161234567", "operator_code=916&phone=", "tag=vip"):
        assert "+7 916 123-45-67" in (await browser.get(f"/admin/clients?{query}")).text
    assert "No client matches" in (await browser.get("/admin/clients?tag=nobody")).text
    wrong = await browser.get("/admin/clients?phone=12")
    assert wrong.status == 422
    assert wrong.error("phone").startswith("This is too short: it has 2 digits")
    wrong = await browser.get("/admin/clients?phone=Anna")
    assert "at character 1: write digits, spaces, +, - and brackets only, like +7" in wrong.error("phone")

    changed = await browser.press(path, path, phone="+7 926 000-00-00", timezone="", attributes="name: Anna")
    assert changed.form(path)["operator_code"] == "926"
    assert "has not been texted" in changed.text
    assert (await browser.post(path, form)).status == 412
    taken = await browser.submit("/admin/clients/new", "/admin/clients", phone="+7 926 000 00 00")
    assert taken.status == 409
    assert taken.error("phone").startswith("Another client has this phone")
    assert f'href="{path}"' in taken.html

    assert "is deleted" in (await browser.press(f"{path}/delete", f"{path}/delete")).text
    assert (await browser.get(path)).status == 404


async def test_a_clients_errors_stand_beside_their_fields(browser: Browser) -> None:
    await browser.log_in()
    page = await browser.submit(
        "/admin/clients/new", "/admin/clients",
        phone="12", operator_code="x", tags="a" * 65, timezone="Mars/Base", attributes="no colon\na: 1\na: 2",
    )  # fmt: skip
    assert page.status == 422
    for name in ("phone", "operator_code", "tags", "timezone", "attributes"):
        assert page.error(name)
    assert page.form("/admin/clients")["timezone"] == "Mars/Base"

    said = {"phone": "79161234567, 79031234567", "timezone": "msk", "operator_code": "", "tags": "", "attributes": ""}
    page = await browser.submit("/admin/clients/new", "/admin/clients", **said)
    assert page.error("phone") == "This has a second number, “79031234567”: give one."
    assert page.error("timezone") == "This is no time zone: did you mean Europe/Moscow?"
    found = await browser.get("/admin/clients?phone=%2B7+610+876-56-56")
    assert found.error("phone").startswith("This is a number that cannot exist")


async def test_attributes_that_no_line_can_hold_stay(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    attributes = {"name": "Anna", "age": 7, "note": "two\nlines", "a:b": "c"}
    client_id = await db.fetchval(
        "INSERT INTO clients (phone, operator_code, attributes) VALUES (79161234567, '916', $1) RETURNING id",
        attributes,
    )
    path = f"/admin/clients/{client_id}"
    changed = await browser.press(path, path, attributes="name: Boris")
    assert changed.form(path)["attributes"] == "name: Boris"
    stored = await db.fetchval("SELECT attributes FROM clients")
    assert stored == {**attributes, "name": "Boris"}

    reset = await browser.press(path, path, operator_code="777")
    assert reset.form(path)["operator_code"] == "777"
    assert (await browser.press(path, path, operator_code="")).form(path)["operator_code"] == "916"


# ---- gateways


async def test_the_gateway_is_paused_resumed_and_limited(browser: Browser) -> None:
    await browser.log_in()
    path = "/admin/gateways/default"
    assert "Running" in (await browser.get(path)).text
    assert "nothing is sent" in (await browser.press(path, f"{path}/pause")).text
    assert "The gateway is paused" in (await browser.get("/admin/")).text
    assert "is resumed" in (await browser.press(path, f"{path}/resume")).text

    form = (await browser.get(path)).form(path)
    changed = await browser.press(path, path, concurrency="7", rate="2,5")
    assert "7 requests at once, 2.5 messages a second" in changed.text
    assert changed.form(path)["rate"] == "2.5"
    assert (await browser.post(path, form | {"rate": "1"})).status == 412
    wrong = await browser.submit(path, path, concurrency="many", rate="-1")
    assert wrong.error("concurrency") == "This must be an integer."
    assert wrong.error("rate").startswith("This must be 0")
    assert "100 requests at once, any number" in (await browser.press(path, path, concurrency="", rate="")).text


async def test_what_a_gateway_says_is_shown_and_never_markup(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    at = "2026-03-01T09:00:00.000000Z"
    error = {"at": at, "first_at": at, "count": 12, "message_id": 7, "detail": f"down {SCRIPT}"}
    await gateways.note_errors(db, "default", [error | {"outcome": "unknown", "status_code": 500, "reason": None}])
    await gateways.open_breaker(db, "default", f"The gateway answered 500: down {SCRIPT}.")
    page = await browser.get("/admin/gateways/default")
    assert "is out of order. The gateway answered 500: down" in page.text
    assert "12 since" in page.text
    assert 'href="/admin/messages/7"' in page.html
    await gateways.misconfigured(db, "default", "redirected", f"The gateway answered 301: it points to {SCRIPT}.")
    page = await browser.get("/admin/gateways/default")
    assert "it points to" in page.text
    assert "<script>alert" not in page.html


async def test_the_next_probe_is_told_only_while_it_is_ahead(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    await gateways.open_breaker(db, "default", "The gateway answered 500.")
    assert "until the next probe, at" in (await browser.get("/admin/gateways/default")).text
    assert "Sending: Out of order" in (await browser.get(HOME)).text
    await db.execute("UPDATE gateways SET retry_at = now() - interval '1 s'")
    page = (await browser.get("/admin/gateways/default")).text
    assert "until the next probe" in page
    assert "until the next probe, at" not in page


async def test_a_retry_whose_time_has_come_is_due(browser: Browser, db: Pool) -> None:
    """Message 1 is tried again in an hour, and then its time is past."""
    await browser.log_in()
    mailing_id = await insert_mailing(db)
    await insert_slice(db, mailing_id, 1, await insert_clients(db, 1))
    await insert_attempts(db, mailing_id, 1, ("unavailable", "retrying"))
    await insert_batch(db, mailing_id, [1], 2, "retrying")
    lists = f"/admin/mailings/{mailing_id}?status=retrying"
    await db.execute("UPDATE batches SET due_at = now() + interval '1 h'")
    assert "again at" in (await browser.get(lists)).text
    await db.execute("UPDATE batches SET due_at = now() - interval '1 h'")
    page = (await browser.get(lists)).text
    assert "again at" not in page
    assert "1 due" in page
    assert "Next attempt due" in (await browser.get("/admin/messages/1")).text


async def test_without_a_gateway_the_pages_say_what_to_do(make_api: MakeApi) -> None:
    api = make_api()
    defaults = api.context.gateway
    browser = await Browser(make_api(gateway=type(defaults)(None, 100, 0.0, 15.0, "retry"))).log_in()
    for path in ("/admin/", "/admin/gateways/default"):
        assert "Set GATEWAY_URL" in (await browser.get(path)).text


# ---- what is typed is never markup


async def test_text_and_names_are_escaped(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    path = (
        await browser.submit(
            "/admin/mailings/new", "/admin/mailings",
            name=SCRIPT, text=f"</textarea>{SCRIPT}", tags=f'"{SCRIPT}"', draft="1",
        )
    ).location  # fmt: skip
    client = (
        await browser.submit(
            "/admin/clients/new", "/admin/clients", phone="+79161234567", tags=SCRIPT, attributes=f"{SCRIPT}: {SCRIPT}"
        )
    ).location
    for each in (path, f"{path}/edit", f"{path}/delete", "/admin/mailings", "/admin/", client, "/admin/clients",
                 f"/admin/clients?tag={SCRIPT}", f"/admin/clients?phone={SCRIPT}", f"/admin/{SCRIPT}"):  # fmt: skip
        page = await browser.get(each)
        assert "<script>alert" not in page.html, each
        assert "</textarea><script" not in page.html, each
    assert (await browser.get(f"{path}/edit")).form(f"{path}/edit")["text"] == f"</textarea>{SCRIPT}"
    deleted = await browser.press(f"{path}/delete", f"{path}/delete")
    assert "<script>alert" not in deleted.html
    assert SCRIPT in unescape(deleted.html)


# ---- parts


def test_every_name_has_words() -> None:
    statuses = (models.Status, models.MailingStatus, models.GatewayState, models.BreakerState, models.OnUnknown)
    assert {str(name) for each in statuses for name in each} == {str(name) for name in words.STATUSES}
    assert set(words.REASONS) == set(models.Reason)
    assert set(words.OUTCOMES) == set(models.Outcome)
    assert set(words.MEANINGS) == set(models.Status)
    assert set(words.MAILING_REASONS) == set(models.StatusReason)
    assert words.reason("something_new") == "Something new"
    assert words.mailing_reason("something_new") == "Something new"


def test_times_are_read_in_the_zone_and_hours_that_are_none_refused() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    assert read_time("2026-01-31T09:00", berlin) == "2026-01-31T08:00:00.000000Z"
    assert read_time("2026-10-25T02:30", berlin) == "2026-10-25T00:30:00.000000Z"  # of two the first
    with pytest.raises(ValueError, match=r"skip this time; 03:30 is the same moment"):
        read_time("2026-03-29T02:30", berlin)
    for text in ("soon", "2026-13-01T00:00", "2026-01-31T09:00Z"):
        with pytest.raises(ValueError, match="no time"):
            read_time(text, berlin)
    assert read_time("0001-01-01T00:00", berlin) == "0001-01-01T00:00:00Z"  # the schema says which years
    assert show_time(datetime(2026, 1, 31, 8, 0, 0, 5, UTC), berlin) == "2026-01-31T09:00"
    assert show_time(datetime(2026, 1, 31, 8, 0, 7, tzinfo=UTC), berlin) == "2026-01-31T09:00:07"


def test_times_numbers_and_phones_as_people_read_them() -> None:
    moment = datetime(2026, 1, 31, 6, 0, 5, tzinfo=UTC)
    assert words.moment(moment, ZoneInfo("Europe/Moscow")).replace("\xa0", " ") == "31 Jan 2026, 09:00 MSK"
    assert words.moment(moment, ZoneInfo("Asia/Almaty"), seconds=True).endswith("11:00:05\xa0UTC+05")
    assert words.number(1234567) == "1\u202f234\u202f567"
    assert (words.number(2.5), words.number(2.0), words.number(1234.5)) == ("2.5", "2", "1\u202f234")
    assert words.span(timedelta(hours=2, minutes=5, seconds=9)) == "2\xa0h 5\xa0min"
    assert words.span(timedelta(seconds=-3)) == "0\xa0s"
    assert words.size(1, "message") == "1 message"
    assert (words.phone(79161234567), words.phone(None), words.phone(1)) == ("+7 916 123-45-67", "", "+1")


def test_lists_go_through_a_field_unchanged() -> None:
    for members in (["a", "b"], ["a, b", 'say "hi"'], ["x"], [], ["a,b", "c"]):
        assert several(as_text(members)) == members
    assert several("a,\n b ,, \r\n c") == ["a", "b", "c"]
    assert several("x" * 200_000) == ["x" * 200_000]


def test_the_bar_adds_up() -> None:
    messages = dict.fromkeys(Status, 0) | {Status.SENT: 1, Status.FAILED: 1, Status.WAITING: 2}
    progress = Progress(4, messages)
    assert [(each.status, each.start, each.length) for each in progress.segments] == [
        (Status.SENT, 0.0, 250.0),
        (Status.FAILED, 250.0, 250.0),
    ]
    assert (progress.open, progress.percent) == (2, 50)
    assert Progress(0, dict.fromkeys(Status, 0)).percent == 0


def test_a_problem_without_a_field_is_said_of_the_whole_form() -> None:
    form = Form({"name": ""})
    form.blame(Invalid([Problem("/elsewhere/0", "is odd"), Problem("", "is odd too")]), {})
    assert form.errors == {"": ["elsewhere: This is odd.", "This is odd too."]}


async def test_a_mailing_outside_its_hours_says_when_it_goes_on(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    mailing_id = await insert_mailing(db)
    await insert_slice(db, mailing_id, 1001, await insert_clients(db, 1))
    await db.execute("UPDATE mailings SET window_from = '09:00', window_to = '21:00', ends_at = '2200-02-01Z'")
    await db.execute(
        """
        INSERT INTO batches (mailing_id, due_at, first_id, last_id, size, seq, state)
        VALUES ($1, '2200-01-31T09:00Z', 1001, 1001, 1, 1, 'waiting')
        """,
        mailing_id,
    )
    page = await browser.get(f"/admin/mailings/{mailing_id}")
    assert "Waits for the clients' local hours. The next are sent at 31 Jan 2200, 09:00 UTC" in page.text
    row = page.text.partition("Why Attempts When")[2]
    assert "Waiting Outside the client's local hours 0 at 31 Jan 2200, 09:00 UTC" in row
    assert "Waits for the clients' local hours." in (await browser.get("/admin/")).text
    assert ">Waiting<" in page.html.partition("<h1>")[2].partition("</h1>")[0]

    await db.execute("UPDATE mailings SET ends_at = '2200-01-31T08:00Z'")
    page = await browser.get(f"/admin/mailings/{mailing_id}")
    assert "The next are sent" not in page.text
    assert "None of those hours begin before its end, 31 Jan 2200, 08:00 UTC" in page.text


# ---- what is shown is so


async def over_with(db: Pool, **messages: int) -> str:
    """The page of a finished mailing whose messages stand so."""
    mailing_id = await insert_mailing(db, "finished")
    await insert_slice(db, mailing_id, 1, await insert_clients(db, sum(messages.values())))
    first = 1
    for state, count in messages.items():
        for message_id in range(first, first + count):
            if state != "waiting":
                await insert_attempts(db, mailing_id, message_id, ("unknown", state))
        if state != "waiting":
            await db.execute("INSERT INTO counters VALUES ($1, 0, $2, $3, now(), now())", mailing_id, state, count)
        first += count
    await db.execute(
        "UPDATE mailings SET audience = $2, planned = true, over_at = now(), status_reason = 'ended' WHERE id = $1",
        mailing_id,
        sum(messages.values()),
    )
    return f"/admin/mailings/{mailing_id}"


def heading(page: Shown) -> str:
    return page.html.partition("<h1>")[2].partition("</h1>")[0]


async def test_a_mailing_that_texted_nobody_is_not_called_finished(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    path = await over_with(db, waiting=3)
    page = await browser.get(path)
    assert ">Ended<" in heading(page)
    assert "Finished" not in page.text
    assert "Nobody was texted" in page.text
    assert "100 %" not in page.text
    assert f'href="{path}?status=expired#messages"' in page.html.partition(">Expired<")[2].partition("</div>")[0]
    assert ">Ended<" in (await browser.get("/admin/mailings")).html


async def test_a_mailing_that_is_over_says_how_many_are_to_decide(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    path = await over_with(db, sent=4, unknown=2)
    page = await browser.get(path)
    assert ">Finished<" in heading(page)
    assert "4 of 6 sent" in page.text
    assert "2 messages to decide: nobody can know from here whether they were sent. Look at them" in page.text
    assert f'href="{path}?status=unknown#messages">Look at them' in page.html


async def test_when_a_message_failed_and_what_it_said(browser: Browser, db: Pool) -> None:
    """Failed before the mailing's text was edited."""
    await browser.log_in()
    path = await over_with(db, failed=1)
    mailing_id = int(path.rpartition("/")[2])
    await db.execute("UPDATE attempts SET text_version = 1, started_at = '2026-03-01T08:00:05Z', duration_ms = 0")
    await db.execute("INSERT INTO mailing_texts (mailing_id, version, text) VALUES ($1, 2, 'Edited')", mailing_id)
    await db.execute("UPDATE mailings SET text_version = 2, name = 'Spring sale'")
    assert "1 Mar 2026, 08:00:05 UTC" in (await browser.get(path)).text.partition("Why Attempts When")[2]
    message = await browser.get("/admin/messages/1")
    assert 'class="bubble">Hi<' in message.html
    assert "the mailing's text was changed since" in message.text
    client_id = await db.fetchval("SELECT client_id FROM messages")
    assert "Spring sale Failed" in (await browser.get(f"/admin/clients/{client_id}")).text.replace("\xa0", " ")


async def test_a_draft_is_deleted_and_not_cancelled(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    page = await browser.get(f"/admin/mailings/{await insert_mailing(db, 'draft')}")
    assert "Delete…" in page.text
    assert "Cancel…" not in page.text


async def test_the_main_button_is_the_way_back_where_nobody_matches(browser: Browser) -> None:
    await browser.log_in()
    asked = await browser.submit("/admin/mailings/new", "/admin/mailings", text="a", tags="typo")
    assert '<button type="submit" name="back" value="1">Back to the form</button>' in asked.html
    assert re.search(r'name="sure" value="1" class="secondary outline">Send to nobody', asked.html)


async def test_an_end_in_the_past_is_told_with_all_other_errors(browser: Browser) -> None:
    await browser.log_in()
    wrong = await browser.submit(
        "/admin/mailings/new", "/admin/mailings", text="", tags="", priority="99", ends_at="2020-01-01T00:00"
    )
    assert wrong.status == 422
    assert wrong.error("ends_at") == "This lies in the past: the mailing would be over already."
    assert wrong.error("text") == "This must not be empty."
    assert "This must be" in wrong.error("priority")
    assert "Give an operator code" in wrong.error("audience")
    # the cursor goes into the first field that is wrong
    assert re.findall(r'name="(\w+)"[^>]*autofocus', wrong.html) == ["text"]


async def test_a_form_that_is_wrong_as_a_whole_is_read_out(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    mailing_id = await insert_mailing(db, "draft")
    path = f"/admin/mailings/{mailing_id}/edit"
    stale = await browser.submit(path, path, version="7")
    assert stale.status == 412
    assert re.search(r'role="alert" tabindex="-1" autofocus', stale.html)


async def test_a_client_page_carries_only_the_zones_in_use(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    [client_id] = await insert_clients(db, 1)
    await db.execute("UPDATE clients SET timezone = 'Asia/Omsk'")
    for path in (f"/admin/clients/{client_id}", "/admin/clients/new"):
        assert re.findall('<option value="([^"]*)"', (await browser.get(path)).html) == ["Asia/Omsk"]


async def test_a_client_page_says_once_what_an_empty_zone_is(make_api: MakeApi) -> None:
    browser = await Browser(make_api(default_timezone="Europe/Moscow")).log_in()
    hint = (await browser.get("/admin/clients/new")).html.partition('id="timezone-hint">')[2].partition("</small>")[0]
    assert hint.count("Europe/Moscow") == 1
    assert "Empty: Europe/Moscow" in hint


@pytest.mark.parametrize("how", ["pause", "cancel", "429"])
async def test_speed_and_time_left_stand_still_for_nobody(browser: Browser, db: Pool, how: str) -> None:
    """They are those of the last ten seconds, so what has just stopped would go on with them."""
    await browser.log_in()
    mailing_id = await insert_everything(db, "running")
    path = f"/admin/mailings/{mailing_id}"
    await db.execute(
        """
        INSERT INTO series
        SELECT $1, 0, to_timestamp(10 * (floor(extract(epoch FROM now()) / 10) - ago)), 90, 0
        FROM generate_series(-1, 2) ago  -- also the next one, should it begin meanwhile
        """,
        mailing_id,
    )
    live = (await browser.get(path)).text
    assert re.search(r"A second [1-9]", live)
    assert "Left –" not in live
    if how == "429":
        await gateways.throttle(db, "default", 60, await mailings.clock(db))
    else:
        await mailings.act(db, mailing_id, how)
    stopped = (await browser.get(path)).text
    if how == "cancel":
        assert "A second" not in stopped
        assert "Left" not in stopped
    else:
        assert "A second 0 Left –" in stopped


async def test_a_late_start_is_told(browser: Browser, db: Pool) -> None:
    """It was due while nothing ran."""
    await browser.log_in()
    path = f"/admin/mailings/{await insert_mailing(db, 'scheduled')}"
    await db.execute("UPDATE mailings SET starts_at = now() - interval '5 h', planned = false")
    page = (await browser.get(path)).text.replace("\xa0", " ")
    assert "for 5 h: it starts as soon as a process that sends is running." in page
    await db.execute(
        "UPDATE mailings SET status = 'running', horizon = 0, started_at = starts_at + interval '5 h 2 min'"
    )
    assert "5 h 2 min later" in (await browser.get(path)).text.replace("\xa0", " ")
    await db.execute("UPDATE mailings SET started_at = starts_at + interval '1 s'")
    assert "later" not in (await browser.get(path)).text


async def test_what_stops_a_gateway_is_said_once(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    await db.execute("UPDATE gateways SET state = 'misconfigured', reason = 'payment_required'")
    page = await browser.get("/admin/")
    assert "The gateway demands payment: the balance may be used up. Nothing is sent until" in page.text


async def test_the_review_names_who_is_out_of_reach(browser: Browser, db: Pool) -> None:
    """From 10:00 to 12:00 UTC, in the hours 09:00 to 18:00: Tomsk is within them, Honolulu and Chicago begin later."""
    await browser.log_in()
    await insert_clients(db, 6)
    zones = ["Asia/Tomsk", "Asia/Tomsk", None, "Pacific/Honolulu", "Pacific/Honolulu", "America/Chicago"]
    await db.execute(
        "UPDATE clients c SET timezone = z FROM unnest($1::text[]) WITH ORDINALITY t (z, n) WHERE c.id = n", zones
    )
    given = {
        "text": "a", "audience": "everybody", "starts_at": "2100-01-15T10:00", "ends_at": "2100-01-15T12:00",
        "window_from": "09:00", "window_to": "18:00",
    }  # fmt: skip
    asked = await browser.submit("/admin/mailings/new", "/admin/mailings", **given)
    assert "3 clients of the 6 that match will not be texted" in asked.text
    assert "Pacific/Honolulu 2 15 Jan 2100, 19:00 UTC America/Chicago 1 15 Jan 2100, 15:00 UTC" in asked.text.replace(
        "\xa0", " "
    )
    assert "Asia/Tomsk" not in asked.text
    assert 'name="sure" value="1">Send<' in asked.html

    none = await browser.submit(
        "/admin/mailings/new", "/admin/mailings", **(given | {"window_from": "13:00", "window_to": "14:00"})
    )
    assert "Nobody will be texted: no client's local hours begin before the end." in none.text
    assert "Send to nobody" in none.text

    whole_day = given | {"window_from": "", "window_to": ""}
    assert (
        "will not be texted" not in (await browser.submit("/admin/mailings/new", "/admin/mailings", **whole_day)).text
    )
