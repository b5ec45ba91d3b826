"""Settings from the environment: read once, checked whole, never changed.

The fields of `declared.Declared` are the only list: `SETTINGS`, the README's test and ``config check`` come from it.
"""

from __future__ import annotations

from notifier.settings.declared import SETTINGS
from notifier.settings.key import secret_key
from notifier.settings.loaded import Settings
from notifier.settings.sources import OWN_PREFIXES, find_env_file, gateway_token_in

__all__ = ["OWN_PREFIXES", "SETTINGS", "Settings", "find_env_file", "gateway_token_in", "secret_key"]
