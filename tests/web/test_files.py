"""Our own files: from memory, compressed, kept by whoever names the version."""

from __future__ import annotations

import gzip
import re
from typing import Any

from notifier.web import files
from tests.web.conftest import Api

SCRIPT = "vendor/swagger-ui/swagger-ui-bundle.js"


async def raw(api: Api, path: str, **headers: str) -> tuple[int, Any, bytes]:
    """An answer as it comes over the wire: aiohttp unpacks what it has asked for."""
    reply = await api.call("GET", f"/{path}", headers={"Accept-Encoding": "identity", **headers})
    return reply.status, reply.headers, reply.body


async def test_a_file_with_its_version_may_be_kept_for_ever(api: Api) -> None:
    address = files.address("admin/admin.css")
    status, headers, body = await raw(api, address)
    assert (status, body) == (200, (files.STATIC / "admin" / "admin.css").read_bytes())
    assert headers["Content-Type"] == "text/css; charset=utf-8"
    assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
    for other in (address.partition("?")[0], f"{address}0", address.partition("=")[0]):
        status, headers, _ = await raw(api, other)
        assert (status, headers["Cache-Control"]) == (200, "no-cache"), other


async def test_files_are_asked_for_again_but_not_sent_again(api: Api) -> None:
    _, first, _ = await raw(api, "/static/docs/docs.js")
    etag = first["ETag"]
    for given in (etag, f"W/{etag}", f'"other", {etag}', f'{etag[:-1]}-gzip"'):
        status, headers, body = await raw(api, "/static/docs/docs.js", **{"If-None-Match": given})
        assert (status, body, headers["ETag"]) == (304, b"", etag), given
    assert (await raw(api, "/static/docs/docs.js", **{"If-None-Match": '"other"'}))[0] == 200


async def test_who_takes_gzip_gets_it(api: Api) -> None:
    whole = (files.STATIC / SCRIPT).read_bytes()
    for accepted, packed in {
        "gzip, br": True, "*": True, "br;q=1, gzip;q=0.5": True, "gzip;q=0": False, "br": False, "": False,
    }.items():  # fmt: skip
        reply = await api.call("HEAD", f"//static/{SCRIPT}", headers={"Accept-Encoding": accepted})
        assert (reply.headers.get("Content-Encoding") == "gzip") is packed, accepted
        assert (int(reply.headers["Content-Length"]) < len(whole) / 2) is packed, accepted
        assert reply.headers["Vary"] == "Accept-Encoding"
    found = files.files()[SCRIPT]
    assert found.packed is not None
    assert gzip.decompress(found.packed) == whole
    assert (await api.get(f"//static/{SCRIPT}", headers={"Accept-Encoding": "gzip"})).body == whole


async def test_pages_name_the_version(api: Api) -> None:
    api.token = None
    for page in ("/admin/login", "/docs/"):
        text = (await api.get(f"/{page}")).body.decode()
        named = re.findall(r'(?:src|href)="(?:\.\.)?(/static/[^"]+)"', text)
        assert len(named) >= 3
        for address in named:
            _, headers, _ = await raw(api, address)
            assert headers["Cache-Control"].endswith("immutable"), address


def test_no_file_is_served_that_no_page_uses() -> None:
    """Licences and versions stand beside what they are of."""
    root = files.STATIC.parent
    pages = [*(root / "templates").rglob("*.html"), files.STATIC / "docs" / "index.html"]
    used = " ".join(page.read_text(encoding="utf-8") for page in pages)
    beside = ("LICENSE", "NOTICE", "VERSION", ".LICENSE.txt", "index.html")
    assert [path for path in files.files() if path not in used and not path.endswith(beside)] == []


async def test_no_file_but_those_below_static(api: Api) -> None:
    for path in ("../server.py", "%2e%2e/server.py", "..%2f..%2fetc/passwd", "", "docs", "none.js", "docs/docs.js%00"):
        reply = await api.get(f"//static/{path}")
        assert reply.status in (400, 403, 404), path
        assert reply.headers["Content-Type"] == "application/problem+json"
