"""The list of settings: of each its parser, its default, its meaning, and whether it is secret."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from notifier.settings import parsers
from notifier.settings.parsers import Network

Role = Literal["all", "api", "worker"]
OnUnknown = Literal["retry", "hold"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]

BOOTSTRAP_TOKEN_MIN = 20
"""Characters of ``BOOTSTRAP_TOKEN``."""
SECRET_KEY_MIN = 32
"""Characters of ``SECRET_KEY``."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as people see it; ``default`` is text for the documentation, ``None`` if there is none."""

    name: str
    default: str | None
    meaning: str
    secret: bool


def _terminal_format() -> LogFormat:
    return "console" if _on_a_terminal() else "json"


def _terminal_delay() -> float:
    return 0.0 if _on_a_terminal() else 3.0


def _on_a_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _setting(
    parse: Callable[[str], Any],
    default: Any,
    meaning: str,
    *,
    secret: bool = False,
    shown: str | None = None,
) -> Any:
    """Declare a field; a callable default is called for each load, ``shown`` is its wording for people."""
    text = shown if shown is not None or default is None else str(default)
    metadata = {"parse": parse, "shown": text, "meaning": meaning, "secret": secret}
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, repr=not secret, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class Declared:
    """Every setting, as a field. The field's name in capitals is the variable's name."""

    database_url: str | None = _setting(
        parsers.postgres_url,
        None,
        "PostgreSQL 15 or newer; several hosts and `target_session_attrs` allowed. "
        "Without it an embedded PostgreSQL runs in `DATA_DIR`",
        secret=True,
    )
    database_statement_cache: int = _setting(
        parsers.whole(0, 10_000),
        100,
        "prepared statements kept per connection; none behind a pooler that loses them, which the start finds out",
    )
    database_migration_url: str | None = _setting(
        parsers.postgres_url,
        None,
        "a direct address for migrations where the other goes through a pooler",
        secret=True,
        shown="DATABASE_URL",
    )
    data_dir: Path = _setting(parsers.path, Path(".data"), "home of the embedded database")
    host: str = _setting(
        parsers.hosts,
        "127.0.0.1",
        "addresses to listen on, separated by commas; `::` is every one of both families, `0.0.0.0` of IPv4",
    )
    port: int = _setting(parsers.whole(0, 65_535), 8080, "port to listen on; 0 takes a free one")
    instance: str | None = _setting(
        parsers.name,
        None,
        "name of this installation; a database that another one used last sends nothing until it is released",
    )
    public_url: str | None = _setting(
        parsers.public_url,
        None,
        "address under which people reach the service: scheme, host, port and path prefix. With https cookies are "
        "Secure, and other hosts are refused",
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        parsers.networks,
        (),
        "addresses and networks of proxies, separated by commas, whose `X-Forwarded-For` and `X-Forwarded-Proto` "
        "are believed",
        shown="",
    )
    role: Role = _setting(
        parsers.choice("all", "api", "worker"),
        "all",
        "`all`, `api` (no scheduler) or `worker` (scheduler, health and metrics only)",
    )
    gateway_url: str | None = _setting(
        parsers.gateway_url,
        None,
        "base address of the sending API. Without it mailings wait, and say so",
    )
    gateway_token: str | None = _setting(
        parsers.bearer,
        None,
        "JWT of the sending API; required with `GATEWAY_URL`; its file is read again when it changes",
        secret=True,
    )
    gateway_concurrency: int = _setting(
        parsers.whole(1, 10_000), 100, "requests in flight at most, per replica: 1..10000"
    )
    gateway_rate: float = _setting(
        parsers.number(0), 0.0, "messages a second at most, all replicas together; 0 = no limit", shown="0"
    )
    gateway_timeout: float = _setting(
        parsers.number(1, 30),
        15.0,
        "seconds for a whole request, 1..30 and below `SHUTDOWN_GRACE`; connecting is cut at 3",
        shown="15",
    )
    gateway_on_unknown: OnUnknown = _setting(
        parsers.choice("retry", "hold"),
        "retry",
        "a message whose outcome cannot be known: `retry` (the gateway drops a repeated id) "
        "or `hold` (never sent again by itself)",
    )
    bootstrap_token: str | None = _setting(
        lambda text: parsers.secret(BOOTSTRAP_TOKEN_MIN)(parsers.bearer(text)),
        None,
        "the API token, with every scope; in this version it is the only one, for people and programs alike; "
        f"at least {BOOTSTRAP_TOKEN_MIN} characters",
        secret=True,
    )
    secret_key: str | None = _setting(
        parsers.secret(SECRET_KEY_MIN),
        None,
        "signs cookies and what replicas compare of the gateway's token; "
        f"at least {SECRET_KEY_MIN} characters; required with `DATABASE_URL`",
        secret=True,
        shown="made and kept in DATA_DIR when embedded",
    )
    default_timezone: str = _setting(
        parsers.zone, "UTC", "IANA zone of a client that names none, and of the admin pages"
    )
    log_level: LogLevel = _setting(
        parsers.choice("debug", "info", "warning", "error"), "info", "`debug`, `info`, `warning` or `error`"
    )
    log_format: LogFormat = _setting(
        parsers.choice("console", "json"),
        _terminal_format,
        "`console` or `json`",
        shown="console on a terminal, else json",
    )
    pause_all: bool = _setting(
        parsers.switch,
        False,
        "1: serve everything but send nothing (after a restore from backup)",
        shown="0",
    )
    shutdown_grace: float = _setting(
        parsers.number(1, 3600), 20.0, "seconds to finish requests in flight after SIGTERM", shown="20"
    )
    drain_delay: float = _setting(
        parsers.number(0, 3600),
        _terminal_delay,
        "seconds after SIGTERM in which `/readyz` is 503 and everything is still answered, so that a load balancer "
        "hears of the stop; at most `SHUTDOWN_GRACE`",
        shown="3, on a terminal 0",
    )


FIELDS = dataclasses.fields(Declared)
SETTINGS = tuple(
    Setting(field.name.upper(), field.metadata["shown"], field.metadata["meaning"], field.metadata["secret"])
    for field in FIELDS
)
