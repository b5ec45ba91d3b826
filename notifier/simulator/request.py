"""What a request says: its head, and the message in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import orjson

SEND = "/v1/send/"
INT64 = range(-(2**63), 2**63)


@dataclass(slots=True)
class Send:
    """One request to send a message, as far as it could be read."""

    id: int | None
    attempt: int
    authorized: bool
    at: datetime
    phone: int | None = None
    text: str | None = None


@dataclass(slots=True)
class Head:
    """The head of a request; ``send`` where it asks to send a message."""

    method: str
    target: str
    headers: dict[bytes, bytes]
    length: int
    keep_alive: bool
    send: Send | None = None


def parse_head(data: bytes) -> Head:
    """Return the head of a request; raises ValueError."""
    first, *lines = data.split(b"\r\n")
    method, target, version = first.decode("latin-1").split(" ")
    if version not in ("HTTP/1.1", "HTTP/1.0"):
        raise ValueError("not HTTP/1.1")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise ValueError("a header without a colon")
        headers[name.lower()] = value.strip()
    if b"transfer-encoding" in headers:
        raise ValueError("the body needs a Content-Length")
    keep_alive = version == "HTTP/1.1" and headers.get(b"connection", b"").lower() != b"close"
    length = headers.get(b"content-length", b"0")
    if not length.isdigit():
        raise ValueError("a bad Content-Length")
    return Head(method, target, headers, int(length), keep_alive)


def read_body(send: Send, headers: dict[bytes, bytes], body: bytes) -> str | None:
    """Fill in phone and text where they can be read; return what breaks the contract, if anything."""
    if send.id is None:
        return "the id in the path must be an int64"
    try:
        given = orjson.loads(body)
    except ValueError as error:
        return f"the body is not JSON: {error}"
    if not isinstance(given, dict):
        return "the body must be an object"
    id, phone, text = given.get("id"), given.get("phone"), given.get("text")
    if type(phone) is int and phone in INT64:
        send.phone = phone
    if type(text) is str:
        send.text = text
    if type(id) is not int or id != send.id:
        return "id must be an int64 and the same as in the path"
    if send.phone is None:
        return "phone must be an int64"
    if not send.text:
        return "text must be a string that is not empty"
    if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != b"application/json":
        return "the Content-Type must be application/json"
    return None
