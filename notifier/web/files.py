"""Our own files, read once and answered from memory: no request touches the disk."""

from __future__ import annotations

import gzip
import mimetypes
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from hashlib import sha256

from notifier import install

STATIC = install.assets("static")
COMPRESSED = (".css", ".html", ".js", ".json", ".svg", ".txt")
YEAR = 365 * 24 * 3600
TYPES = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}  # whatever the system's table says


@dataclass(frozen=True, slots=True)
class File:
    """A file: its bytes, those of ``gzip`` where they are fewer, its media type, and a word that changes with it."""

    body: bytes
    packed: bytes | None
    type: str
    version: str


@cache
def files() -> Mapping[str, File]:
    """Return every file below ``static``, by its path there."""
    return {
        path.relative_to(STATIC).as_posix(): made(path.name, path.read_bytes())
        for path in sorted(STATIC.rglob("*"))
        if path.is_file()
    }


def made(name: str, body: bytes) -> File:
    """Return the file of this content; the end of its name says its type, and whether it is compressed."""
    suffix = f".{name.rpartition('.')[2]}"
    packed = gzip.compress(body, mtime=0) if suffix in COMPRESSED else None
    kind = TYPES.get(suffix) or mimetypes.guess_type(name)[0] or "application/octet-stream"
    fewer = packed if packed is not None and len(packed) < len(body) else None
    return File(body, fewer, kind, sha256(body).hexdigest()[:16])


def address(path: str) -> str:
    """Return where a file is found, with its version: what is there may be kept for ever. Raises KeyError for none."""
    return f"/static/{path}?v={files()[path].version}"


@cache
def docs() -> bytes:
    """Return the page of the documentation."""
    page = files()["docs/index.html"].body.decode()
    return re.sub(r'"\.\.(/static/)([^"]+)"', lambda match: f'"..{address(match[2])}"', page).encode()
