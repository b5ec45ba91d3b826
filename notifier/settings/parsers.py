"""From the text of a setting to its value.

Each parser raises ValueError that says what would be right. The text of a secret is never quoted.
"""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from notifier import address, zones

Network = IPv4Network | IPv6Network

SECRET_VARIETY = 10
"""Different characters that a secret has at least."""
MAKE_ONE = "To make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
"""How a secret is made; the end of each message about a bad one."""
OWN_PATHS = ("admin", "api", "docs", "static", "receipts", "openapi.json", "healthz", "readyz", "metrics")
"""The first parts of the service's own paths: no path prefix may begin with one of them."""


def word(text: str) -> str:
    """Return text that has neither spaces nor control characters."""
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError("contains spaces or control characters; give it without")
    return text


def hosts(text: str) -> str:
    """Return addresses to listen on, separated by commas, IPv6 without brackets."""
    return ",".join(_host(part.strip()) for part in text.split(","))


def _host(text: str) -> str:
    """Return an address without the brackets that IPv6 may have, or a name."""
    bare = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in bare:
        try:
            ipaddress.IPv6Address(bare)
        except ValueError:
            raise ValueError(f"{text!r} is no address; a port is given as PORT") from None
    elif bare != text or not re.fullmatch(r"[A-Za-z0-9._-]+", bare):
        raise ValueError(f"{text!r} is no address; give one like 127.0.0.1, ::1 or 127.0.0.1,::1; :: is every one")
    return bare


def whole(low: int, high: int) -> Callable[[str], int]:
    """Return the parser of a whole number from ``low`` to ``high``."""

    def parse(text: str) -> int:
        if text.isascii() and text.isdecimal() and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"{text!r} is not a whole number from {low} to {high}")

    return parse


def number(low: float, high: float = math.inf) -> Callable[[str], float]:
    """Return the parser of a number from ``low`` to ``high``."""
    right = f"a number from {low:g} to {high:g}" if math.isfinite(high) else f"a number, {low:g} or more"

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if "_" in text or not (math.isfinite(value) and low <= value <= high):
            raise ValueError(f"{text!r} is not {right}")
        return value

    return parse


def choice(*choices: str) -> Callable[[str], str]:
    """Return the parser of one of ``choices``, in any case of letters."""

    def parse(text: str) -> str:
        if text.lower() in choices:
            return text.lower()
        raise ValueError(f"{text!r} is not one of {', '.join(choices)}")

    return parse


def switch(text: str) -> bool:
    """Return whether the text is 1 and not 0."""
    if text in ("0", "1"):
        return text == "1"
    raise ValueError(f"{text!r} is neither 0 nor 1")


def name(text: str) -> str:
    """Return a name of 1 to 64 printable characters."""
    if len(text) > 64 or not text.isprintable() or text != text.strip():
        raise ValueError("is not a name; give 1 to 64 printable characters, like production")
    return text


def path(text: str) -> Path:
    """Return a path; whether it exists is not looked at."""
    if "\0" in text:
        raise ValueError("is not a path")
    return Path(text)


def zone(text: str) -> str:
    """Return the name of a time zone that this machine knows."""
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{text!r} {zones.refusal(text)}") from error
    return text


def postgres_url(text: str) -> str:
    """Return the address of a PostgreSQL as it was given, when `address.parse` can read it."""
    address.parse(text)
    return text


def gateway_url(text: str) -> str:
    """Return the base address of a gateway, without a slash at its end."""
    right = "give one like https://gateway.example.com"
    try:
        parts = urlsplit(word(text))
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    # Not quoted below this line either: an address that is refused may hold a password.
    if not usable:
        raise ValueError(f"is not an http:// or https:// address; {right}")
    if "@" in parts.netloc:
        raise ValueError("contains a user or a password; put the token into GATEWAY_TOKEN")
    if "?" in text or "#" in text:
        raise ValueError(f"contains a query or a fragment, which cannot be a base address; {right}")
    return text.rstrip("/")


def public_url(text: str) -> str:
    """Return the address of the service as browsers write it: no default port, no slash at its end."""
    right = "give one like https://notifier.example.com or https://example.com/notifier"
    try:
        parts = urlsplit(word(text))
        port = parts.port
    except ValueError as error:
        raise ValueError(f"is not an address; {right}") from error
    host = parts.hostname
    if "@" in parts.netloc:
        raise ValueError(f"contains a user or a password, which no link may carry; {right}")
    if parts.scheme not in ("http", "https") or not host or port == 0 or parts.netloc.endswith(":"):
        raise ValueError(f"{text!r} is not an http:// or https:// address; {right}")
    if "?" in text or "#" in text:
        raise ValueError(f"contains a query or a fragment, which cannot be a base address; {right}")
    if not host.isascii():
        raise ValueError(f"{host!r} is not what browsers send; give it as {_ascii_host(host)}")
    path = parts.path.rstrip("/")
    segments = path.split("/")[1:]
    if any(not re.fullmatch(r"[\w.~-]+", each, re.ASCII) or each in (".", "..") for each in segments):
        raise ValueError(f"its path {path!r} may have letters, digits and . _ ~ - between single slashes; {right}")
    if segments and segments[0] in OWN_PATHS:
        raise ValueError(f"its path begins with /{segments[0]}, which is an address of the service; take another")
    host = f"[{host}]" if ":" in host else host
    default = {"http": 80, "https": 443}[parts.scheme]
    return f"{parts.scheme}://{host}{f':{port}' if port not in (None, default) else ''}{path}"


def _ascii_host(host: str) -> str:
    try:
        return host.encode("idna").decode()
    except UnicodeError:
        return "ASCII"


def networks(text: str) -> tuple[Network, ...]:
    """Return addresses and networks, separated by commas; none of them may be everybody."""
    networks = []
    for each in filter(None, (part.strip() for part in text.split(","))):
        try:
            network = ip_network(each, strict=False)
        except ValueError as error:
            raise ValueError(
                f"{each!r} is no address and no network; give some like 10.0.0.5, 10.1.0.0/16, separated by commas"
            ) from error
        if "/" in each and ip_address(each.partition("/")[0]) != network.network_address:
            raise ValueError(
                f"{each!r} has bits set beyond its mask; give {network} for the network, or the address alone"
            )
        if network.prefixlen == 0:
            raise ValueError(f"{each!r} would believe everybody; name the proxies' addresses or networks")
        networks.append(network)
    return tuple(networks)


def bearer(text: str) -> str:
    """Return a token that an ``Authorization`` header can carry."""
    if not text.isascii():
        raise ValueError("contains characters a header cannot carry; give ASCII")
    return word(text)


def secret(least: int) -> Callable[[str], str]:
    """Return the parser of a secret that nobody can guess: ``least`` characters, varied, not from an example."""

    def parse(text: str) -> str:
        if len(text) < least:
            raise ValueError(f"has {len(text)} character{'s' * (len(text) != 1)}; give at least {least}. {MAKE_ONE}")
        if len(set(text)) < SECRET_VARIETY:
            raise ValueError(f"has fewer than {SECRET_VARIETY} different characters and can be guessed. {MAKE_ONE}")
        if re.search("change[-_ ]?me", text, re.IGNORECASE):
            raise ValueError(f"is an example's, which everybody knows. {MAKE_ONE}")
        return text

    return parse
