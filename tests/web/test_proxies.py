"""Behind real proxies with TLS, at a host name of its own and below a path: where links lead, cookies, who asks."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin

import pytest
from playwright.async_api import Page, async_playwright, expect

from chaos.stage import free_port, until
from tests.processes import TOKEN, Running, started
from tests.test_deploy import HOST, JSON, PROXIES, SITE, Answer, Configure, Front, in_front, nginx_of, tls_server
from tests.web.test_browser import CHROMIUM, QUIET

FORM = {"Content-Type": "application/x-www-form-urlencoded", "Sec-Fetch-Site": "same-origin"}


def plain_nginx(place: Path, backend: int, https: int, plain: int) -> list[str]:
    """Nginx that limits nobody and adds to ``X-Forwarded-For``; it takes /notifier off, and leaves any other path."""
    locations = f"""
        proxy_set_header Host $http_host;
        proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        proxy_set_header X-Forwarded-Proto $scheme;
        location /notifier/ {{ proxy_pass http://127.0.0.1:{backend}/; }}
        location / {{ proxy_pass http://127.0.0.1:{backend}; }}"""
    return nginx_of(place, tls_server(place, https, locations))


@asynccontextmanager
async def served(place: Path, configure: Configure, public_url: str) -> AsyncIterator[tuple[Front, Running]]:
    """The service behind a proxy."""
    with started(place, BOOTSTRAP_TOKEN=TOKEN, PUBLIC_URL=public_url, TRUSTED_PROXIES="127.0.0.1") as service:
        port = int((await service.up()).rpartition(":")[2])
        with in_front(configure, place, port) as front:
            yield front, service


@dataclass
class Visitor:
    """A browser without scripts behind an address of its own; it keeps cookies."""

    front: Front
    host: str
    source: str = "127.0.0.1"
    cookies: dict[str, str] = field(default_factory=dict)

    def ask(self, path: str, form: dict[str, str] | None = None, **headers: str) -> Answer:
        sent = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())} | headers
        body = None if form is None else urlencode(form).encode()
        answer = self.front.call(path, self.host, body, sent | (FORM if form is not None else {}), source=self.source)
        for line in answer.headers.get_all("Set-Cookie", ()):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
        return answer

    def log_in(self, prefix: str) -> Answer:
        return self.ask(f"{prefix}/admin/login", {"token": TOKEN})


def named(page: str, path: str, attributes: str) -> set[str]:
    """Every address of this site in these attributes of a page."""
    found = re.findall(rf'(?:{attributes})="([^"]*)"', page)
    return {urljoin(path, unescape(each)).partition("#")[0] for each in found if not each.startswith("data:")}


@pytest.mark.parametrize(
    ("configure", "host", "prefix"),
    [
        (PROXIES["nginx"], SITE, "/notifier"),
        (PROXIES["haproxy"], SITE, "/notifier"),
        (PROXIES["haproxy"], HOST, ""),
        (plain_nginx, HOST, "/sms"),  # which is left: the service takes it off
    ],
    ids=["nginx-prefix", "haproxy-prefix", "haproxy", "nginx-leaves-it"],
)
async def test_every_link_of_every_page_stays_below_the_prefix_and_leads_somewhere(
    place: Path, configure: Configure, host: str, prefix: str
) -> None:
    url = f"https://{host}{prefix}"
    async with served(place, configure, url) as (front, _):
        api = f"{prefix}/api/v1"
        for body in ({"phone": "79161234567", "tags": ["vip"]}, {"phone": "79161234568"}):
            made = front.call(f"{api}/clients", host, json.dumps(body).encode(), JSON)
            assert made.status == 201
            assert made.headers["Location"].startswith(f"{api}/clients/")
            assert front.call(made.headers["Location"], host, headers=JSON).text == made.text
        for draft in (True, False):
            mailing: dict[str, Any] = {"text": "Hello", "ends_at": "2200-01-01T00:00:00Z", "draft": draft, "filter": {}}
            made = front.call(f"{api}/mailings", host, json.dumps(mailing).encode(), JSON)
            assert made.status == 201, made.text
        until(lambda: '"planned":true' in front.call(f"{made.headers['Location']}/statistics", host, headers=JSON).text)
        assert json.loads(front.call(f"{prefix}/openapi.json", host).text)["servers"] == [{"url": url}]

        visitor = Visitor(front, host)
        away = visitor.ask(f"{prefix}/admin/mailings?status=draft")
        assert (away.status, away.headers["Location"].partition("?")[0]) == (303, f"{prefix}/admin/login")
        entered = visitor.log_in(prefix)
        assert (entered.status, entered.headers["Location"]) == (303, f"{prefix}/admin/")
        (cookie,) = entered.headers.get_all("Set-Cookie", [])
        name, *attributes = cookie.replace("=", "; ", 1).split("; ")
        assert name == "__Host-notifier"
        assert {"Secure", "HttpOnly", "Path=/", "SameSite=Lax"} <= set(attributes)

        seen: set[str] = set()
        left = {f"{prefix}/admin/", f"{prefix}/docs/"}
        while left:
            path = left.pop()
            seen.add(path)
            answer = visitor.ask(path)
            assert answer.status == 200, (path, answer.text)
            assert answer.headers["Strict-Transport-Security"].startswith("max-age=31536000")
            if "html" in answer.headers.get("Content-Type", ""):
                found = named(answer.text, path, "href|src|hx-get|action")
                assert all(link.startswith(f"{prefix}/") for link in found), (path, found)
                left |= named(answer.text, path, "href|src|hx-get") - seen
        kinds = {re.sub(r"\d+", "1", path.partition("?")[0].removeprefix(prefix)) for path in seen}
        for expected in ("/admin/mailings/1", "/admin/mailings/1/edit", "/admin/mailings/1/start", "/admin/clients/1",
                         "/admin/clients/1/delete", "/admin/messages/1", "/admin/gateways/default",
                         "/static/admin/admin.css"):  # fmt: skip
            assert any(kind.startswith(expected) for kind in kinds), (expected, kinds)

        lost = Visitor(front, host).ask(f"{prefix}/admin/mailings", {"text": "kept", "name": "kept"})
        assert lost.status == 401
        assert f'action="{prefix}/admin/login"' in lost.text
        assert visitor.ask(f"{prefix}/admin/logout", {}).headers["Location"] == f"{prefix}/admin/login"
        assert visitor.ask(f"{prefix}/admin/").status == 303


@contextmanager
def guessing(front: Front, statuses: list[int]) -> Iterator[None]:
    """Five guessers on one address, who write other addresses into the header, as fast as they can."""
    over = threading.Event()

    def guess(number: int) -> None:
        visitor, n = Visitor(front, HOST, "127.0.0.2"), 0
        while not over.is_set():
            n += 1
            header = {"X-Forwarded-For": f"10.{number}.{n // 250}.{n % 250}, 127.0.0.1"}
            statuses.append(visitor.ask("/admin/login", {"token": f"no-{n}"}, **header).status)

    threads = [threading.Thread(target=guess, args=(number,)) for number in range(5)]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in threads:
            each.join()


async def test_the_owner_gets_in_while_a_guesser_hammers(place: Path) -> None:
    """Both come through one proxy; on version 0.1.0 nineteen of twenty right log-ins were refused."""
    async with served(place, plain_nginx, f"https://{HOST}") as (front, service):
        statuses: list[int] = []
        begun = time.monotonic()
        with guessing(front, statuses):
            until(lambda: statuses.count(429) > 20, progress=lambda: len(statuses))
            owner = Visitor(front, HOST, "127.0.0.3")
            assert [owner.log_in("").status for _ in range(20)] == [303] * 20
            assert owner.ask("/admin/").status == 200
            # Also from the guesser's address, whose count is spent.
            assert Visitor(front, HOST, "127.0.0.2").log_in("").status == 303
        assert set(statuses) == {403, 429}
        assert statuses.count(403) <= 60 * (1 + (time.monotonic() - begun) // 60)
        events = [json.loads(line) for line in service.said().splitlines() if line.startswith("{")]
        addresses = {each["address"] for each in events if each["event"] == "login refused"}
        assert addresses == {"127.0.0.2"}
        assert {each["address"] for each in events if each["event"] == "login"} == {"127.0.0.2", "127.0.0.3"}


@pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("NOTIFIER_REQUIRE_ALL") != "1",
    reason="there is no chromium here; NOTIFIER_REQUIRE_ALL=1 makes that a failure",
)
async def test_a_browser_has_nothing_to_complain_of_below_a_prefix(place: Path) -> None:
    """Log-in, pages, a part that htmx keeps alive, Swagger's "try it out": no policy stands in the way."""
    complaints: list[str] = []
    port = free_port()
    base = f"https://{HOST}:{port}/notifier"
    with started(place, BOOTSTRAP_TOKEN=TOKEN, PUBLIC_URL=base, TRUSTED_PROXIES="127.0.0.1") as service:
        backend = int((await service.up()).rpartition(":")[2])
        with in_front(plain_nginx, place, backend, port):
            async with async_playwright() as playwright:
                browser = await playwright.chromium.launch(
                    executable_path=CHROMIUM, args=[*QUIET, f"--host-resolver-rules=MAP {HOST} 127.0.0.1"]
                )
                context = await browser.new_context(ignore_https_errors=True)
                page = await context.new_page()
                page.set_default_timeout(30_000)
                page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
                page.on("pageerror", lambda error: complaints.append(str(error)))
                await page.add_init_script(
                    "addEventListener('securitypolicyviolation', e => console.error('policy', e.blockedURI))"
                )
                await look_around(page, base)
                cookies = {each["name"]: each for each in await context.cookies()}
                assert cookies["__Host-notifier"]["secure"]
                await try_out(page, base)
                await page.goto(f"{base}/admin/")
                await page.get_by_role("button", name="Log out").click()
                await expect(page.get_by_text("You are logged out.")).to_be_visible()
                assert page.url == f"{base}/admin/login"
                await browser.close()
    assert complaints == []


async def look_around(page: Page, base: str) -> None:
    await page.goto(base)
    await page.get_by_label("API token").fill(TOKEN)
    await page.get_by_role("button", name="Log in").click()
    await expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    await page.get_by_role("link", name="New mailing").first.click()
    await page.get_by_label("Name").fill("Below a path")
    await page.get_by_label("Text").fill("Hello")
    await page.get_by_label("Everybody").check()
    async with page.expect_response(lambda answer: answer.request.method == "POST") as made:
        await page.get_by_role("button", name="Keep as a draft").click()
    assert (await made.value).status == 303
    await expect(page.get_by_role("heading", name="Below a path")).to_be_visible()
    assert page.url.startswith(f"{base}/admin/mailings/")
    async with page.expect_response(lambda answer: "hx-request" in answer.request.headers) as polled:
        await page.goto(f"{base}/admin/gateways/default")
    answer = await polled.value
    assert (answer.status, answer.url.startswith(f"{base}/admin/gateways/default")) == (200, True)


async def try_out(page: Page, base: str) -> None:
    """Press Swagger's buttons: the call goes below the prefix."""
    await page.goto(f"{base}/docs/")
    await page.locator("button.authorize").first.click()
    await page.locator(".auth-container input").fill(TOKEN)
    await page.locator(".auth-btn-wrapper button.authorize").click()
    await page.locator(".auth-btn-wrapper button.btn-done").click()
    block = page.locator(".opblock-get").filter(has=page.locator('[data-path="/api/v1/gateways"]'))
    await block.locator("button.opblock-summary-control").click()
    async with page.expect_response(re.compile(re.escape(f"{base}/api/v1/gateways"))) as called:
        await block.locator("button.execute").click()
    assert (await called.value).status == 200
