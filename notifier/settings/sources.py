"""Where the text of a setting comes from: the environment, the settings file, or a secret's own file."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path

from dotenv.parser import parse_stream

from notifier import install
from notifier.errors import SettingsError
from notifier.settings import parsers
from notifier.settings.declared import FIELDS, SETTINGS

OWN_PREFIXES = ("DATABASE_", "GATEWAY_")
"""Only names with these prefixes are checked for typos in the environment: many programs use HOST and the like."""


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


def read_env_file(path: Path | None, errors: list[str]) -> dict[str, str | None]:
    """Return the text of each name, ``None`` where its line is wrong; of every setting if the file cannot be read."""
    if path is None:
        return {}
    try:
        with path.open(encoding="utf-8") as file:
            # Not dotenv_values, which skips a line that it cannot parse, and lets the last of two names win.
            found = list(parse_stream(file))
    except (OSError, ValueError) as error:
        errors.append(f"{path}: cannot be read ({error}); give a readable UTF-8 file of NAME=value lines")
        return {field.name.upper(): None for field in FIELDS}
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


def text_of(name: str, secret: bool, given: Mapping[str, tuple[str, str]]) -> tuple[str | None, str]:
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
        return text_in(Path(path)), "file"
    except ValueError as error:
        raise ValueError(f"{name}_FILE names {error}") from error


def text_in(path: Path) -> str:
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
    return parsers.bearer(text_in(path))


def misspelt(given: Mapping[str, tuple[str, str]]) -> list[str]:
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
