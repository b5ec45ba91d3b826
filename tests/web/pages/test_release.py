"""A database that looks like a copy, and the button that releases it."""

from __future__ import annotations

from notifier.storage.database import Pool
from notifier.storage.installation import Hold
from notifier.web.pages.base import HOME
from tests.web.conftest import MakeApi
from tests.web.pages.browser import Browser


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
