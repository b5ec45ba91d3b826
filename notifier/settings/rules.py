"""The rules between settings: what contradicts, and what is warned of."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from notifier import address
from notifier.hosts import is_loopback
from notifier.settings.declared import FIELDS, SECRET_KEY_MIN
from notifier.settings.parsers import Network


def contradictions(values: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    """Return a line for each rule between settings that is broken; a value that is wrong itself is not blamed twice."""

    def missing(name: str) -> bool:
        return sources.get(name) == "default"

    errors = []
    if not missing("GATEWAY_URL") and missing("GATEWAY_TOKEN"):
        errors.append("GATEWAY_TOKEN: missing; GATEWAY_URL is set, so give the gateway's token as well")
    if not missing("DATABASE_URL") and missing("SECRET_KEY"):
        errors.append(
            f"SECRET_KEY: missing; DATABASE_URL is set, so give {SECRET_KEY_MIN} or more random characters, "
            "the same to every replica"
        )
    if not missing("DATABASE_MIGRATION_URL") and missing("DATABASE_URL"):
        errors.append("DATABASE_MIGRATION_URL: DATABASE_URL is missing; give that one too, or neither")
    known = known_values(values, sources)
    timeout, grace = known.get("gateway_timeout"), known.get("shutdown_grace")
    if timeout is not None and grace is not None and timeout >= grace:
        errors.append(
            f"GATEWAY_TIMEOUT: {timeout:g} is not below SHUTDOWN_GRACE, which is {grace:g}; "
            "lower the one or raise the other"
        )
    delay = values.get("drain_delay")
    if delay is not None and grace is not None and delay > grace:
        errors.append(f"DRAIN_DELAY: {delay:g} is over SHUTDOWN_GRACE, which is {grace:g}; lower it or raise that")
    return errors


def known_values(values: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """Return the values and the plain defaults by field; what is wrong, and a default made at the load, is absent."""
    defaults = {field.name: field.default for field in FIELDS if field.default is not dataclasses.MISSING}
    return {name: value for name, value in defaults.items() if sources.get(name.upper()) == "default"} | dict(values)


def warnings_of(known: Mapping[str, Any]) -> list[str]:
    """Return the lines of `Settings.warnings`; a rule over a setting that is not known says nothing."""
    found = []
    role = known.get("role")
    if role in ("all", "api"):
        if known.get("bootstrap_token", "wrong") is None:
            found.append(
                "BOOTSTRAP_TOKEN is not set: nobody can log in or call the API; set it to what this prints, and start"
                " again: python3 -c 'import secrets; print(secrets.token_urlsafe(24))'"
            )
        if {"public_url", "host", "trusted_proxies"} <= known.keys():
            found += _reached(known["public_url"], known["host"], known["trusted_proxies"])
    gateway_url = known.get("gateway_url", "wrong")
    if gateway_url is None and role in ("all", "worker"):
        found.append("GATEWAY_URL is not set: mailings wait")
    if gateway_url is not None and gateway_url.startswith("http://"):
        host = urlsplit(gateway_url).netloc
        if not is_loopback(host):
            found.append(f"GATEWAY_URL: {host} is reached over http://: texts, phones and the token go unencrypted")
    hosts = _unverified(known["database_url"]) if known.get("database_url") is not None else []
    if hosts:
        found.append(
            f"DATABASE_URL: {', '.join(hosts)} is reached without sslmode=verify-full: "
            "whoever is on the way may read and change everything"
        )
    return found


def _reached(public_url: str | None, host: str, trusted_proxies: tuple[Network, ...]) -> list[str]:
    if public_url is None:
        if is_loopback(host):
            return []
        return [
            f"PUBLIC_URL: not set, and HOST is {host}: cookies and tokens may go unencrypted; put TLS before "
            "the service, and set PUBLIC_URL=https://…"
        ]
    if public_url.startswith("https://"):
        if trusted_proxies:
            return []
        return ["TRUSTED_PROXIES: not set: all requests seem to come from the proxy that does the TLS"]
    if is_loopback(urlsplit(public_url).netloc):
        return []
    return ["PUBLIC_URL: is http://: cookies and tokens go unencrypted"]


def _unverified(url: str) -> list[str]:
    """Return the servers of a database's address whose certificate is not checked, except those of this machine."""
    found = address.parse(url)
    if found.words.get("sslmode") == "verify-full":
        return []
    return [str(place) for place in found.places if not (place.host.startswith("/") or is_loopback(place.host))]
