"""Settings as people see them, with secrets masked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

from notifier.hosts import without_secrets
from notifier.settings.declared import FIELDS


def rows_of(values: Mapping[str, Any], sources: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (name, value, source) of every setting; one that is given and has no value is wrong."""
    rows = []
    for field in FIELDS:
        name = field.name.upper()
        source = sources.get(name, "wrong")
        if field.name in values:
            value = values[field.name]
            if field.name == "gateway_url" and value is not None:
                value = without_secrets(value)
            shown = _shown(value, field.metadata["secret"])
        elif source == "default":
            shown = field.metadata["shown"] or "–"
        else:
            shown = "wrong, see below"
        rows.append((name, shown, source))
    return rows


def _shown(value: object, secret: bool) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "–"
    if not secret:
        return str(value)
    return _without_password(str(value)) if "://" in str(value) else "***"


def _without_password(url: str) -> str:
    parts = urlsplit(url)
    user, at, hosts = parts.netloc.rpartition("@")
    query = [(key, "***" if "password" in key else value) for key, value in parse_qsl(parts.query)]
    name, colon, _ = user.partition(":")
    netloc = f"{name}{colon}{'***' if colon else ''}{at}{hosts}"
    return parts._replace(netloc=netloc, query=urlencode(query, safe="*/,:")).geturl()
