"""The admin in a real browser, over the whole service: a mailing is made in the page and watched until it is over."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from chaos.stage import PATIENCE, until
from notifier.simulator import Simulator, read_ledger
from tests.web.test_contrast import contrast

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
TOKEN = "a-token-for-the-browser-test"
CLIENTS = 300
QUIET = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
]  # fmt: skip

expect.set_options(timeout=PATIENCE * 1_000)
pytestmark = [
    pytest.mark.skipif(
        CHROMIUM is None and os.environ.get("NOTIFIER_REQUIRE_ALL") != "1",
        reason="there is no chromium here; NOTIFIER_REQUIRE_ALL=1 makes that a failure",
    ),
]


@pytest.fixture
def gateway() -> Iterator[Simulator]:
    """The simulated gateway; slow enough that a mailing can be seen on its way."""
    with Simulator(latency=150) as simulator:
        yield simulator


@pytest.fixture
def service(gateway: Simulator, place: Path) -> Iterator[str]:
    """The address of the service with a database of its own, run as anybody would run it."""
    theirs = ("DATA", "GATEWAY", "BOOTSTRAP", "SECRET", "HOST", "PORT", "ROLE", "PAUSE", "LOG", "DEFAULT")
    settings = {
        "DATA_DIR": str(place / "data"),
        "GATEWAY_URL": gateway.url,
        "GATEWAY_TOKEN": "of.no.importance",
        "GATEWAY_CONCURRENCY": "20",
        "BOOTSTRAP_TOKEN": TOKEN,
        "SECRET_KEY": "a key of the browser test, long enough",
        "DEFAULT_TIMEZONE": "Europe/Moscow",
        "PORT": "0",
        "NOTIFIER_ENV_FILE": os.devnull,
        "LOG_FORMAT": "console",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    log = place / "serve.log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "server.py"), "serve"], cwd=place, env=kept | settings, stderr=stream
        )
        try:
            yield _address(process, log)
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    def said() -> str | None:
        assert process.poll() is None, f"the service did not start: {log.read_text()}"
        text = re.sub(r"\x1b\[[0-9;]*m", "", log.read_text())
        match = re.search(r"url=(http://127\.0\.0\.1:\d+)", text)
        return match[1] if match else None

    return until(said, progress=log.read_text) or ""


@pytest.fixture
def page(service: str) -> Iterator[Page]:
    """A page of a browser; whatever its console has to complain about fails the test."""
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        page = browser.new_page(base_url=service, viewport={"width": 1280, "height": 900})
        page.set_default_timeout(PATIENCE * 1_000)
        page.on("console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.add_init_script("addEventListener('securitypolicyviolation', e => console.error('policy', e.blockedURI))")
        yield page
        browser.close()
    assert complaints == []


def add_clients(service: str, count: int) -> None:
    items = [{"phone": f"7916{n:07d}", "tag": "vip" if n < CLIENTS else "other"} for n in range(count)]
    call = Request(
        f"{service}/api/v1/clients/batch",
        json.dumps({"items": items}).encode(),
        {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"},
    )
    with urlopen(call) as answer:
        assert answer.status == 200


def hexadecimal(colour: str) -> str:
    """A colour as a browser says it, ``rgb(1, 2, 3)``, as ``#010203``."""
    return "#" + "".join(f"{int(part):02x}" for part in re.findall(r"\d+", colour)[:3])


def log_in(page: Page) -> None:
    page.goto("/")
    page.get_by_label("API token").fill(TOKEN)
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()


def test_a_mailing_is_made_in_the_page_and_watched_until_it_is_over(
    page: Page, service: str, gateway: Simulator
) -> None:
    add_clients(service, CLIENTS + 10)
    log_in(page)
    page.get_by_role("link", name="New mailing").click()
    page.get_by_label("Name").fill("Watched <b>sale</b>")
    page.get_by_label("Text").fill("Half the price.")
    page.get_by_label("Tags").fill("vip")
    page.get_by_role("button", name="Make and start").click()
    expect(page.get_by_role("heading", name="Send “Watched <b>sale</b>”?")).to_be_visible()
    expect(page.get_by_text(f"This goes to {CLIENTS} clients at once.")).to_be_visible()
    page.get_by_role("button", name="Back to the form").click()
    expect(page.get_by_label("Tags")).to_have_value("vip")
    page.get_by_role("button", name="Make and start").click()
    page.get_by_role("button", name="Send").click()

    expect(page.get_by_role("status").first).to_contain_text("was started")
    expect(page.locator("h1 .badge")).to_have_text("Running")
    sent = page.locator(".tile.sent strong")
    expect(sent).not_to_have_text("0")
    halfway = int(sent.inner_text())
    expect(page.locator("h1 .badge")).to_have_text("Finished")  # nobody has loaded the page again
    expect(page.locator("#flash")).to_have_count(0)  # what it said of the start is past
    assert 0 < halfway <= CLIENTS
    expect(sent).to_have_text(str(CLIENTS))
    expect(page.locator(".percent")).to_have_text(f"{CLIENTS} of {CLIENTS} sent")
    expect(page.get_by_text("All messages are worked off.")).to_be_visible()
    assert page.locator("#live").get_attribute("hx-get") is None  # so nothing is asked for any more
    assert len({entry.id for entry in read_ledger(gateway.ledger)}) == CLIENTS

    page.locator("#live tbody a").first.click()
    expect(page.get_by_text("Accepted by the gateway")).to_be_visible()
    page.get_by_role("link", name="Overview").click()
    expect(page.locator(".tile.sent strong")).to_have_text(str(CLIENTS))


def test_a_running_mailing_is_paused_resumed_and_cancelled_in_the_page(page: Page, service: str) -> None:
    add_clients(service, 1000)
    log_in(page)
    page.goto("/admin/gateways/default")
    page.get_by_label("Messages a second").fill("20")
    page.get_by_role("button", name="Save").click()
    expect(page.get_by_text("20 messages a second")).to_be_visible()

    page.goto("/admin/mailings/new")
    page.get_by_label("Text").fill("To all of you.")
    page.get_by_label("Everybody").check()
    page.get_by_role("button", name="Make and start").click()
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".tile.sent strong")).not_to_have_text("0")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("h1 .badge")).to_have_text("Paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("h1 .badge")).to_have_text("Running")
    page.get_by_role("link", name="Cancel…").click()
    page.get_by_role("button", name="Yes, cancel").click()
    expect(page.locator("h1 .badge")).to_have_text("Cancelled")
    page.get_by_role("link", name=re.compile("Cancelled [0-9]+")).click()
    expect(page.locator("tbody .badge").first).to_have_text("Cancelled")


def test_what_a_tile_shows_stays_within_it(page: Page, service: str) -> None:
    """Also times like "7 min 48 s"."""
    add_clients(service, 1000)
    log_in(page)
    page.goto("/admin/gateways/default")
    page.get_by_label("Messages a second").fill("2")
    page.get_by_role("button", name="Save").click()
    page.goto("/admin/mailings/new")
    page.get_by_label("Text").fill("To all of you.")
    page.get_by_label("Everybody").check()
    page.get_by_role("button", name="Make and start").click()
    page.get_by_role("button", name="Send").click()
    expect(page.locator(".tile", has_text="Left")).to_contain_text(re.compile(r"[0-9]+\smin\s[0-9]+\ss"))
    for width in (1280, 1000, 700, 390, 320):
        page.set_viewport_size({"width": width, "height": 800})
        for tile in page.locator(".tile").all():
            assert tile.evaluate("e => e.scrollWidth <= e.clientWidth"), (width, tile.inner_text())


def test_the_skip_link_lies_over_everything_and_leads_to_the_content(page: Page) -> None:
    log_in(page)
    page.reload()
    page.keyboard.press("Tab")
    skip = page.get_by_role("link", name="Skip to the content")
    expect(skip).to_be_focused()
    skip.evaluate("e => e.blur()")
    # opaque at once, so that the logo below does not mix with it
    assert skip.evaluate("e => { e.focus(); return getComputedStyle(e).backgroundColor; }").startswith("rgb(")
    on_top = """e => { const box = e.getBoundingClientRect();
      return [0.05, 0.5, 0.95].every(at => e.contains(
        document.elementFromPoint(box.left + at * box.width, box.top + box.height / 2))); }"""
    assert skip.evaluate(on_top)
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()


def test_a_tag_can_be_read_in_both_schemes(page: Page, service: str) -> None:
    add_clients(service, 1)
    log_in(page)
    colours = "e => [getComputedStyle(e).color, getComputedStyle(e).backgroundColor]"
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto("/admin/clients")
        shown = page.locator(".tag").first.evaluate(colours)
        assert contrast(*map(hexadecimal, shown)) >= 4.5, (scheme, shown)


def test_the_documentation_follows_the_scheme_and_has_a_way_back(page: Page) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    page.emulate_media(color_scheme="dark")
    page.goto("/docs/#/Mailings/createMailing")
    expect(page.locator("html")).to_have_class(re.compile("dark-mode"))
    dark = page.evaluate(ground)
    for name in (".examples-select__section-label", "td.header-col"):
        label = page.locator(name).first
        expect(label).to_be_visible()
        assert contrast(hexadecimal(label.evaluate("e => getComputedStyle(e).color")), hexadecimal(dark)) >= 4.5, name
    page.emulate_media(color_scheme="light")
    expect(page.locator("html")).not_to_have_class(re.compile("dark-mode"))
    assert page.evaluate(ground) != dark
    expect(page.locator(".opblock").first).to_be_visible()
    page.get_by_role("link", name="Notifier").click()
    expect(page.get_by_label("API token")).to_be_visible()


def test_without_javascript_the_documentation_says_where_the_description_is(page: Page, service: str) -> None:
    assert page.context.browser
    plain = page.context.browser.new_context(java_script_enabled=False, base_url=service).new_page()
    plain.goto("/docs/")
    link = plain.locator("noscript a")
    expect(link).to_be_visible()
    link.click()
    assert plain.url.endswith("/openapi.json")


def test_no_page_is_wider_than_its_screen_and_every_field_has_a_label(page: Page, service: str) -> None:
    add_clients(service, 20)
    page.set_viewport_size({"width": 390, "height": 800})
    log_in(page)
    page.goto("/admin/clients/new")
    page.get_by_label("Phone").fill("+7 916 999-99-99")
    page.get_by_label("Tags").fill("W" * 64)
    page.get_by_role("button", name="Add the client").click()
    page.goto("/admin/mailings/new")
    page.get_by_label("Name").fill("W" * 150)
    page.get_by_label("Text").fill("W" * 150)
    page.get_by_label("Everybody").check()
    page.get_by_role("button", name="Keep as a draft").click()
    page.goto("/admin/mailings/new")
    page.get_by_label("Text").fill("A line. " * 1_200)
    page.get_by_label("Everybody").check()
    page.get_by_role("button", name="Make and start").click()
    assert page.locator(".bubble").evaluate("e => e.scrollHeight <= e.clientHeight")  # nothing of it is hidden
    for path in ("/admin/", "/admin/mailings", "/admin/mailings/deleted",
                 "/admin/mailings/new", "/admin/mailings/1", "/admin/mailings/1/start",
                 "/admin/clients", "/admin/clients/new",
                 "/admin/clients/1", "/admin/gateways/default"):  # fmt: skip
        page.goto(path)
        for width in (1280, 390, 320):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path
            for table in page.locator("table").all():
                assert table.evaluate("e => e.scrollWidth <= e.parentElement.clientWidth"), path
        assert page.evaluate("document.querySelectorAll('h1').length") == 1, path
        unlabelled = (
            "[...document.querySelectorAll('input:not([type=hidden]), textarea')].filter(e => !e.labels.length)"
        )
        assert page.evaluate(f"{unlabelled}.map(e => e.name)") == [], path
