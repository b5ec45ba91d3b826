"""The page of a gateway, and what other pages say of it."""

from __future__ import annotations

from notifier.storage import gateways
from notifier.storage.database import Pool
from notifier.web.pages.base import HOME
from tests.web.conftest import MakeApi
from tests.web.pages.browser import SCRIPT, Browser


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


async def test_without_a_gateway_the_pages_say_what_to_do(make_api: MakeApi) -> None:
    api = make_api()
    defaults = api.context.gateway
    browser = await Browser(make_api(gateway=type(defaults)(None, 100, 0.0, 15.0, "retry"))).log_in()
    for path in ("/admin/", "/admin/gateways/default"):
        assert "Set GATEWAY_URL" in (await browser.get(path)).text


async def test_what_stops_a_gateway_is_said_once(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    await db.execute("UPDATE gateways SET state = 'misconfigured', reason = 'payment_required'")
    page = await browser.get("/admin/")
    assert "The gateway demands payment: the balance may be used up. Nothing is sent until" in page.text
