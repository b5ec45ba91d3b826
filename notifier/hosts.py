"""Hosts as addresses name them, and addresses as people may see them."""

from __future__ import annotations

import re
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import unquote, urlsplit


def without_port(host: str) -> str:
    """Return the host of ``name:80``, ``1.2.3.4:80`` and ``[::1]:80``; one without a port as it is."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


LONGEST = 64
"""Characters that an IP address can have, with room for a zone; a header may be as long as its sender likes."""


def parsed(text: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address, or None where it is none; IPv4 on a socket of both families is IPv4."""
    return _parsed(text) if len(text) <= LONGEST else None


@lru_cache(maxsize=4096)  # the same peers come again and again; parsing takes as long as the rest of a request's head
def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address


def is_loopback(host: str) -> bool:
    """Whether a host, with or without a port, names this machine itself."""
    name = without_port(host.lower())
    if name == "localhost" or name.endswith(".localhost"):
        return True
    address = parsed(name)
    return address is not None and address.is_loopback


def without_secrets(url: str) -> str:
    """Return an address as people may see it: what may be secret in its path is ``***``, credentials and query are off.

    Raises ValueError where it is none.
    """
    parts = urlsplit(url)
    path = "/".join("***" if _may_be_secret(part) else part for part in parts.path.split("/"))
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], path=path, query="", fragment="").geturl()


def secrets_in(url: str) -> list[str]:
    """Return what may be secret in the path of an address, as it is written and decoded."""
    found = [part for part in urlsplit(url).path.split("/") if _may_be_secret(part)]
    return list(dict.fromkeys(found + [unquote(part) for part in found]))


# What stands in the paths of APIs: anything short, and a word with a version, like `messages`, `sms-gateway` or `api2`.
_PLAIN = re.compile(r".{0,6}|[a-z][a-z._-]{0,14}[0-9]{0,2}", re.IGNORECASE)


def _may_be_secret(part: str) -> bool:
    return _PLAIN.fullmatch(part) is None
