"""What all pages share: who must be logged in, whose forms are taken, errors as pages, text that is never markup."""

from __future__ import annotations

import re
from html import unescape

import pytest

from notifier.storage.database import Pool
from notifier.web.auth import Caller, digest_of
from notifier.web.routes import ROUTES
from tests.web.conftest import TOKEN, MakeApi
from tests.web.pages.browser import SCRIPT, SOON, Browser


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
