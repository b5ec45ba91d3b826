"""The address of the database, read once for both drivers: asyncpg, which serves, and libpq (psycopg), which migrates.

libpq's own parser reads it, so host, port, database and user mean to both what they mean to psql. What asyncpg cannot
do is refused here by name, before anybody waits for a server. No message holds a letter of what stands between "//" and
the host: whatever is wrong there may be a piece of a password.
"""

from __future__ import annotations

import difflib
import random
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes, urlencode

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo

FORM = "give postgresql://user:secret@host:5432/database"
ENCODE = "in the credentials write % as %25, @ as %40, : as %3A, / as %2F, ? as %3F, # as %23, [ as %5B, ] as %5D"
SOCKETS = "/var/run/postgresql,/tmp,localhost"
"""Where an address without a host leads: the folders in which PostgreSQL's packages put their socket, then TCP."""
BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Red Hat
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",  # macOS
)
"""Files with the certificates that the system trusts, should OpenSSL name none."""


# ---- what each of libpq's parameters may be (PostgreSQL 18, "Parameter Key Words")


def _one_of(*choices: str) -> Callable[[str], str | None]:
    return lambda value: None if value in choices else f"is not one of {', '.join(choices)}"


def _only(*choices: str, because: str) -> Callable[[str], str | None]:
    return lambda value: None if value in choices else because


def _whole(value: str) -> str | None:
    return None if re.fullmatch(r"-?[0-9]{1,9}", value) else "is not a whole number"


def _readable(value: str) -> str | None:
    try:
        with Path(value).open("rb"):
            return None
    except (OSError, ValueError) as error:
        return f"names a file that cannot be read ({getattr(error, 'strerror', None) or 'no path'})"


def _never(because: str) -> Callable[[str], str | None]:
    return lambda _: because


def _anything(_: str) -> str | None:
    return None


_OTHERS_CHECK = "asks for a check that the service's driver cannot make; leave it out, and use sslmode=verify-full"
_TLS_VERSION = _one_of("TLSv1", "TLSv1.1", "TLSv1.2", "TLSv1.3")
RULES: Mapping[str, Callable[[str], str | None]] = {
    "user": _anything,
    "password": _anything,
    "passfile": _anything,
    "host": _anything,
    "hostaddr": _anything,
    "port": _anything,
    "dbname": _anything,
    "options": _anything,
    "application_name": _anything,
    "fallback_application_name": _anything,  # our own name stands in its place
    "connect_timeout": _whole,
    # Left to libpq: the service gives up each statement after seconds, and so finds a peer that is gone.
    "keepalives": _whole,
    "keepalives_idle": _whole,
    "keepalives_interval": _whole,
    "keepalives_count": _whole,
    "tcp_user_timeout": _whole,
    "target_session_attrs": _one_of("any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
    "load_balance_hosts": _one_of("disable", "random"),
    "client_encoding": _only("utf8", "UTF8", "utf-8", "UTF-8", "auto", because="must be UTF8, or left out"),
    "sslmode": _one_of("disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
    "sslnegotiation": _one_of("postgres", "direct"),
    "sslrootcert": lambda value: None if value == "system" else _readable(value),
    "sslcert": _readable,
    "sslkey": _readable,
    "sslcrl": _readable,
    "sslpassword": _anything,
    "ssl_min_protocol_version": _TLS_VERSION,
    "ssl_max_protocol_version": _TLS_VERSION,
    "sslcompression": _one_of("0", "1"),  # ignored by libpq too
    "sslsni": _only("1", because="cannot be switched off; leave it out"),
    "sslcertmode": _only("allow", because="can only be allow; leave it out"),
    "sslcrldir": _never("is not supported; put the list into one file and name it with sslcrl"),
    "sslkeylogfile": _never("is not supported; set the environment variable SSLKEYLOGFILE"),
    "channel_binding": _one_of("disable", "prefer", "require"),
    "require_auth": _never(_OTHERS_CHECK),
    "requirepeer": _never(_OTHERS_CHECK),
    "gssencmode": _only("disable", "prefer", because="can only be disable or prefer: GSS encryption is not supported"),
    "krbsrvname": _anything,
    "gsslib": _only("gssapi", because="can only be gssapi"),
    "gssdelegation": _only("0", because="is not supported; leave it out"),
    "min_protocol_version": _only("3.0", because="can only be 3.0, the version that the service's driver speaks"),
    "max_protocol_version": _anything,
    "replication": _never("is for replication only; leave it out"),
    "service": _never("is not supported; write out what the service file says"),
    "servicefile": _never("is not supported; write out what the service file says"),
}
# What asyncpg takes inside an address only.
_TLS = (
    *("sslmode", "sslnegotiation", "sslrootcert", "sslcert", "sslkey", "sslcrl", "sslpassword"),
    *("ssl_min_protocol_version", "ssl_max_protocol_version"),
)


@dataclass(frozen=True, slots=True)
class Place:
    """One server: a host name, an IP address or the folder of a socket (with "/"), and its port."""

    host: str
    port: int

    def __str__(self) -> str:
        return self.host if self.host.startswith("/") else f"{self.host}:{self.port}"


@dataclass(frozen=True)
class Address:
    """A checked address; ``words`` are libpq's parameters, with host, port, user and dbname always given."""

    words: Mapping[str, str]

    def __repr__(self) -> str:
        return f"Address({self})"

    def __str__(self) -> str:
        """The servers, for people: no user, no password."""
        return ", ".join(map(str, self.places))

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """The servers in the order in which they are tried."""
        hosts = (self.words.get("hostaddr") or self.words["host"]).split(",")
        ports = self.words["port"].split(",")
        return tuple(
            Place(host, int(port)) for host, port in zip(hosts, ports * (len(hosts) // len(ports)), strict=True)
        )

    def conninfo(self, **more: str) -> str:
        """The connection string for psycopg."""
        return make_conninfo(**(dict(self.words) | more))

    def asyncpg(self, *, timeout: float) -> dict[str, Any]:
        """What `asyncpg.connect` and `asyncpg.create_pool` take; ``timeout`` (seconds) unless `connect_timeout` is set.

        ``server_settings`` are the address's own; the caller adds to them.
        """
        words, places = self.words, list(self.places)
        if words.get("load_balance_hosts") == "random":
            random.shuffle(places)
        given = int(words.get("connect_timeout", "0"))
        tcp = any(not place.host.startswith("/") for place in places)
        tls = {name: words[name] for name in _TLS if name in words}
        return {
            "dsn": f"postgresql://?{urlencode(tls, quote_via=quote)}" if tcp and tls else None,
            "ssl": None if "sslmode" in words and tcp else "prefer" if tcp else False,
            "host": [place.host for place in places],
            "port": [place.port for place in places],
            "user": words["user"],
            "password": words.get("password"),
            "passfile": words.get("passfile"),
            "database": words["dbname"],
            "target_session_attrs": words.get("target_session_attrs", "any"),
            "krbsrvname": words.get("krbsrvname"),
            "gsslib": words.get("gsslib"),
            "timeout": float(given * len(places)) if given > 0 else timeout,
            "server_settings": {name: words[name] for name in ("application_name", "options") if name in words},
        }


def parse(text: str) -> Address:
    """Read ``postgresql://…``; what it leaves open comes from the environment (PGHOST, PGUSER, …) as for psql.

    Raises ``ValueError`` with one sentence that says what to write instead, without any of the address's secrets.
    """
    scheme, found, rest = text.partition("://")
    if not found or scheme not in ("postgresql", "postgres"):
        raise ValueError(f"does not begin with postgresql:// or postgres://; {FORM}")
    if wrong := _unreadable(rest):
        raise ValueError(wrong)
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    query = rest.partition("?")[2]
    _check_hosts(authority.rpartition("@")[2])
    _check_names(query)
    try:
        given = conninfo_to_dict(text)
    except psycopg.Error as error:
        raise ValueError(f"is not an address; {FORM}") from error
    words = {name: str(value) for name, value in given.items() if value not in (None, "")}
    for option in pq.Conninfo.get_defaults():
        name = option.keyword.decode()
        # The user of the operating system is no environment variable; libpq finds it out.
        if option.val and (option.val != option.compiled) and name not in words and name != "service":
            words[name] = option.val.decode()
    return _complete(words)


def _unreadable(rest: str) -> str | None:
    """What keeps ``rest`` (behind "//") from being split into its parts, or splits it where nobody meant it to."""
    if any(character.isspace() or not character.isprintable() for character in rest):
        return f"contains spaces or control characters; write a space as %20, and {ENCODE}"
    if re.search("%(?![0-9a-fA-F]{2})", rest):
        return f"has a % without two hexadecimal digits behind it; {ENCODE}"
    if "#" in rest:
        return f"contains a #; {ENCODE}"
    try:
        if "\0" in unquote_to_bytes(rest).decode():
            return "contains a %00, which PostgreSQL cannot take"
    except UnicodeDecodeError:
        return f"is not UTF-8 where it is percent-encoded; {ENCODE}"
    authority = re.split("[/?]", rest, maxsplit=1)[0]
    if authority.count("@") > 1:
        return f"contains more than one @ before the database; {ENCODE}"
    if "@" in rest[len(authority) :]:
        return f"contains an @ behind a / or a ?; {ENCODE}, and an @ behind the host as %40"
    user = authority.rpartition("@")[0]
    if "[" in user or "]" in user:
        return f"contains brackets before the @; {ENCODE}"
    return None


def _check_hosts(hosts: str) -> None:
    """Refuse what is no list of ``host``, ``host:port``, ``[IPv6]`` or ``[IPv6]:port``."""
    for host in hosts.split(","):
        if not re.fullmatch(r"(\[[0-9a-fA-F:.%a-z]*\]|[^\[\]:]*)(:.*)?", host):
            raise ValueError(f"has a host that is none; {FORM}, with an IPv6 address in brackets")
        port = re.sub(r"^\[.*\]", "", host).partition(":")[2]
        if port and not _is_port(port):
            raise ValueError(f"has a port that is not a number from 1 to 65535; {FORM}, and {ENCODE}")


def _is_port(text: str) -> bool:
    return bool(re.fullmatch("[0-9]{1,5}", text)) and 1 <= int(text) <= 65_535


def _check_names(query: str) -> None:
    """Refuse parameters that libpq does not know; what may be the rest of a password is not named."""
    secret = False
    for part in query.split("&") if query else ():
        name, equals, value = part.partition("=")
        if name not in RULES and (name, value) != ("ssl", "true"):
            if secret or not equals or not re.fullmatch("[a-z_]{3,40}", name):
                raise ValueError(
                    f"has a parameter that libpq does not know; write & inside a value as %26, and {ENCODE}"
                )
            likely = difflib.get_close_matches(name, RULES, n=1)
            hint = f"did you mean {likely[0]}?" if likely else "leave it out"
            raise ValueError(f"has a parameter {name}, which libpq does not know; {hint}")
        if not equals or "=" in value:
            raise ValueError(f"has a parameter {name} that is not name=value; write = inside a value as %3D")
        secret = secret or "password" in name


def _complete(words: dict[str, str]) -> Address:
    """Fill in what libpq and asyncpg would each guess in their own way, and check every parameter."""
    for name, value in words.items():
        if wrong := RULES.get(name, _never("is not supported; leave it out"))(value):
            raise ValueError(f"{name} {wrong}")
    words.setdefault("host", words.get("hostaddr") or SOCKETS)
    words["port"] = ",".join(port or "5432" for port in words.get("port", "").split(","))
    if "user" not in words:
        raise ValueError(f"names no user, and this process has no user's name; {FORM}")
    words.setdefault("dbname", words["user"])
    hosts, ports = words["host"].split(","), words["port"].split(",")
    if not all(map(_is_port, ports)):
        raise ValueError("port is not a number from 1 to 65535, or such numbers with commas between them")
    if len(ports) not in (1, len(hosts)):
        raise ValueError(f"names {len(hosts)} hosts and {len(ports)} ports; give one port, or one for each host")
    if "" in hosts or any(host.startswith("@") for host in hosts):
        raise ValueError(
            "has a host without a name, or an abstract socket; name each host, or the folder of its socket"
        )
    addresses = words.get("hostaddr", words["host"]).split(",")
    if len(addresses) != len(hosts):
        raise ValueError(f"names {len(hosts)} hosts and {len(addresses)} host addresses; give as many of both")
    _complete_tls(words)
    return Address(words)


def _complete_tls(words: dict[str, str]) -> None:
    if words.get("sslrootcert") == "system":
        if words.setdefault("sslmode", "verify-full") != "verify-full":
            raise ValueError("sslrootcert=system needs sslmode=verify-full")
        words["sslrootcert"] = _system_certificates()
    mode = words.get("sslmode", "prefer")
    if mode == "verify-full" and words.get("hostaddr", words["host"]) != words["host"]:
        raise ValueError("hostaddr cannot be had together with sslmode=verify-full; leave hostaddr out")
    if words.get("channel_binding") == "require" and mode != "verify-full":
        raise ValueError(
            "channel_binding=require is not supported by the service's driver; write "
            "sslmode=verify-full&sslrootcert=system instead, which proves the server by its certificate"
        )
    if words.get("sslnegotiation") == "direct" and mode not in ("require", "verify-ca", "verify-full"):
        raise ValueError("sslnegotiation=direct needs sslmode=require, verify-ca or verify-full")


def _system_certificates() -> str:
    """The file with the certificates that the system trusts: psycopg's own OpenSSL looks in a folder of its own."""
    for path in (ssl.get_default_verify_paths().cafile, *BUNDLES):
        if path and _readable(path) is None:
            return path
    raise ValueError("sslrootcert=system: this system has no file of trusted certificates; name one with sslrootcert")
