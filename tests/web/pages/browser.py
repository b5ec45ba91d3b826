"""A browser without JavaScript: it sends forms, keeps cookies and follows no link by itself."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from html import unescape
from html.parser import HTMLParser
from typing import Any

from aiohttp import FormData

from tests.web.conftest import TOKEN, Api

SCRIPT = "<script>alert(1)</script>"
SOON = "2200-01-01T00:00"


class Fields(HTMLParser):
    """What a browser would send back: the values of the form with this action, buttons left out."""

    def __init__(self, html: str, action: str) -> None:
        super().__init__()
        self.action, self.values, self.inside, self.area = action, dict[str, str](), False, ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self.inside = given.get("action") == self.action
        name = given.get("name") or ""
        if self.inside and tag == "input" and (given.get("type") != "radio" or "checked" in given):
            self.values[name] = given.get("value") or ""
        if self.inside and tag == "textarea":
            self.area, self.values[name] = name, ""

    def handle_data(self, data: str) -> None:
        if self.area:
            self.values[self.area] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "textarea" and self.area:
            self.values[self.area] = self.values[self.area].removeprefix("\n")
            self.area = ""


@dataclass
class Shown:
    """A page that was answered."""

    status: int
    headers: Any
    html: str

    @property
    def text(self) -> str:
        """What is to be read on it."""
        return " ".join(unescape(re.sub(r"<[^>]*>", " ", self.html)).split())

    @property
    def location(self) -> str:
        assert self.status == 303, (self.status, self.text)
        return str(self.headers["Location"])

    def form(self, action: str) -> dict[str, str]:
        """The values of the form with this action."""
        values = Fields(self.html, action).values
        assert values, f"no form {action}: {self.text}"
        return values

    def error(self, name: str) -> str:
        """What is said beside a field."""
        match = re.search(rf'id="{name}-error">(.*?)</small>', self.html, re.S)
        assert match, (name, self.text)
        return unescape(re.sub(r"<[^>]*>", "", match[1]))


@dataclass
class Browser:
    """Follows no link by itself, keeps cookies."""

    api: Api
    cookies: dict[str, str] = field(default_factory=dict)

    async def call(self, method: str, path: str, headers: dict[str, str], data: FormData | None = None) -> Shown:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        self.api.token = None
        reply = await self.api.call(method, f"/{path}", data=data, headers={"Cookie": cookie} | headers)
        for line in reply.headers.getall("Set-Cookie", []):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value.strip('"')
            if not value.strip('"'):
                del self.cookies[name]
        return Shown(reply.status, reply.headers, reply.body.decode())

    async def get(self, path: str, **headers: str) -> Shown:
        return await self.call("GET", path, headers)

    async def post(self, path: str, values: dict[str, str], **headers: str) -> Shown:
        data = FormData()
        for name, value in values.items():
            data.add_field(name, value)
        return await self.call("POST", path, headers, data)

    async def submit(self, page: str, action: str, /, **changes: str) -> Shown:
        """Open a page, change some fields of its form, and send it."""
        form = (await self.get(page)).form(action)
        return await self.post(action, form | changes)

    async def send(self, **changes: str) -> Shown:
        """Fill in the form of a new mailing, press "Make and start", and then "Send"."""
        asked = await self.submit("/admin/mailings/new", "/admin/mailings", **changes)
        return await self.post("/admin/mailings", asked.form("/admin/mailings") | {"sure": "1"})

    async def press(self, page: str, action: str, /, **changes: str) -> Shown:
        """Submit, and look at the page it leads to."""
        return await self.get((await self.submit(page, action, **changes)).location)

    async def log_in(self, token: str = TOKEN) -> Browser:
        assert (await self.submit("/admin/login", "/admin/login", token=token)).location == "/admin/"
        return self


def tile(page: Shown, name: str) -> str:
    """The tile of this class."""
    match = re.search(rf'<div class="tile {name}.*?</div>', page.html, re.S)
    assert match, page.text
    return match[0]
