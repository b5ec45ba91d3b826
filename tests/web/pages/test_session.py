"""Logging in and out: what a session is, what ends it, whose forms are taken, and what guessing costs."""

from __future__ import annotations

import asyncio
import re
from hashlib import sha256
from ipaddress import ip_network
from typing import Any

import pytest
from structlog.typing import EventDict

from notifier.storage.database import Pool
from notifier.web.addresses import PublicUrl
from notifier.web.auth import Caller, bootstrap_token, digest_of
from notifier.web.budgets import FAILURES_MAX
from tests.web.conftest import TOKEN, Api, MakeApi
from tests.web.pages.browser import SOON, Browser

MAILING = {"name": "forged", "text": "x", "audience": "everybody", "ends_at": SOON, "draft": "1"}
PROXIED = (ip_network("127.0.0.1"),)
HTTPS = PublicUrl.of("https://notifier.example")


async def sessions(db: Pool) -> int:
    count: int = await db.fetchval("SELECT count(*) FROM sessions")
    return count


async def is_in(browser: Browser) -> bool:
    return (await browser.get("/admin/mailings")).status == 200


# ---- the session


async def test_a_cookie_is_a_random_secret_of_which_the_database_has_the_hash(browser: Browser, db: Pool) -> None:
    """Neither cookie nor row tell anything of the token, and two log-ins have nothing in common."""
    await browser.log_in()
    first = browser.cookies["notifier"]
    assert re.fullmatch(r"[\w-]{43}", first)  # 256 bits
    row = await db.fetchrow("SELECT * FROM sessions")
    assert row is not None
    assert row["hash"] == sha256(first.encode()).digest()
    stored = b"".join(value for value in row.values() if isinstance(value, bytes))
    assert digest_of(TOKEN) not in stored
    assert first.encode() not in stored
    browser.cookies.clear()
    await browser.log_in()
    assert browser.cookies["notifier"] != first
    assert len({row["token"] for row in await db.fetch("SELECT token FROM sessions")}) == 2


async def test_a_copied_cookie_is_nothing_after_the_log_out(browser: Browser, db: Pool) -> None:
    await browser.log_in()
    copied = Browser(browser.api, dict(browser.cookies))
    assert await is_in(copied)
    left = await browser.submit("/admin/", "/admin/logout")
    assert left.headers["Clear-Site-Data"] == '"cache"'
    assert "notifier" not in browser.cookies
    assert not await is_in(copied)
    assert await sessions(db) == 0


async def test_a_log_in_begins_a_new_session_and_ends_the_one_of_before(browser: Browser, db: Pool) -> None:
    form = (await browser.get("/admin/login")).form("/admin/login")
    planted = browser.cookies["notifier"] = "A" * 43  # whoever plants a cookie does not know the session
    await browser.post("/admin/login", form | {"token": TOKEN})
    first = browser.cookies["notifier"]
    assert first != planted
    await browser.post("/admin/login", form | {"token": TOKEN})
    assert browser.cookies["notifier"] != first
    assert await sessions(db) == 1


async def test_what_is_no_cookie_of_ours_is_nobody(browser: Browser) -> None:
    await browser.log_in()
    good = browser.cookies["notifier"]
    for bent in (good[:-1], good + "A", good[:-1] + ("A" if good[-1] != "A" else "B"), "", "é" * 43, "'; --", "2|1:0|"):
        browser.cookies["notifier"] = bent
        assert not await is_in(browser), bent


async def test_a_session_that_is_idle_or_old_ends_and_a_page_that_is_only_open_does_not_keep_it(
    browser: Browser, db: Pool
) -> None:
    await browser.log_in()

    async def idle() -> float:
        seconds: float = await db.fetchval("SELECT extract(epoch FROM now() - seen_at)::float FROM sessions")
        return seconds

    await db.execute("UPDATE sessions SET seen_at = now() - interval '50 minutes'")
    for _ in range(3):
        assert (await browser.get("/admin/", **{"HX-Request": "true"})).status == 200
    assert await idle() > 2990  # the open page has asked, nobody was there
    await browser.get("/admin/")
    assert await idle() < 10
    await db.execute("UPDATE sessions SET seen_at = now() - interval '61 minutes'")
    assert (await browser.get("/admin/", **{"HX-Request": "true"})).headers["HX-Refresh"] == "true"
    assert not await is_in(browser)
    await browser.log_in()
    await db.execute("UPDATE sessions SET expires_at = now()")
    assert not await is_in(browser)


async def test_a_session_is_gone_when_its_token_is(make_api: MakeApi, db: Pool) -> None:
    browser = await Browser(make_api()).log_in()
    browser.api = make_api(tokens=bootstrap_token("another-token-0123456789"))
    assert not await is_in(browser)
    browser.api = make_api()  # another replica that still knows it: the row is gone
    assert not await is_in(browser)


@pytest.mark.parametrize(
    ("changes", "headers", "name", "flags"),
    [
        ({}, {}, "notifier", {"Path=/"}),
        ({"public": PublicUrl.of("http://n.example/sms")}, {}, "notifier", {"Path=/sms/"}),
        ({"public": HTTPS}, {}, "__Host-notifier", {"Path=/", "Secure"}),
        ({"public": PublicUrl.of("https://notifier.example/sms")}, {}, "__Host-notifier", {"Path=/", "Secure"}),
        ({"proxies": PROXIED}, {"X-Forwarded-Proto": "https"}, "__Host-notifier", {"Path=/", "Secure"}),
        ({"proxies": PROXIED}, {"X-Forwarded-Proto": "https, http"}, "notifier", {"Path=/"}),
        ({}, {"X-Forwarded-Proto": "https"}, "notifier", {"Path=/"}),  # a stranger's header changes nothing
    ],
)
async def test_cookies_are_as_safe_as_the_address(
    make_api: MakeApi, changes: dict[str, Any], headers: dict[str, str], name: str, flags: set[str]
) -> None:
    api = make_api(**changes)
    api.headers |= headers | {"Host": "notifier.example"}
    prefix = api.context.public.prefix
    browser = Browser(api)
    form = (await browser.get("/admin/login")).form(f"{prefix}/admin/login")
    reply = await browser.post("/admin/login", form | {"token": TOKEN})
    cookie, *attributes = reply.headers["Set-Cookie"].split("; ")
    assert cookie.partition("=")[0] == name
    assert {each for each in attributes if not each.startswith("expires=")} == {*flags, "HttpOnly", "SameSite=Lax"}
    page = await browser.get("/admin/")
    assert page.status == 200
    await browser.post("/admin/logout", {})
    assert not await is_in(browser)


async def test_a_log_in_leads_only_to_pages_of_ours(browser: Browser) -> None:
    for path in ("//evil.example", "/\\evil.example", "/admin/\t//evil", "/admin/\r\nSet-Cookie:x",
                 "/admin/..//evil.example", "/admin/%2e%2e/other", "/admin/%2E./other",
                 "javascript:alert(1)", "https:evil.example", "/docs/",
                 "/admin/" + "x" * 5000):  # fmt: skip
        reply = await browser.post("/admin/login", {"token": TOKEN, "next": path})
        assert reply.location == "/admin/", path
    reply = await browser.post("/admin/login", {"token": TOKEN, "next": "/admin/clients?tag=a..b/../c"})
    assert reply.location == "/admin/clients?tag=a..b/../c"


# ---- forms


async def made(browser: Browser) -> bool:
    return "forged" in (await browser.get("/admin/mailings")).text


@pytest.mark.parametrize(
    ("headers", "host", "ours"),
    [
        ({"Sec-Fetch-Site": "same-origin"}, "notifier.example", True),
        ({"Sec-Fetch-Site": "none"}, "notifier.example", True),
        ({"Sec-Fetch-Site": "same-site"}, "notifier.example", False),
        ({"Sec-Fetch-Site": "cross-site"}, "notifier.example", False),
        ({"Sec-Fetch-Site": "cross-site", "Origin": "https://notifier.example"}, "notifier.example", False),
        ({"Origin": "https://notifier.example"}, "notifier.example", True),
        ({"Origin": "http://notifier.example"}, "notifier.example", False),
        ({"Origin": "https://evil.example"}, "notifier.example", False),
        ({"Origin": "https://notifier.example.evil.example"}, "notifier.example", False),
        ({"Origin": "null"}, "notifier.example", False),
        ({}, "notifier.example", True),  # no browser: the form's token decides
    ],
)
async def test_a_form_is_taken_from_our_own_pages_only(
    make_api: MakeApi, headers: dict[str, str], host: str, ours: bool
) -> None:
    """The forger has everything but the browser: session and form token are the victim's."""
    api = make_api(public=HTTPS)
    api.headers["Host"] = host
    browser = await Browser(api).log_in()
    token = (await browser.get("/admin/mailings/new")).form("/admin/mailings")["_xsrf"]
    reply = await browser.post("/admin/mailings", MAILING | {"_xsrf": token}, **headers)
    assert reply.status == (303 if ours else 403)
    assert await made(browser) == ours
    left = await browser.post("/admin/logout", {"_xsrf": token}, **headers)
    assert left.status == (303 if ours else 403)
    entered = await browser.post("/admin/login", {"token": TOKEN}, **headers)  # a victim logged in as the forger
    assert entered.status == (303 if ours else 403)


@pytest.mark.parametrize(
    ("origin", "host", "ours"),
    [
        ("http://10.0.0.5:8080", "10.0.0.5:8080", True),
        ("http://notifier.lan", "NOTIFIER.lan:80", True),
        ("http://notifier.lan:8081", "notifier.lan:8080", False),
        ("http://evil.example", "10.0.0.5:8080", False),
        ("null", "null", False),
    ],
)
async def test_without_a_public_address_the_host_says_who_we_are(api: Api, origin: str, host: str, ours: bool) -> None:
    """Over http without a name browsers send no Sec-Fetch-Site."""
    api.headers["Host"] = host
    reply = await Browser(api).post("/admin/login", {"token": TOKEN}, Origin=origin)
    assert reply.status == (303 if ours else 403)
    if not ours:
        assert "set PUBLIC_URL" in reply.text


async def test_a_form_without_the_sessions_token_does_nothing(browser: Browser) -> None:
    await browser.log_in()
    other = await Browser(browser.api).log_in()
    foreign = (await other.get("/admin/mailings/new")).form("/admin/mailings")["_xsrf"]
    for forged in ({}, {"_xsrf": "aaaa"}, {"_xsrf": foreign}, {"_xsrf": "é"}):
        browser.cookies["_xsrf"] = "aaaa"  # what version 0.1.0 compared with
        refused = await browser.post("/admin/mailings", MAILING | forged)
        assert refused.status == 403
        assert "This form is not valid any more" in refused.text
    assert not await made(browser)


async def test_a_form_from_before_another_log_in_is_kept_and_not_done(browser: Browser) -> None:
    """Logged out and in again in another tab."""
    await browser.log_in()
    entered = (await browser.get("/admin/mailings/new")).form("/admin/mailings") | MAILING
    await browser.press("/admin/", "/admin/logout")
    await browser.log_in()
    shown = await browser.post("/admin/mailings", entered, **{"Sec-Fetch-Site": "same-origin"})
    assert (shown.status, "not saved yet" in shown.text) == (403, True)
    assert not await made(browser)
    assert (await browser.post("/admin/mailings", shown.form("/admin/mailings"))).status == 303
    assert await made(browser)


# ---- guesses


async def test_a_wrong_token_is_told(browser: Browser) -> None:
    refused = await browser.submit("/admin/login", "/admin/login", token="wrong-token")
    assert refused.status == 403
    assert "not known" in refused.error("token")
    assert "wrong-token" not in refused.html
    assert "notifier" not in browser.cookies


async def test_sixty_wrong_tokens_a_minute_then_nobody_looks_but_a_right_one_enters(
    browser: Browser, logs: list[EventDict]
) -> None:
    """Calls and log-ins count together."""
    api = browser.api
    for n in range(FAILURES_MAX // 2):
        assert (await browser.post("/admin/login", {"token": f"wrong-{n}"})).status == 403
        api.token = f"wrong-token-{n}"
        assert (await api.get("/clients")).status == 401
    for _ in range(3):
        api.token = "wrong-token"
        refused = await api.get("/clients")
        assert refused.status == 429
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        assert refused.json["type"] == "urn:notifier:too-many-failures"
        large = await api.post("/clients/batch", data=b" " * 100_000)  # answered by its head alone
        assert (large.status, "Retry-After" in large.headers) == (429, True)
        page = await browser.post("/admin/login", {"token": "wrong"})
        assert page.status == 429
        assert "a right one enters at once" in page.error("token")
    api.token = TOKEN
    assert (await api.get("/clients")).status == 200
    await browser.log_in()
    events = [each["event"] for each in logs]
    assert events.count("login refused") == events.count("token refused") == FAILURES_MAX // 2
    assert events.count("wrong tokens are refused for a while") == 1
    assert "wrong-" not in str(logs)


async def test_a_token_missing_or_without_its_scope_is_no_guess(api: Api) -> None:
    for _ in range(FAILURES_MAX + 5):
        assert (await api.get("/clients", headers={"Authorization": "Basic x"})).status == 401
    api.token = "wrong"
    assert (await api.get("/clients")).status == 401


async def test_log_ins_under_way_keep_nobody_out(make_api: MakeApi) -> None:
    """A guesser behind the proxy hammers, whatever he writes into the header; the owner comes from elsewhere."""
    api = make_api(proxies=PROXIED)
    owner, guesser = Browser(api), Browser(api)
    refused = await asyncio.gather(
        *(
            guesser.post("/admin/login", {"token": f"no-{n}"}, **{"X-Forwarded-For": f"1.2.3.{n}, 203.0.113.9"})
            for n in range(FAILURES_MAX + 20)
        )
    )
    assert sorted(reply.status for reply in refused) == [403] * FAILURES_MAX + [429] * 20
    wrong = await owner.post("/admin/login", {"token": "typo"}, **{"X-Forwarded-For": "198.51.100.7"})
    assert wrong.status == 403  # no 429: another address, another count
    right = await owner.post("/admin/login", {"token": TOKEN}, **{"X-Forwarded-For": "198.51.100.7"})
    assert right.status == 303
    api.token = None
    same = await guesser.post("/admin/login", {"token": TOKEN}, **{"X-Forwarded-For": "203.0.113.9"})
    assert same.status == 303  # the guesser's colleague in the same office


async def test_a_token_in_the_address_is_none_and_blanks_around_one_do_not_matter(
    api: Api, logs: list[EventDict]
) -> None:
    api.token = None
    assert (await api.get(f"/clients?token={TOKEN}")).status == 401
    assert (await api.get("/clients", headers={"Authorization": f"bearer   {TOKEN} "})).status == 200
    assert TOKEN not in str(logs)


# ---- the record


def requests(logs: list[EventDict]) -> list[EventDict]:
    return [each for each in logs if each["event"] == "request" and each["log_level"] != "debug"]


async def test_the_log_has_address_and_token_of_calls_and_log_ins(make_api: MakeApi, logs: list[EventDict]) -> None:
    api = make_api(proxies=PROXIED)
    api.headers["X-Forwarded-For"] = "203.0.113.9"
    await api.get("/clients")
    browser = await Browser(api).log_in()
    await browser.get("/admin/" + "x" * 5000)
    await browser.press("/admin/", "/admin/logout")
    call, login = requests(logs)[0], next(each for each in logs if each["event"] == "login")
    assert (call["address"], call["token"], call["path"]) == ("203.0.113.9", "bootstrap", "/api/v1/clients")
    assert (login["address"], login["token"]) == ("203.0.113.9", "bootstrap")
    assert [each["token"] for each in logs if each["event"] == "logout"] == ["bootstrap"]
    assert max(len(each["path"]) for each in requests(logs)) == 200


async def test_refusals_are_events_with_a_name(make_api: MakeApi, logs: list[EventDict]) -> None:
    async def tokens(digest: bytes) -> Caller | None:
        return Caller("reader", digest, frozenset({"mailings:read"})) if digest == digest_of("reader") else None

    api = make_api(tokens=tokens)
    api.token = "reader"
    await api.get("/clients")
    api.token = "nobody"
    await api.get("/clients")
    browser = await Browser(api).log_in("reader")
    await browser.get("/admin/clients")
    await browser.post("/admin/login", {"token": "wrong"})
    await browser.post("/admin/login", {"token": "reader"}, Origin="http://evil.example")
    noted = {(each["event"], each.get("token"), each.get("scope"), each.get("reason")) for each in logs}
    assert {
        ("scope refused", "reader", "clients:read", None),
        ("token refused", None, None, None),
        ("login refused", None, None, None),
        ("form refused", None, None, "from another site"),
    } <= noted
    assert all(each["address"] == "127.0.0.1" for each in logs if each["event"].endswith("refused"))


async def test_a_call_with_a_token_needs_no_sessions(api: Api, db: Pool) -> None:
    """It costs no statement more than what it is about; a page takes one for its session."""
    browser = await Browser(api).log_in()
    await db.execute("DROP TABLE sessions")
    assert (await browser.get("/admin/")).status == 500
    api.token = TOKEN
    assert (await api.post("/clients", {"phone": "79160000000"})).status == 201
    api.token = "wrong"
    assert (await api.get("/clients")).status == 401
