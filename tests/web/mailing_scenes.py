"""A mailing that is made by a call."""

from __future__ import annotations

from typing import Any

from tests.web.conftest import Api

LATER = {"text": "Hi", "starts_at": "2100-01-01T00:00:00Z", "ends_at": "2100-01-02T00:00:00Z"}


async def made(api: Api, **changes: Any) -> dict[str, Any]:
    reply = await api.post("/mailings", {**LATER, **changes})
    assert reply.status == 201, reply.body
    mailing: dict[str, Any] = reply.json
    return mailing
