"""The lists of mailings, the page of one, and what is done with it."""

from __future__ import annotations

import re
from html import unescape

import pytest

from notifier.models import Status
from notifier.storage import gateways, mailings
from notifier.storage.database import Pool
from notifier.web.pages.base import HOME
from tests.storage.message_scenes import insert_clients, insert_everything, insert_mailing, insert_slice
from tests.web.conftest import MakeApi
from tests.web.pages.browser import SOON, Browser, Shown
from tests.web.pages.scenes import over_with


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


async def test_a_draft_is_deleted_and_not_cancelled(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    page = await browser.get(f"/admin/mailings/{await insert_mailing(db, 'draft')}")
    assert "Delete…" in page.text
    assert "Cancel…" not in page.text


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
