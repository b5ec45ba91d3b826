"""Requests with If-Match and If-None-Match."""

from __future__ import annotations

from notifier.storage import clients
from notifier.storage.database import Pool
from tests.storage.scenes import running
from tests.web.conftest import Api


async def test_if_match(api: Api) -> None:
    """A weak one counts: that is what a proxy that compresses answers makes of ours."""
    client = await clients.create(api.context.db, phone=79161234567)
    stale = ('"2"', 'W/"2"', '"abc"', '""', '"99999999999"')
    none = ("1", '"1', '"1", "2"', "")
    good = ('"1"', 'W/"2"', "*")  # each raises the version
    for header, status in [*((e, 412) for e in stale), *((e, 400) for e in none), *((e, 200) for e in good)]:
        reply = await api.patch(f"/clients/{client.id}", {"tags": []}, headers={"If-Match": header})
        assert reply.status == status, header


async def test_a_client_that_is_known_is_a_304(api: Api) -> None:
    """All of it changes with its version."""
    client = await clients.create(api.context.db, phone=79161234567)
    path = f"/clients/{client.id}"
    for known in ('"1"', 'W/"1"', '"7", "1"', "*"):
        for method in ("GET", "HEAD"):
            reply = await api.call(method, path, headers={"If-None-Match": known})
            assert (reply.status, reply.headers["ETag"], reply.body) == (304, '"1"', b""), known
            assert reply.headers["Vary"] == "Accept-Encoding"
    for other in ('"2"', '"11"', "1", "", 'W/"2", "x'):
        assert (await api.get(path, headers={"If-None-Match": other})).status == 200, other
    edited = await api.patch(path, {"tags": ["vip"]}, headers={"If-None-Match": '"2"'})
    assert (edited.status, edited.headers["ETag"]) == (200, '"2"')
    assert (await api.get(path, headers={"If-None-Match": '"1"'})).json == edited.json
    batch = {"items": [{"phone": "79161234567", "tags": ["new"]}]}
    assert (await api.post("/clients/batch", batch)).status == 200
    assert (await api.get(path, headers={"If-None-Match": '"2"'})).json["tags"] == ["new"]


async def test_what_changes_without_an_edit_is_never_a_304(api: Api, db: Pool) -> None:
    """A mailing that begins and ends, a gateway whose breaker opens: their version stays."""
    mailing_id, _ = await running(db, 1)
    for path in (f"/mailings/{mailing_id}", "/gateways/default"):
        first = await api.get(path)
        again = await api.get(path, headers={"If-None-Match": first.headers["ETag"]})
        assert (again.status, again.json) == (200, first.json)
