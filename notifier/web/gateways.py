"""Gateways over HTTP: their state, and the limits that may be changed while they run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from notifier import hosts
from notifier.errors import Code, NotFound
from notifier.models import BreakerState, GatewayState
from notifier.storage import gateways
from notifier.web import schemas
from notifier.web.context import GatewayDefaults
from notifier.web.handlers import Handler
from notifier.web.operations import operation


@dataclass(frozen=True, slots=True)
class Breaker:
    """The circuit breaker as it is shown."""

    state: BreakerState
    retry_at: datetime | None
    detail: str | None


@dataclass(frozen=True, slots=True)
class Shown:
    """A gateway as it is shown: its row over the environment's defaults."""

    name: str
    url: str | None
    state: GatewayState
    reason: str | None
    detail: str | None
    concurrency: int
    rate: float
    timeout: float
    on_unknown: str
    paused_until: datetime | None
    breaker: Breaker
    last_errors: list[dict[str, Any]]
    version: int


def shown(gateway: gateways.Gateway, defaults: GatewayDefaults) -> Shown:
    """What the row says, and the environment where the row says nothing; never what is secret in an address."""
    return Shown(
        name=gateway.name,
        url=defaults.url and hosts.without_secrets(defaults.url),
        state=GatewayState.UNCONFIGURED if defaults.url is None else gateway.state,
        reason=gateway.reason,
        detail=gateway.detail,
        concurrency=defaults.concurrency if gateway.concurrency is None else gateway.concurrency,
        rate=defaults.rate if gateway.rate is None else gateway.rate,
        timeout=defaults.timeout,
        on_unknown=defaults.on_unknown,
        paused_until=gateway.paused_until,
        breaker=Breaker(gateway.breaker, gateway.retry_at, gateway.breaker_detail),
        last_errors=gateway.last_errors,
        version=gateway.version,
    )


class GatewayHandler(Handler):
    """What the handlers of gateways share."""

    TAG = "Gateways"

    async def prepare(self) -> None:
        await super().prepare()
        name = self.path_kwargs.get("name", "")
        if "\0" in name:  # which PostgreSQL would not even compare
            raise NotFound(Code.NO_GATEWAY, name=name)

    def answer_gateway(self, gateway: gateways.Gateway) -> None:
        """Answer with the gateway as it is shown."""
        self.answer(shown(gateway, self.context.gateway))


class Gateways(GatewayHandler):
    @operation("listGateways", query=schemas.PageQuery, answer=schemas.page_of(schemas.GatewayOut))
    async def get(self) -> None:
        """List the gateways."""
        start = self.params["cursor"][0] if self.params["cursor"] else 0
        names = (await gateways.names(self.db))[max(start, 0) :]
        end = self.params["limit"]
        page = [shown(await gateways.get(self.db, name), self.context.gateway) for name in names[:end]]
        self.answer_page(page, [max(start, 0) + end] if len(names) > end else None)


class OneGateway(GatewayHandler):
    @operation("getGateway", answer=schemas.GatewayOut, errors=(404,))
    async def get(self, name: str) -> None:
        """Show a gateway."""
        self.answer_gateway(await gateways.get(self.db, name))

    @operation(
        "updateGateway",
        body=schemas.GatewayEditIn,
        answer=schemas.GatewayOut,
        errors=(404, 412),
        examples={
            "slow down": {"concurrency": 10, "rate": 5},
            "as the settings say": {"concurrency": None, "rate": None},
        },
    )
    async def patch(self, name: str) -> None:
        """Change the limits of a gateway while it runs.

        They beat those of the environment until they are null again. In any t seconds at most
        rate × t + max(1, rate × 0.2) messages go out, all replicas together.
        """
        gateway = await gateways.edit(self.db, name, self.body, if_match=self.if_match)
        self.wake()
        self.answer_gateway(gateway)


class GatewayPause(GatewayHandler):
    @operation("pauseGateway", answer=schemas.GatewayOut, errors=(404, 412))
    async def post(self, name: str) -> None:
        """Stop sending through a gateway.

        Its mailings keep running and wait.
        """
        gateway = await gateways.pause(self.db, name, if_match=self.if_match)
        self.wake()
        self.answer_gateway(gateway)


class GatewayResume(GatewayHandler):
    @operation("resumeGateway", answer=schemas.GatewayOut, errors=(404, 412))
    async def post(self, name: str) -> None:
        """Send through a gateway again.

        After a pause by hand, or when it had turned out to be misconfigured and is put right.
        """
        gateway = await gateways.resume(self.db, name, if_match=self.if_match)
        self.wake()
        self.answer_gateway(gateway)
