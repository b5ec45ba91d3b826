"""What the composition root hands to every handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, field
from functools import partial

from notifier.storage.database import Pool
from notifier.storage.installation import Hold
from notifier.web.addresses import Network, PublicUrl
from notifier.web.auth import TokenCheck
from notifier.web.budgets import FAILURES_MAX, Budget, LargeBodies, LogLimit


@dataclass(frozen=True, slots=True)
class GatewayDefaults:
    """What the environment says of the gateway; ``timeout`` in seconds, ``rate`` in messages a second, 0 = no limit."""

    url: str | None
    concurrency: int
    rate: float
    timeout: float
    on_unknown: str


@dataclass(frozen=True, slots=True)
class Context:
    """The parts that handlers use.

    ``wake`` tells the scheduler to look at once. ``hold`` says whether the database looks like a copy. ``ready`` says
    why requests should go elsewhere, or None.
    ``proxies`` are the networks whose forwarding headers are believed. ``failures``, ``log_limit`` and ``large_bodies``
    bound wrong tokens by network, log lines that anybody can cause, and large bodies that are parsed.
    """

    db: Pool
    hold: Hold
    wake: Callable[[], None]
    tokens: TokenCheck
    secret_key: str
    default_timezone: str
    gateway: GatewayDefaults
    ready: Callable[[], Awaitable[str | None]]
    pause_all: bool
    version: str
    public: PublicUrl
    proxies: Collection[Network]
    failures: Budget = field(default_factory=partial(Budget, FAILURES_MAX))
    log_limit: LogLimit = field(default_factory=LogLimit)
    large_bodies: LargeBodies = field(default_factory=LargeBodies)
