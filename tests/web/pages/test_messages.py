"""The page of one message."""

from __future__ import annotations

from notifier.storage.database import Pool
from tests.storage.message_scenes import insert_attempts, insert_batch, insert_clients, insert_mailing, insert_slice
from tests.web.pages.browser import SCRIPT, Browser, tile
from tests.web.pages.scenes import over_with


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
