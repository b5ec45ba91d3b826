"""The form of a mailing: what is wrong stands beside its field, and nobody is texted before it was said how many."""

from __future__ import annotations

import asyncio
import re
from datetime import UTC, datetime
from html import unescape

import pytest

from notifier.models import Status
from notifier.storage import mailing_lifecycle, statistics
from notifier.storage.database import Pool
from notifier.web import schemas
from notifier.web.pages import words
from tests.storage.message_scenes import insert_clients, insert_everything, insert_mailing
from tests.web.conftest import MakeApi
from tests.web.pages.browser import SCRIPT, SOON, Browser


async def test_a_mailing_to_nobody_says_so(browser: Browser) -> None:
    await browser.log_in()
    db = browser.api.context.db
    mailing_id = await insert_mailing(db)
    await db.execute("UPDATE mailings SET planned = true, status = 'running', over_at = NULL")
    assert await mailing_lifecycle.close(db, mailing_id)
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
