"""What `/metrics` shows: this replica's own figures, and those of the whole installation, counted when asked for."""

from __future__ import annotations

import asyncio
import time

import structlog

from notifier import telemetry
from notifier.models import GatewayState, MailingStatus
from notifier.storage import cluster
from notifier.storage.cluster import Figures
from notifier.storage.database import AWAY, Pool
from notifier.storage.installation import Hold

FRESH = 1.0
"""Seconds for which a text is shown again: nobody needs a token to ask, so asking often must cost nothing."""
PATIENCE = 2.0
"""Seconds that the database may take; a scrape ends after ten."""
ALIVE = (MailingStatus.SCHEDULED, MailingStatus.RUNNING, MailingStatus.PAUSED)

log = structlog.get_logger("notifier.web")


class Exposition:
    """The text of `/metrics`; without ``has_gateway`` every gateway counts as unconfigured.

    ``hold`` says whether the database looks like a copy.
    """

    def __init__(self, db: Pool, hold: Hold, *, has_gateway: bool) -> None:
        self._db = db
        self._hold = hold
        self._has_gateway = has_gateway
        self._lock = asyncio.Lock()
        self._text = b""
        self._made = -FRESH

    async def text(self) -> bytes:
        """Return the text, at most `FRESH` seconds old; while the database is unavailable without its figures."""
        async with self._lock:
            if time.monotonic() - self._made >= FRESH:
                try:
                    async with asyncio.timeout(PATIENCE):
                        self._show(await cluster.figures(self._db), is_held=await self._hold.reason() is not None)
                except AWAY as error:
                    log.warning(
                        "the database is unavailable: no metrics of it", error=str(error) or type(error).__name__
                    )
                    telemetry.forget_cluster()
                self._text, self._made = telemetry.exposition(), time.monotonic()
            return self._text

    def _show(self, figures: Figures, *, is_held: bool) -> None:
        telemetry.forget_cluster()  # also of gateways that are there no more
        telemetry.DATABASE_UP.set(1)
        telemetry.HELD.set(is_held)
        for status in ALIVE:
            telemetry.MAILINGS.labels(status.value).set(figures.mailings.get(status, 0))
        for name in ("waiting", "retrying", "unknown"):
            telemetry.MESSAGES.labels(name).set(getattr(figures, name))
        telemetry.OLDEST_DUE.set(figures.oldest_due)
        for gateway, stored in figures.gateways.items():
            present = stored if self._has_gateway else GatewayState.UNCONFIGURED
            for state in GatewayState:
                telemetry.GATEWAY_STATE.labels(gateway, state.value).set(state is present)
