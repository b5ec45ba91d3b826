"""The key of an installation that sets no ``SECRET_KEY``: it is made once and kept in ``DATA_DIR``."""

from __future__ import annotations

import os
import secrets
import tempfile
from pathlib import Path

from notifier.errors import SettingsError
from notifier.settings import parsers
from notifier.settings.declared import SECRET_KEY_MIN, Declared


def kept_key(data_dir: Path) -> Path:
    """Return where the key is kept."""
    return data_dir / "secret_key"


def secret_key(settings: Declared) -> str:
    """Return ``SECRET_KEY``, or the key kept in ``DATA_DIR/secret_key``, made at the first call (mode 0600).

    Several processes may call it at once: all get the same key. Raises `SettingsError` for an unusable file or folder.
    """
    if settings.secret_key is not None:
        return settings.secret_key
    path = kept_key(settings.data_dir)
    try:
        if not path.exists():
            # Below root's folder another user's server has its own, which nobody else can enter.
            settings.data_dir.mkdir(mode=0o711 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
            _write_once(path, secrets.token_urlsafe(SECRET_KEY_MIN))
        return parsers.secret(SECRET_KEY_MIN)(path.read_text().strip())
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
