"""Answers as gzip: which, for whom, and what they are without it."""

from __future__ import annotations

import gzip

import aiohttp
import pytest

from notifier.storage.database import Pool
from notifier.web.compress import LEAST, takes_gzip
from tests.storage.scenes import insert_clients
from tests.web.conftest import TOKEN, Api


@pytest.mark.parametrize(
    "accepted", ["gzip", "gzip, deflate, br", "GZIP;q=0.5", "br, *;q=0.1", "*", "identity;q=0, gzip"]
)
def test_who_takes_it(accepted: str) -> None:
    assert takes_gzip(accepted)


@pytest.mark.parametrize(
    "accepted", ["", "identity", "gzip;q=0", "gzip; q=0.000", "*;q=0", "*, gzip;q=0", "x-gzip2", "gzip2", ",;q=1"]
)
def test_who_does_not(accepted: str) -> None:
    assert not takes_gzip(accepted)


async def raw(api: Api, path: str, accepted: str, method: str = "GET") -> tuple[aiohttp.ClientResponse, bytes]:
    """An answer as it came."""
    headers = {"Accept-Encoding": accepted, "Authorization": f"Bearer {TOKEN}"}
    async with (
        aiohttp.ClientSession(auto_decompress=False) as session,
        session.request(method, api.url + path, headers=headers) as response,
    ):
        return response, await response.read()


async def test_large_answers_are_compressed_for_who_takes_it(api: Api, db: Pool) -> None:
    await insert_clients(db, 50)
    plain, body = await raw(api, "/api/v1/clients", "identity")
    assert "Content-Encoding" not in plain.headers
    assert len(body) > LEAST
    packed, compressed = await raw(api, "/api/v1/clients", "gzip")
    assert packed.headers["Content-Encoding"] == "gzip"
    assert packed.headers["Vary"] == plain.headers["Vary"] == "Accept-Encoding"
    assert gzip.decompress(compressed) == body
    assert int(packed.headers["Content-Length"]) == len(compressed) < len(body) / 4
    head, nothing = await raw(api, "/api/v1/clients", "gzip", "HEAD")
    assert (head.headers["Content-Length"], nothing) == (packed.headers["Content-Length"], b"")
    document, compressed = await raw(api, "/openapi.json", "gzip")
    assert document.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(compressed).startswith(b'{"')


async def test_small_answers_pages_and_texts_are_not(api: Api) -> None:
    """A page holds the token of its form."""
    for path in ("/api/v1/clients", "/api/v1/clients/1", "/healthz", "/metrics", "/admin/login", "/docs/"):
        response, _ = await raw(api, path, "gzip")
        assert "Content-Encoding" not in response.headers, path
    assert (await raw(api, "/api/v1/clients/1", "gzip"))[0].headers["Vary"] == "Accept-Encoding"


async def test_a_repeated_request_is_stored_as_it_is_and_answered_as_it_is_asked_for(api: Api) -> None:
    key = {"Idempotency-Key": "k"}
    items = {"items": [{"phone": f"791612345{n:02}"} for n in range(60)]}
    first = await api.post("/clients/batch", items, headers={**key, "Accept-Encoding": "gzip"})
    again = await api.post("/clients/batch", items, headers={**key, "Accept-Encoding": "identity"})
    assert first.headers["Content-Encoding"] == "gzip"
    assert "Content-Encoding" not in again.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert again.json == first.json
