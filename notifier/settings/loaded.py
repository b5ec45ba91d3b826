"""Settings: read once, checked whole, never changed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from notifier.errors import SettingsError
from notifier.settings.declared import FIELDS, Declared
from notifier.settings.key import kept_key
from notifier.settings.rules import contradictions, known_values, warnings_of
from notifier.settings.shown import rows_of
from notifier.settings.sources import misspelt, read_env_file, text_of


@dataclass(frozen=True, kw_only=True)
class Settings(Declared):
    """Every setting, checked.

    ``sources`` says for each name where it came from: ``environment``, ``.env``, ``file`` or ``default``.
    """

    sources: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False, compare=False)
    gateway_token_file: Path | None = None  # where `gateway_token` was read; it is read again when it changes
    env_file: Path | None = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def load(cls, environ: Mapping[str, str] | None = None, env_file: Path | None = None) -> Settings:
        """Read and check every setting; ``environ`` defaults to the process's own and beats ``env_file``.

        An empty value counts as not given; `find_env_file` says which file is the one to read.
        Raises `SettingsError` with one line for each thing that is wrong.
        """
        errors: list[str] = []
        in_file = read_env_file(env_file, errors)
        given = {name: (text, ".env") for name, text in in_file.items() if text}
        given |= {
            name: (text, "environment") for name, text in (os.environ if environ is None else environ).items() if text
        }
        values: dict[str, Any] = {}
        sources: dict[str, str] = {}
        for field in FIELDS:
            name = field.name.upper()
            if name not in given and in_file.get(name, "") is None:
                continue  # its line is an error already
            try:
                text, sources[name] = text_of(name, field.metadata["secret"], given)
                if text is not None:
                    values[field.name] = field.metadata["parse"](text)
            except ValueError as error:
                errors.append(f"{name}: {error}")
        errors += misspelt(given)
        errors += contradictions(values, sources)
        if errors:
            raise SettingsError(errors, rows_of(values, sources), warnings_of(known_values(values, sources)))
        values.setdefault("database_migration_url", values.get("database_url"))
        token_file = given.get("GATEWAY_TOKEN_FILE")
        return cls(**values, sources=sources, env_file=env_file, gateway_token_file=token_file and Path(token_file[0]))

    def warnings(self) -> list[str]:
        """Return a line for what cannot be done with these settings, and for what others can read on the way."""
        return warnings_of({field.name: getattr(self, field.name) for field in FIELDS})

    def describe(self) -> list[tuple[str, str, str]]:
        """Return (name, value, source) of every setting for people to read, secrets masked."""
        values, sources = {field.name: getattr(self, field.name) for field in FIELDS}, dict(self.sources)
        if self.secret_key is None and os.path.exists(kept_key(self.data_dir)):
            values["secret_key"], sources["SECRET_KEY"] = "made", str(kept_key(self.data_dir))
        return rows_of({name: value for name, value in values.items() if value is not None}, sources)
