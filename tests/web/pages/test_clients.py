"""The pages of clients."""

from __future__ import annotations

import re

from notifier.storage.database import Pool
from tests.storage.message_scenes import insert_clients
from tests.web.conftest import MakeApi
from tests.web.pages.browser import Browser


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
