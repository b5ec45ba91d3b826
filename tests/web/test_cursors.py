"""Cursors: of one list and its filters, and never made up."""

from __future__ import annotations

import base64
import itertools
from hashlib import sha256

from notifier.storage.database import Pool
from notifier.web import schemas
from tests.storage.scenes import insert_clients, running
from tests.web.conftest import Api


def forged(path: str, content: bytes) -> str:
    """A cursor of the list at ``path`` without filters, with any content and the right sums."""
    content = schemas.list_key(path, {}) + content
    return base64.urlsafe_b64encode(sha256(content).digest()[:6] + content).rstrip(b"=").decode()


async def test_a_cursor_is_of_one_list_and_its_filters(api: Api, db: Pool) -> None:
    """The size of a page may change; all else must be as it was: list, filter, and the cursor letter by letter."""
    await insert_clients(db, 5, tags=["vip"])
    mailings_of = [(await running(db, 3))[0] for _ in range(3)]
    lists = ["/clients", "/clients?tag=vip", "/clients?operator_code=916", "/mailings", "/mailings?status=running"]
    lists += [f"/mailings/{n}/messages{query}" for n in mailings_of for query in ("", "?status=waiting")]
    cursors = {}
    for path in lists:
        cursors[path] = (await api.get(path + ("&" if "?" in path else "?") + "limit=1")).json["next_cursor"]
        assert cursors[path], path
    for path, (other, cursor) in itertools.product(lists, cursors.items()):
        reply = await api.get(path + ("&" if "?" in path else "?") + f"limit=2&cursor={cursor}")
        if path == other:
            assert reply.status == 200
            assert len(reply.json["items"]) == 2
        else:
            assert reply.pointers() == ["cursor"], (path, other)
            assert "of another list, or of other filters" in reply.json["detail"]
    whole = cursors["/clients"]
    for broken in (
        whole[:-1],
        whole[:12],
        whole + "A",
        whole + "=",
        f"{whole[:-2]}{whole[-1]}{whole[-2]}",
        whole.swapcase(),
    ):
        reply = await api.get(f"/clients?cursor={broken}")
        assert reply.pointers() == ["cursor"], broken
        assert "cut or changed" in reply.json["detail"]


async def test_no_cursor_that_somebody_makes_up_is_our_fault(api: Api) -> None:
    """With the right sums: no list, too short, too long, of strings, floats, beyond 64 bits, and spelt otherwise."""
    assert (await api.get(f"/clients?cursor={forged('/api/v1/clients', b'[5]')}")).status == 200
    contents = (
        b"",
        b"[]",
        b"[1,2]",
        b'["1"]',
        b"[1e9]",
        b"[1] ",
        b"[99999999999999999999]",
        b'{"a":1}',
        b"[true]",
        b"\xff",
    )
    for content in contents:
        assert (await api.get(f"/clients?cursor={forged('/api/v1/clients', content)}")).pointers() == ["cursor"], (
            content
        )
