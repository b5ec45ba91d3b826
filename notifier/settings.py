"""Settings from the environment: read once, checked whole, never changed.

The fields of `Settings` are the only list: `SETTINGS`, the README's test and ``config check`` come from it.
"""

from __future__ import annotations

import dataclasses
import difflib
import ipaddress
import math
import os
import re
import secrets
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any, Literal
from urllib.parse import parse_qsl, urlencode, urlsplit
from zoneinfo import ZoneInfo

from dotenv.parser import parse_stream

from notifier import address, install, zones
from notifier.errors import SettingsError
from notifier.hosts import is_loopback, without_secrets

Role = Literal["all", "api", "worker"]
OnUnknown = Literal["retry", "hold"]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["console", "json"]
Network = IPv4Network | IPv6Network

BOOTSTRAP_TOKEN_MIN = 20
SECRET_KEY_MIN = 32
SECRET_VARIETY = 10
MAKE_ONE = "To make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
OWN_PATHS = ("admin", "api", "docs", "static", "receipts", "openapi.json", "healthz", "readyz", "metrics")
"""Where the service's own paths begin, so no path prefix may."""
# In the environment misspelt names are looked for only here: too many other programs use HOST, LOG_… and the like.
OWN_PREFIXES = ("DATABASE_", "GATEWAY_")


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting as people see it; ``default`` is text for the documentation, ``None`` if there is none."""

    name: str
    default: str | None
    meaning: str
    secret: bool


# Parsers: text → value, or ValueError with what would be right. What is secret is never quoted.


def _text(text: str) -> str:
    if any(character.isspace() or not character.isprintable() for character in text):
        raise ValueError("contains spaces or control characters; give it without")
    return text


def _hosts(text: str) -> str:
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


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if text.isascii() and text.isdecimal() and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"{text!r} is not a whole number from {low} to {high}")

    return parse


def _number(low: float, high: float = math.inf) -> Callable[[str], float]:
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


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() in choices:
            return text.lower()
        raise ValueError(f"{text!r} is not one of {', '.join(choices)}")

    return parse


def _switch(text: str) -> bool:
    if text in ("0", "1"):
        return text == "1"
    raise ValueError(f"{text!r} is neither 0 nor 1")


def _name(text: str) -> str:
    if len(text) > 64 or not text.isprintable() or text != text.strip():
        raise ValueError("is not a name; give 1 to 64 printable characters, like production")
    return text


def _path(text: str) -> Path:
    if "\0" in text:
        raise ValueError("is not a path")
    return Path(text)


def _zone(text: str) -> str:
    try:
        ZoneInfo(text)
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"{text!r} {zones.refusal(text)}") from error
    return text


def _postgres_url(text: str) -> str:
    address.parse(text)
    return text


def _gateway_url(text: str) -> str:
    right = "give one like https://gateway.example.com"
    try:
        parts = urlsplit(_text(text))
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


def _public_url(text: str) -> str:
    right = "give one like https://notifier.example.com or https://example.com/notifier"
    try:
        parts = urlsplit(_text(text))
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


def _networks(text: str) -> tuple[Network, ...]:
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


def _bearer(text: str) -> str:
    if not text.isascii():
        raise ValueError("contains characters a header cannot carry; give ASCII")
    return _text(text)


def _secret(least: int) -> Callable[[str], str]:
    """A secret that nobody guesses: long, of many different characters, and not out of a manual."""

    def parse(text: str) -> str:
        if len(text) < least:
            raise ValueError(f"has {len(text)} character{'s' * (len(text) != 1)}; give at least {least}. {MAKE_ONE}")
        if len(set(text)) < SECRET_VARIETY:
            raise ValueError(f"has fewer than {SECRET_VARIETY} different characters and can be guessed. {MAKE_ONE}")
        if re.search("change[-_ ]?me", text, re.IGNORECASE):
            raise ValueError(f"is an example's, which everybody knows. {MAKE_ONE}")
        return text

    return parse


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
class Settings:
    """Every setting, checked. A field's name in capitals is the variable's name.

    ``sources`` says for each name where it came from: ``environment``, ``.env``, ``file`` or ``default``.
    """

    database_url: str | None = _setting(
        _postgres_url,
        None,
        "PostgreSQL 15 or newer; several hosts and `target_session_attrs` allowed. "
        "Without it an embedded PostgreSQL runs in `DATA_DIR`",
        secret=True,
    )
    database_statement_cache: int = _setting(
        _whole(0, 10_000),
        100,
        "prepared statements kept per connection; none behind a pooler that loses them, which the start finds out",
    )
    database_migration_url: str | None = _setting(
        _postgres_url,
        None,
        "a direct address for migrations where the other goes through a pooler",
        secret=True,
        shown="DATABASE_URL",
    )
    data_dir: Path = _setting(_path, Path(".data"), "home of the embedded database")
    host: str = _setting(
        _hosts,
        "127.0.0.1",
        "addresses to listen on, separated by commas; `::` is every one of both families, `0.0.0.0` of IPv4",
    )
    port: int = _setting(_whole(0, 65_535), 8080, "port to listen on; 0 takes a free one")
    instance: str | None = _setting(
        _name,
        None,
        "name of this installation; a database that another one used last sends nothing until it is released",
    )
    public_url: str | None = _setting(
        _public_url,
        None,
        "address under which people reach the service: scheme, host, port and path prefix. With https cookies are "
        "Secure, and other hosts are refused",
    )
    trusted_proxies: tuple[Network, ...] = _setting(
        _networks,
        (),
        "addresses and networks of proxies, separated by commas, whose `X-Forwarded-For` and `X-Forwarded-Proto` "
        "are believed",
        shown="",
    )
    role: Role = _setting(
        _choice("all", "api", "worker"),
        "all",
        "`all`, `api` (no scheduler) or `worker` (scheduler, health and metrics only)",
    )
    gateway_url: str | None = _setting(
        _gateway_url,
        None,
        "base address of the sending API. Without it mailings wait, and say so",
    )
    gateway_token: str | None = _setting(
        _bearer,
        None,
        "JWT of the sending API; required with `GATEWAY_URL`; its file is read again when it changes",
        secret=True,
    )
    gateway_concurrency: int = _setting(_whole(1, 10_000), 100, "requests in flight at most, per replica: 1..10000")
    gateway_rate: float = _setting(
        _number(0), 0.0, "messages a second at most, all replicas together; 0 = no limit", shown="0"
    )
    gateway_timeout: float = _setting(
        _number(1, 30),
        15.0,
        "seconds for a whole request, 1..30 and below `SHUTDOWN_GRACE`; connecting is cut at 3",
        shown="15",
    )
    gateway_on_unknown: OnUnknown = _setting(
        _choice("retry", "hold"),
        "retry",
        "a message whose outcome cannot be known: `retry` (the gateway drops a repeated id) "
        "or `hold` (never sent again by itself)",
    )
    bootstrap_token: str | None = _setting(
        lambda text: _secret(BOOTSTRAP_TOKEN_MIN)(_bearer(text)),
        None,
        "the API token, with every scope; in this version it is the only one, for people and programs alike; "
        f"at least {BOOTSTRAP_TOKEN_MIN} characters",
        secret=True,
    )
    secret_key: str | None = _setting(
        _secret(SECRET_KEY_MIN),
        None,
        "signs cookies and what replicas compare of the gateway's token; "
        f"at least {SECRET_KEY_MIN} characters; required with `DATABASE_URL`",
        secret=True,
        shown="made and kept in DATA_DIR when embedded",
    )
    default_timezone: str = _setting(_zone, "UTC", "IANA zone of a client that names none, and of the admin pages")
    log_level: LogLevel = _setting(
        _choice("debug", "info", "warning", "error"), "info", "`debug`, `info`, `warning` or `error`"
    )
    log_format: LogFormat = _setting(
        _choice("console", "json"),
        _terminal_format,
        "`console` or `json`",
        shown="console on a terminal, else json",
    )
    pause_all: bool = _setting(
        _switch,
        False,
        "1: serve everything but send nothing (after a restore from backup)",
        shown="0",
    )
    shutdown_grace: float = _setting(
        _number(1, 3600), 20.0, "seconds to finish requests in flight after SIGTERM", shown="20"
    )
    drain_delay: float = _setting(
        _number(0, 3600),
        _terminal_delay,
        "seconds after SIGTERM in which `/readyz` is 503 and everything is still answered, so that a load balancer "
        "hears of the stop; at most `SHUTDOWN_GRACE`",
        shown="3, on a terminal 0",
    )
    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    gateway_token_file: Path | None = None  # where `gateway_token` was read, and is read again when it changes
    env_file: Path | None = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, env_file: Path | None = None) -> Settings:
        """Read and check every setting; ``environ`` defaults to the process's own and beats ``env_file``.

        An empty value counts as not given; `find_env_file` says which file is the one to read.
        Raises `SettingsError` with one line for each thing that is wrong.
        """
        errors: list[str] = []
        in_file = _read_env_file(env_file, errors)
        given = {name: (text, ".env") for name, text in in_file.items() if text}
        given |= {
            name: (text, "environment") for name, text in (os.environ if environ is None else environ).items() if text
        }
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for field in _FIELDS:
            name = field.name.upper()
            if name not in given and in_file.get(name, "") is None:
                continue  # its line is an error already
            try:
                text, sources[name] = _find(name, field.metadata["secret"], given)
                if text is not None:
                    values[field.name] = field.metadata["parse"](text)
            except ValueError as error:
                errors.append(f"{name}: {error}")
        errors += _misspelt(given)
        errors += _contradictions(values, sources)
        if errors:
            raise SettingsError(errors, _rows(values, sources), _warnings(_known(values, sources)))
        values.setdefault("database_migration_url", values.get("database_url"))
        token_file = given.get("GATEWAY_TOKEN_FILE")
        return cls(**values, sources=sources, env_file=env_file, gateway_token_file=token_file and Path(token_file[0]))

    def warnings(self) -> list[str]:
        """Return a line for what cannot be done with these settings, and for what others can read on the way."""
        return _warnings({field.name: getattr(self, field.name) for field in _FIELDS})

    def describe(self) -> list[tuple[str, str, str]]:
        """Return (name, value, source) of every setting for people to read, secrets masked."""
        values, sources = {field.name: getattr(self, field.name) for field in _FIELDS}, dict(self.sources)
        if self.secret_key is None and os.path.exists(_kept_key(self.data_dir)):
            values["secret_key"], sources["SECRET_KEY"] = "made", str(_kept_key(self.data_dir))
        return _rows({name: value for name, value in values.items() if value is not None}, sources)


def _rows(values: Mapping[str, Any], sources: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return (name, value, source) of every setting; one that is given and has no value is wrong."""
    rows = []
    for field in _FIELDS:
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


_FIELDS = tuple(field for field in dataclasses.fields(Settings) if field.metadata)

SETTINGS = tuple(
    Setting(field.name.upper(), field.metadata["shown"], field.metadata["meaning"], field.metadata["secret"])
    for field in _FIELDS
)


def find_env_file(given: Path | None) -> Path | None:
    """Return the settings file to read: ``given``, else ``.env`` in the current folder, else beside ``server.py``.

    None when there is none. Raises `SettingsError` when ``given`` does not exist.
    """
    if given is not None:
        if not os.path.exists(given):
            raise SettingsError([f"--env-file: {given} does not exist; give a file of NAME=value lines"])
        return given.absolute()
    folders = [Path.cwd(), *filter(None, (install.beside(),))]
    return next((path for folder in folders if os.path.exists(path := folder / ".env")), None)


def _kept_key(data_dir: Path) -> Path:
    return data_dir / "secret_key"


def secret_key(settings: Settings) -> str:
    """Return ``SECRET_KEY``, or the key kept in ``DATA_DIR/secret_key``, made at the first call (mode 0600).

    Several processes may call it at once: all get the same key. Raises `SettingsError` for an unusable file or folder.
    """
    if settings.secret_key is not None:
        return settings.secret_key
    path = _kept_key(settings.data_dir)
    try:
        if not path.exists():
            # Below root's folder another user's server has its own, which nobody else can enter.
            settings.data_dir.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
            _write_once(path, secrets.token_urlsafe(SECRET_KEY_MIN))
        return _secret(SECRET_KEY_MIN)(path.read_text().strip())
    except OSError as error:
        why = f"{path} can be neither read nor made ({error.strerror})"
        raise SettingsError([f"DATA_DIR: {why}; name a folder in which this user can read and write"]) from error
    except ValueError as error:
        raise SettingsError([f"SECRET_KEY: {path} {error}; set SECRET_KEY, or remove the file"]) from error


def _write_once(path: Path, text: str) -> None:
    """Write a whole file or none, and leave one alone that another process wrote meanwhile."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")  # made with mode 0600
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
        try:
            os.link(name, path)
        except FileExistsError:
            pass
    finally:
        os.unlink(name)


def _read_env_file(path: Path | None, errors: list[str]) -> dict[str, str | None]:
    """Return the text of each name, ``None`` where its line is wrong; of every setting if the file cannot be read."""
    if path is None:
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            # Not dotenv_values, which skips a line that it cannot parse, and lets the last of two names win.
            found = list(parse_stream(file))
    except (OSError, ValueError) as error:
        errors.append(f"{path}: cannot be read ({error}); give a readable UTF-8 file of NAME=value lines")
        return {field.name.upper(): None for field in _FIELDS}
    texts: dict[str, str | None] = {}
    lines: dict[str, list[int]] = {}
    for each in found:
        written = each.original.string
        blank_lines = written[: len(written) - len(written.lstrip())].count("\n")
        at = each.original.line + blank_lines
        if each.error or (each.key is not None and each.value is None):
            errors.append(f"{path}: line {at} is not NAME=value")
            meant = re.match(r"\s*(?:export\s+)?(\w+)", written)
            texts |= {meant[1]: None} if meant else {}
        elif each.key is not None:
            texts[each.key] = each.value
            lines.setdefault(each.key, []).append(at)
    for name, numbers in lines.items():
        if len(numbers) > 1:
            errors.append(f"{path}: {name} is given in lines {' and '.join(map(str, numbers))}; keep one of them")
            texts[name] = None
    return texts


def _find(name: str, secret: bool, given: Mapping[str, tuple[str, str]]) -> tuple[str | None, str]:
    """Return (text or None, source); raises ValueError for an unreadable file, or one beside a value.

    Blanks and line ends around a secret are taken off wherever it stands: editors, ``echo`` and YAML add them.
    """
    if not (secret and f"{name}_FILE" in given):
        text, source = given.get(name, (None, "default"))
        if secret and text is not None and not (text := text.strip()):
            return None, "default"
        return text, source
    path = given[f"{name}_FILE"][0]
    if name in given:
        raise ValueError(f"given twice, also as {name}_FILE; remove one of the two")
    try:
        return _in_file(Path(path)), "file"
    except ValueError as error:
        raise ValueError(f"{name}_FILE names {error}") from error


def _in_file(path: Path) -> str:
    """Return the text of a file without blanks around; raises ValueError where there is none."""
    try:
        text = path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ValueError(f"{str(path)!r}: {reason}; give a file that can be read") from error
    if not text:
        raise ValueError(f"{str(path)!r}, which is empty; put the value in it")
    return text


def gateway_token_in(path: Path) -> str:
    """Return the token that a ``GATEWAY_TOKEN_FILE`` has at this moment; raises ValueError where it cannot be used."""
    return _bearer(_in_file(path))


def _misspelt(given: Mapping[str, tuple[str, str]]) -> list[str]:
    """Return a line for each name that nearly is one of ours: a typo would otherwise be a silent default.

    Names without a prefix of ours are only looked at in the file: the environment is full of others' names.
    """
    known = [setting.name for setting in SETTINGS]
    known += [f"{setting.name}_FILE" for setting in SETTINGS if setting.secret]
    errors = []
    for name in sorted(set(given) - set(known)):
        for prefix in OWN_PREFIXES:
            if name.startswith(prefix):
                # Without the prefix, which would make any two names look alike.
                rests = [each.removeprefix(prefix) for each in known if each.startswith(prefix)]
                close = difflib.get_close_matches(name.removeprefix(prefix), rests, n=1, cutoff=0.65)
                errors += [f"{name}: there is no such setting; did you mean {prefix}{rest}?" for rest in close]
        if given[name][1] == ".env" and not name.startswith(OWN_PREFIXES):
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
            errors += [f"{name}: there is no such setting; did you mean {each}?" for each in close]
    return errors


def _contradictions(values: Mapping[str, Any], sources: Mapping[str, str]) -> list[str]:
    """Return a line for each rule between settings; one whose own value is wrong is not blamed twice."""

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
    known = _known(values, sources)
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


def _known(values: Mapping[str, Any], sources: Mapping[str, str]) -> dict[str, Any]:
    """Return the values and the plain defaults by field; what is wrong, and a default made at the load, is absent."""
    defaults = {field.name: field.default for field in _FIELDS if field.default is not dataclasses.MISSING}
    return {name: value for name, value in defaults.items() if sources.get(name.upper()) == "default"} | dict(values)


def _warnings(known: Mapping[str, Any]) -> list[str]:
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
    """Return the servers of a database's address whose certificate nobody looks at, those of this machine left out."""
    found = address.parse(url)
    if found.words.get("sslmode") == "verify-full":
        return []
    return [str(place) for place in found.places if not (place.host.startswith("/") or is_loopback(place.host))]


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
