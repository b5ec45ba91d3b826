"""Hosts as addresses name them."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address


def without_port(host: str) -> str:
    """Return the host of ``name:80``, ``1.2.3.4:80`` and ``[::1]:80``; one without a port as it is."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0] if host.count(":") == 1 else host


@lru_cache(maxsize=4096)  # the same peers come again and again; parsing takes as long as the rest of a request's head
def parsed(text: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address, or None where it is none; IPv4 on a socket of both families is IPv4."""
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
