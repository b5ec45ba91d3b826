"""`python -m notifier.health`: whether the service that has the same settings answers; the health check of the image.

A module of its own because it is run every few seconds: it imports the settings and none of what serves.
"""

from __future__ import annotations

import http.client
import os
import sys
from pathlib import Path

from notifier.errors import SettingsError
from notifier.settings import Settings, find_env_file

TIMEOUT = 4.0  # seconds


def problem() -> str | None:
    """Return why the service does not count as healthy, or None."""
    given = os.environ.get("NOTIFIER_ENV_FILE")
    try:
        settings = Settings.load(env_file=find_env_file(Path(given) if given else None))
    except SettingsError as error:
        return "; ".join(error.errors)
    if settings.port == 0:
        return "PORT=0 takes a free port, which nobody else can know; set PORT"
    host = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}.get(first := settings.host.split(",")[0], first)
    try:
        connection = http.client.HTTPConnection(host, settings.port, timeout=TIMEOUT)
        connection.request("GET", "/healthz")
        status = connection.getresponse().status
        connection.close()
    except (OSError, http.client.HTTPException) as error:
        return f"{host} port {settings.port}: {str(error) or type(error).__name__}"
    return None if status == 200 else f"/healthz answers {status}"


if __name__ == "__main__":
    if (found := problem()) is not None:
        sys.exit(found)
