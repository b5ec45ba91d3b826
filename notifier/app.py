"""The composition root: every part made once, started and stopped in the order of its lines."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import structlog

from notifier import __version__, process, telemetry
from notifier.delivery.gateway import Gateway
from notifier.delivery.scheduler import Scheduler
from notifier.errors import SettingsError
from notifier.models import OnUnknown
from notifier.settings import Settings, gateway_token_in, secret_key
from notifier.storage import database, embedded, migrations, readiness, replicas
from notifier.storage.installation import Hold
from notifier.web import server as web
from notifier.web.addresses import PublicUrl
from notifier.web.auth import bootstrap_token
from notifier.web.context import Context, GatewayDefaults
from notifier.web.routes import ROUTES, make_application
from notifier.web.system import Health, Metrics, Ready

log = structlog.get_logger(__name__)

GATEWAY = "default"  # the one that the settings name; tables and code are ready for more
# Connections of a replica. They are two pools, so that no burst of calls keeps the engine waiting, nor the other way
# round: nine loops and a control connection, and what Tornado can use in one process.
ENGINE_POOL, WEB_POOL = 10, 10
TOKEN_EVERY = 2.0  # seconds between two looks into GATEWAY_TOKEN_FILE
FAILING = 10.0  # seconds after which a replica whose loops fail is not ready
OBSERVED = (Health, Ready, Metrics)  # what a worker answers


@dataclass(frozen=True, slots=True)
class Service:
    """A running replica; ``url`` is where it answers."""

    url: str
    db: database.Pool
    scheduler: Scheduler | None


def connections_at_most(settings: Settings) -> int:
    """Return how many clients may be connected, after asking the system for as many open files as it gives.

    Raises SettingsError when it does not give enough.
    """
    gateway = 0 if settings.role == "api" or settings.gateway_url is None else settings.gateway_concurrency
    files = web.raise_file_limit()
    room = web.room_for_connections(files, gateway)
    if room < web.CONNECTIONS_LEAST:
        raise SettingsError(
            [
                f"GATEWAY_CONCURRENCY: with {gateway} this process needs {files - room + web.CONNECTIONS_LEAST} open"
                f" files, and may have {files}; raise that limit (ulimit -n, LimitNOFILE=, ulimits:) or lower this"
            ]
        )
    return room


@contextmanager
def a_database(settings: Settings) -> Iterator[str]:
    """Yield the address of a database that is up and migrated: the one that is set, or the embedded one.

    Raises Unavailable when it does not come up within 60 s, NotifierError when it cannot be used.
    """
    if settings.database_url is None:
        with embedded.running(settings.data_dir / "postgresql") as dsn:
            migrate(dsn)
            yield dsn
    else:
        asyncio.run(_up_and_migrated(settings.database_url, settings.database_migration_url or settings.database_url))
        yield settings.database_url


async def _up_and_migrated(dsn: str, migration_dsn: str) -> None:
    """Wait for it, and again should it go away in between: it may be in the middle of a restart."""

    async def apply() -> None:
        migrate(migration_dsn)

    for each in dict.fromkeys((dsn, migration_dsn)):  # a refusal is told at once, of either
        await readiness.wait_until_up(each, say=log.warning, writable=True)
    await readiness.patiently(apply, say=log.warning)


def migrate(dsn: str) -> None:
    """Apply what is missing, and say so."""
    for name in migrations.migrate(dsn):
        log.info("migrated", migration=name)


@asynccontextmanager
async def service(settings: Settings, dsn: str, sockets: list[socket.socket]) -> AsyncIterator[Service]:
    """Serve in this process on the `bound` sockets until the block is left.

    The lines stand in the order of starting; stopping goes the other way: not ready any more but still answering, what
    is in flight finished and recorded, the rest given back; when DRAIN_DELAY is over nobody is accepted any more, and
    the calls under way are answered.
    """
    seen = ""
    async with AsyncExitStack() as stack:
        web_db = await _pool(stack, settings, dsn, "web", WEB_POOL, silence=6)  # somebody looks at a white page
        await readiness.patiently(partial(readiness.check, web_db), say=log.warning)
        advice = partial(readiness.advice, web_db, connections=WEB_POOL + ENGINE_POOL * (settings.role != "api"))
        for sentence in await readiness.patiently(advice, say=log.warning):
            log.warning(sentence)
        if not await readiness.patiently(partial(replicas.share_key, web_db, secret_key(settings)), say=log.warning):
            log.warning(
                "SECRET_KEY is not that of the replica that started last: give all the same one;"
                " if it is a new one, start the others again with it"
            )
        hold = Hold(web_db, settings.instance)
        if (why := await readiness.patiently(hold.begin, say=log.warning)) is not None:
            log.warning(
                f"this database looks like a copy: {why}; nothing is sent until it is released, with the command"
                " `release` or the button in the admin pages"
            )
        scheduler = None if settings.role == "api" else await _scheduler(stack, settings, dsn, hold)

        async def ready() -> str | None:
            nonlocal seen
            if server.drained_at is not None:
                return "stopping"
            try:
                reason = await readiness.why_not_ready(web_db)
            except database.AWAY as error:
                if repr(error) != seen:
                    seen = repr(error)
                    log.warning("not ready: the database is unavailable", error=seen)  # a stranger is not told why
                return "the database is unavailable"
            if reason is not None or scheduler is None:
                return reason
            # Calls go on where one loop fails, over one mailing perhaps; without a heartbeat none of them works.
            failing = scheduler.failing(FAILING)
            if failing and (settings.role == "worker" or "heartbeat" in failing):
                return f"parts of the scheduler have failed for {FAILING:.0f} s or longer: {', '.join(failing)}"
            return None

        server = web.Server(
            make_application(_context(settings, web_db, scheduler, hold, ready), _routes(settings)),
            most=connections_at_most(settings),
        )
        server.add_sockets(sockets)
        stack.push_async_callback(
            server.close, min(settings.drain_delay, settings.shutdown_grace), settings.shutdown_grace
        )
        url = f"http://{_shown(settings.host.split(',')[0])}:{sockets[0].getsockname()[1]}"
        log.info("listening", url=url, role=settings.role, version=__version__)
        if scheduler is not None:
            await readiness.patiently(scheduler.start, say=log.warning)
            stack.push_async_callback(scheduler.stop, settings.shutdown_grace)
        process.collect_rarely()
        try:
            yield Service(url, web_db, scheduler)
        finally:
            server.drain()


def _shown(host: str) -> str:
    return "127.0.0.1" if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host


async def _pool(
    stack: AsyncExitStack, settings: Settings, dsn: str, part: str, size: int, *, silence: float = 10
) -> database.Pool:
    pool = await database.create_pool(
        dsn,
        size=size,
        application_name=f"notifier-{part}",
        statement_cache=settings.database_statement_cache,
        silence=silence,
    )

    async def close() -> None:
        try:
            await asyncio.wait_for(pool.close(), 5)
        except database.AWAY:
            pool.terminate()

    stack.push_async_callback(close)
    return pool


async def follow_token(gateway: Gateway, path: Path, every: float = TOKEN_EVERY) -> None:
    """Look into the file ``every`` so many seconds, and send with what it says; what cannot be used changes nothing."""
    said = None
    while True:
        await asyncio.sleep(every)
        try:
            token = await asyncio.to_thread(gateway_token_in, path)
        except ValueError as error:
            if str(error) != said:
                said = str(error)
                log.warning("the gateway's token cannot be read again; the one before stays in use", file=said)
            continue
        said = None
        if token != gateway.token:
            gateway.use(token)
            log.info("the gateway has a new token", file=str(path))


async def _scheduler(stack: AsyncExitStack, settings: Settings, dsn: str, hold: Hold) -> Scheduler:
    gateway = None
    if settings.gateway_url is not None:
        gateway = Gateway(
            GATEWAY,
            settings.gateway_url,
            settings.gateway_token or "",
            timeout=settings.gateway_timeout,
            key=secret_key(settings).encode(),
        )
        stack.push_async_callback(gateway.close)
        if settings.gateway_token_file is not None:
            following = asyncio.create_task(follow_token(gateway, settings.gateway_token_file))
            stack.callback(following.cancel)
    return Scheduler(
        await _pool(stack, settings, dsn, "engine", ENGINE_POOL),
        name=f"{socket.gethostname()}:{os.getpid()}",
        gateway=gateway,
        concurrency=settings.gateway_concurrency,
        rate=settings.gateway_rate,
        timeout=settings.gateway_timeout,
        on_unknown=OnUnknown(settings.gateway_on_unknown),
        default_zone=ZoneInfo(settings.default_timezone),
        hold=hold,
        pause_all=settings.pause_all,
    )


def _context(
    settings: Settings,
    db: database.Pool,
    scheduler: Scheduler | None,
    hold: Hold,
    ready: Callable[[], Awaitable[str | None]],
) -> Context:
    return Context(
        db=db,
        hold=hold,
        wake=scheduler.wake if scheduler else lambda: None,
        tokens=bootstrap_token(settings.bootstrap_token),
        secret_key=secret_key(settings),
        default_timezone=settings.default_timezone,
        gateway=GatewayDefaults(
            settings.gateway_url,
            settings.gateway_concurrency,
            settings.gateway_rate,
            settings.gateway_timeout,
            settings.gateway_on_unknown,
        ),
        ready=ready,
        pause_all=settings.pause_all,
        version=__version__,
        public=PublicUrl.of(settings.public_url),
        proxies=settings.trusted_proxies,
    )


def _routes(settings: Settings) -> Any:
    return tuple(route for route in ROUTES if settings.role != "worker" or issubclass(route.handler, OBSERVED))


async def serve(settings: Settings, dsn: str, sockets: list[socket.socket]) -> None:
    """Serve on the `bound` sockets until one of `process.STOPPING` comes; a second one ends the process at once."""
    stop = asyncio.Event()
    starting = asyncio.current_task()

    def signalled(by: signal.Signals) -> None:
        if stop.is_set():
            if by is signal.SIGHUP:  # of a terminal that is closed there come two, from the system and from the shell
                return
            process.end_at_once()
        stop.set()
        log.info("stopping", by=by.name, grace=settings.shutdown_grace)
        if starting is not None:
            starting.cancel()  # nobody is served yet, and the start may wait for a minute

    loop = asyncio.get_running_loop()
    for each in process.stopping():
        loop.add_signal_handler(each, signalled, each)
    try:
        async with service(settings, dsn, sockets):
            starting = None
            await stop.wait()
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
    log.info("stopped")


def introduce(settings: Settings) -> None:
    """Log which settings file was read, and every warning about the settings."""
    log.info("settings read", env_file=settings.env_file and str(settings.env_file))
    for line in settings.warnings():
        log.warning(line)


def configure_logging(settings: Settings) -> None:
    """Logs go to stderr as the settings say."""
    telemetry.configure(settings.log_level, settings.log_format)
