"""Under which address people reach the service, and from which address a request comes."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest

from notifier.hosts import is_loopback, parsed, without_port

Network = IPv4Network | IPv6Network

HOPS_MAX = 20
"""Addresses of ``X-Forwarded-For`` that are looked at: longer chains of proxies are not built, only written by hand."""


@dataclass(frozen=True, slots=True)
class PublicUrl:
    """Scheme, host with port, and path prefix under which the service is reached; all empty where nobody has said so.

    Within the service paths have no prefix: `inside` takes it off, and whatever leads outside puts it before.
    """

    scheme: str = ""
    host: str = ""
    prefix: str = ""

    @classmethod
    def of(cls, text: str | None) -> PublicUrl:
        """Return what a checked ``PUBLIC_URL`` says; it has no default port and no slash at its end."""
        parts = urlsplit(text or "")
        return cls(parts.scheme, parts.netloc, parts.path)

    @property
    def is_https(self) -> bool:
        """Whether everything goes through TLS."""
        return self.scheme == "https"

    @property
    def origin(self) -> str:
        """What a browser sends as ``Origin``; empty where it is not known."""
        return f"{self.scheme}://{self.host}" if self.scheme else ""

    @property
    def url(self) -> str:
        """The whole of it, as it was set; empty where it was not."""
        return self.origin + self.prefix

    def inside(self, uri: str) -> str:
        """Return a request's target without the prefix, which a proxy may take off or leave."""
        rest = uri.removeprefix(self.prefix)
        if rest[:1] not in ("", "/", "?"):
            return uri
        return rest if rest.startswith("/") else f"/{rest}"

    def is_of(self, host: str, client: str) -> bool:
        """Whether a request with this ``Host`` from this client's address may be answered.

        With https only the public host is: a cookie is never asked for over another name, and no name that is made to
        lead here (DNS rebinding) gets an answer. On the machine itself a loopback address does as well.
        """
        return (
            not self.is_https or as_in_origin(host, "https") == self.host or (is_loopback(host) and is_loopback(client))
        )


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks: an IP address as text, and ``http`` or ``https`` as the client spoke it."""

    address: str
    scheme: str


def client_of(request: HTTPServerRequest, proxies: Collection[Network]) -> Client:
    """Return who asks. Only what comes from one of ``proxies`` is believed of ``X-Forwarded-For`` and ``-Proto``.

    The list is read from the right, where each proxy appends whom it saw: the first address that is no proxy of ours is
    the client, and what stands before it anybody may have written. (Tornado's ``xheaders`` believes every peer, and
    ``X-Real-Ip`` more than the list.)
    """
    peer = request.remote_ip or ""
    address = parsed(peer)
    if address is None or not _is_in(address, proxies):  # None: a Unix socket
        return _direct(peer, request.protocol)
    # Tornado has joined the header's lines with commas.
    for text in reversed(request.headers.get("X-Forwarded-For", "").split(",")[-HOPS_MAX:]):
        before = parsed(without_port(text.strip()))
        if before is None:
            break
        address = before
        if not _is_in(address, proxies):
            break
    scheme = request.headers.get("X-Forwarded-Proto", "").rpartition(",")[2].strip().lower()
    return Client(str(address), scheme if scheme in ("http", "https") else request.protocol)


@lru_cache(maxsize=4096)  # the same peers come again and again
def _direct(peer: str, scheme: str) -> Client:
    return Client(str(parsed(peer) or peer), scheme)


def network_of(address: str) -> str:
    """Return what failures are counted by: the address, of IPv6 its /64, which is what one customer gets."""
    found = parsed(address)
    if isinstance(found, IPv6Address):
        return str(ip_network((int(found) >> 64 << 64, 64)))
    return address if found is None else str(found)


def as_in_origin(host: str, scheme: str) -> str:
    """Return ``Host`` as ``Origin`` has it: in small letters, without the scheme's own port."""
    return host.lower().removesuffix(":443" if scheme == "https" else ":80")


def _is_in(address: IPv4Address | IPv6Address, networks: Collection[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
