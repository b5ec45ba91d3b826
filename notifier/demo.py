"""The demo: from nothing to a finished mailing on this machine, texting nobody.

It does what a user would: starts the service, adds clients and makes a mailing over the REST API, watches the
statistics. The sending API behind it is always the simulated gateway, whatever the environment says.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import signal
from collections import Counter
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from socket import socket
from typing import Any

import aiohttp
import click
from dotenv import dotenv_values
from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from notifier import app, process, telemetry
from notifier.errors import NotifierError
from notifier.models import OVER, MailingStatus, MessageState, Status, status_of
from notifier.settings import Settings, find_env_file, secret_key
from notifier.simulator import Entry, Simulator, read_ledger
from notifier.storage.database import Db

KEPT = ("DATA_DIR", "DEFAULT_TIMEZONE", "HOST", "PORT")
"""The settings that count here. No other is read, so no real gateway can be reached."""
# Milliseconds. 100 requests in flight at 45 ms on average are at most 2,200 a second: some seconds of bar for 10,000.
LATENCY, JITTER = 30, 30
FAILURES = {"match": {"attempt": 1}, "share": 0.01, "do": {"kind": "status", "status": 500}}
"""One first request in a hundred fails, so that retries are to be seen; second ones do not, since those wait longer."""
BATCH = 1_000  # what POST /clients/batch takes at most
ALIVE = (Status.WAITING, Status.SENDING, Status.RETRYING)

# DEF codes of Russian mobile networks (the register of numbering of the Ministry of Digital Development) with their
# operators, and zones of the regions they serve.
NETWORKS = (
    ("916", "MTS", ("Europe/Moscow",)),
    ("911", "MTS", ("Europe/Moscow", "Europe/Kaliningrad")),
    ("917", "MTS", ("Europe/Samara", "Europe/Saratov", "Asia/Yekaterinburg")),
    ("912", "MTS", ("Asia/Yekaterinburg", "Europe/Kirov")),
    ("913", "MTS", ("Asia/Novosibirsk", "Asia/Krasnoyarsk", "Asia/Omsk", "Asia/Tomsk", "Asia/Barnaul")),
    ("914", "MTS", ("Asia/Vladivostok", "Asia/Yakutsk", "Asia/Irkutsk", "Asia/Magadan", "Asia/Kamchatka")),
    ("926", "MegaFon", ("Europe/Moscow",)),
    ("921", "MegaFon", ("Europe/Moscow", "Europe/Kaliningrad")),
    ("927", "MegaFon", ("Europe/Samara", "Europe/Ulyanovsk", "Europe/Astrakhan", "Europe/Volgograd")),
    ("922", "MegaFon", ("Asia/Yekaterinburg",)),
    ("924", "MegaFon", ("Asia/Vladivostok", "Asia/Sakhalin", "Asia/Chita", "Asia/Kamchatka", "Asia/Anadyr")),
    ("903", "Beeline", ("Europe/Moscow",)),
    ("961", "Beeline", ("Europe/Moscow", "Asia/Yekaterinburg")),
    ("962", "Beeline", ("Europe/Moscow", "Asia/Vladivostok")),
    ("904", "T2", ("Europe/Moscow", "Asia/Omsk", "Asia/Yekaterinburg")),
    ("952", "T2", ("Europe/Moscow", "Asia/Novosibirsk")),
    ("977", "T2", ("Europe/Moscow",)),
)
AUDIENCE = ("MTS", "MegaFon")
"""The mailing is for their clients: about two thirds of all."""
TEXT = "Привет! Ваш заказ готов и ждёт вас до воскресенья."

PACE = f"""\
The simulated gateway takes {LATENCY} to {LATENCY + JITTER} ms for each message, as real ones do: that sets the pace.
How much one process can send: docs/performance.md."""
BALANCED = """\
Checked: nothing is left waiting, the statistics equal the counted messages,
and every sent id stands in the gateway's ledger exactly once."""

STOPPING = """
Stopping: what is under way is finished and written down.
Run the demo again to go on: its database is kept, and a mailing that is not finished goes on."""


class Failed(NotifierError):
    """The demo did not come out as it should."""


@click.command("demo")
@click.option("--clients", default=10_000, show_default=True, type=click.IntRange(1, 1_000_000), help="Sample clients.")
@click.option("--exit", "leave", is_flag=True, help="Stop when the mailing is finished; 0 only if the books balance.")
@click.option("--port", type=click.IntRange(0, 65_535), help="Where to listen. [default: PORT; with --exit a free one]")
def command(clients: int, leave: bool, port: int | None) -> None:
    """Go from nothing to a finished mailing.

    An embedded PostgreSQL in DATA_DIR/demo, sample clients, one mailing to some of them, and the simulated gateway,
    which texts nobody. DATABASE_URL and every GATEWAY_… are ignored.
    """
    console = Console()
    telemetry.configure("warning", "console")  # so that the bar stays whole
    with process.told(stopped=1 if leave else 0):
        settings = _settings(0 if leave and port is None else port)
        secret_key(settings)  # makes the folder, or says what is wrong with it
        console.print("Starting PostgreSQL, the simulated gateway and the service …")
        with (
            process.bound(settings, "give another one with --port") as sockets,
            app.a_database(settings) as dsn,
            # The ledger is continued: what a run left undone goes on in the next one, and no text is taken twice.
            Simulator(ledger=settings.data_dir / "gateway.jsonl", latency=LATENCY, jitter=JITTER) as gateway,
        ):
            gateway.script(FAILURES)
            settings = replace(settings, gateway_url=gateway.url)
            app.introduce(settings)
            work = _demo(console, settings, dsn, sockets, gateway.ledger, clients, leave)
            if not process.run(_until_stopped(work)) and leave:
                raise Failed("stopped before the mailing was finished")


def _settings(port: int | None) -> Settings:
    env_file = find_env_file(click.get_current_context().obj)
    given = {**(dotenv_values(env_file, interpolate=False) if env_file else {}), **os.environ}
    kept = {name: given[name] or "" for name in KEPT if name in given}
    if port is not None:
        kept["PORT"] = str(port)
    token = secrets.token_urlsafe(24)
    settings = Settings.load({**kept, "BOOTSTRAP_TOKEN": token, "GATEWAY_TOKEN": secrets.token_urlsafe(24)}, None)
    return replace(settings, data_dir=settings.data_dir / "demo", drain_delay=0.0)


async def _until_stopped(work: Coroutine[Any, Any, None]) -> bool:
    """Run ``work`` until it ends (True) or SIGINT or SIGTERM stops it (False); a second one ends the process."""
    task = asyncio.ensure_future(work)

    def signalled(by: signal.Signals) -> None:
        if not task.cancelling():
            click.echo(STOPPING)
            task.cancel()
        elif by is not signal.SIGHUP:
            process.end_at_once()

    for each in process.stopping():
        asyncio.get_running_loop().add_signal_handler(each, signalled, each)
    try:
        await task
    except asyncio.CancelledError:
        return False
    return True


async def _demo(
    console: Console,
    settings: Settings,
    dsn: str,
    sockets: list[socket],
    ledger: Path,
    clients: int,
    leave: bool,
) -> None:
    async with app.service(settings, dsn, sockets) as service:
        headers = {"Authorization": f"Bearer {settings.bootstrap_token}"}
        async with aiohttp.ClientSession(f"{service.url}/api/v1/", headers=headers, raise_for_status=True) as api:
            await _add_clients(console, api, clients)
            mailing = await _call(api, "POST", "mailings", _mailing(clients))
            await _watch(console, api, mailing["id"])
            statistics = await _call(api, "GET", f"mailings/{mailing['id']}/statistics")
        console.print(_table(statistics))
        click.echo(PACE)
        found = await wrong(service.db, mailing["id"], statistics, read_ledger(ledger))
        # Not through rich, which would break the lines.
        for line in found:
            click.echo(f"wrong: {line}")
        if not found:
            click.echo(BALANCED)
        if leave:
            if found:
                raise Failed("the books do not balance")
            return
        click.echo(f"\nAdmin  {service.url}/admin/\nDocs   {service.url}/docs/\nToken  {settings.bootstrap_token}")
        click.echo("\nServing until Ctrl-C. The gateway is simulated: nobody is texted.")
        await asyncio.Event().wait()


async def _call(api: aiohttp.ClientSession, method: str, path: str, body: Any = None) -> Any:
    async with api.request(method, path, json=body) as response:
        return await response.json()


def sample(clients: int) -> Iterator[dict[str, Any]]:
    """Yield as many clients, as the API takes them; always the same ones in the same order, no phone twice."""
    luck = random.Random(7)
    for number in range(clients):
        code, operator, zones = NETWORKS[number] if number < len(NETWORKS) else luck.choice(NETWORKS)
        yield {
            # 7919 is prime to 10⁷, so the last seven digits differ for that many numbers.
            "phone": f"7{code}{number * 7919 % 10**7:07}",
            "tags": [luck.choice(("new", "regular", "vip")), _tag(clients)],
            "timezone": luck.choice(zones),
            "attributes": {"operator": operator},
        }


def _tag(clients: int) -> str:
    """Tell the clients of this size of demo from those that a larger one has left."""
    return f"sample-{clients}"


async def _add_clients(console: Console, api: aiohttp.ClientSession, clients: int) -> None:
    items = list(sample(clients))
    with Progress(*_columns("{task.completed:,.0f}"), console=console) as progress:
        task = progress.add_task("Clients", total=clients)
        for start in range(0, clients, BATCH):
            batch = items[start : start + BATCH]
            answer = await _call(api, "POST", "clients/batch", {"items": batch})
            bad = [item["problem"] for item in answer["items"] if item["status"] == "invalid"]
            if bad:
                raise Failed(f"the API refuses a sample client: {bad[0]}")
            progress.advance(task, len(batch))


def _mailing(clients: int) -> dict[str, Any]:
    codes = [code for code, operator, _ in NETWORKS if operator in AUDIENCE]
    return {
        "name": f"Demo: clients of {' and '.join(AUDIENCE)}",
        "text": TEXT,
        "filter": {"operator_codes": codes, "tags": [_tag(clients)]},
        "ends_at": (datetime.now(UTC) + timedelta(hours=1)).isoformat(),
    }


def _columns(text: str) -> tuple[ProgressColumn, ...]:
    return (
        TextColumn("{task.description:8}"),
        BarColumn(bar_width=30),
        TextColumn(text),
        TimeRemainingColumn(),
    )


async def _watch(console: Console, api: aiohttp.ClientSession, mailing_id: int) -> None:
    """Show a bar until the mailing is over."""
    text = "{task.fields[sent]:,} sent, {task.fields[failed]:,} failed of {task.fields[audience]:,}"
    columns = _columns(text + " · {task.fields[rate]:,.0f}/s ·")
    with Progress(*columns, console=console, speed_estimate_period=5) as progress:
        task = progress.add_task("Mailing", total=None, sent=0, failed=0, audience=0, rate=0.0)
        while True:
            mailing = await _call(api, "GET", f"mailings/{mailing_id}")
            now = await _call(api, "GET", f"mailings/{mailing_id}/statistics")
            messages, audience = now["messages"], now["audience"]
            progress.update(
                task,
                total=audience if now["planned"] else None,
                completed=audience - sum(messages[status] for status in ALIVE),
                sent=messages[Status.SENT],
                failed=messages[Status.FAILED],
                audience=audience,
                rate=progress.tasks[task].speed or 0.0,
            )
            if mailing["status"] in OVER:
                return
            await asyncio.sleep(0.25)


def _table(statistics: Mapping[str, Any]) -> Table:
    audience = statistics["audience"]
    table = Table(title="Statistics of the mailing", title_justify="left")
    table.add_column("messages")
    table.add_column("number", justify="right")
    table.add_column("share", justify="right")
    shown = {"audience": audience, **statistics["messages"]}
    for name, number in shown.items():
        if number or name in ("audience", Status.WAITING, Status.SENT, Status.FAILED):
            table.add_row(name, f"{number:,}", f"{number / audience:.1%}" if audience else "–")
    for failure in statistics["failures"]:
        table.add_row(f"  failed: {failure['reason']}", f"{failure['count']:,}", "")
    if statistics["first_sent_at"]:
        first, last = (datetime.fromisoformat(statistics[f"{each}_sent_at"]) for each in ("first", "last"))
        seconds = (last - first).total_seconds()
        table.add_section()
        table.add_row("first to last, seconds", f"{seconds:.1f}", "")
        if seconds:
            table.add_row("sent a second", f"{statistics['messages'][Status.SENT] / seconds:,.0f}", "")
    return table


async def wrong(db: Db, mailing_id: int, statistics: Mapping[str, Any], ledger: Iterable[Entry]) -> list[str]:
    """Return what does not balance, a line each, of a mailing that is over; nothing is right.

    The statistics (as the API gives them) are held against the messages counted one by one, and both against what the
    gateway says that it took.
    """
    lines = []
    left = sum(statistics["messages"][status] for status in ALIVE)
    if left:
        lines.append(f"{left} messages are left waiting")
    status = MailingStatus(await db.fetchval("SELECT status::text FROM mailings WHERE id = $1", mailing_id))
    rows = await db.fetch(
        """
        SELECT m.id, coalesce(last.state, 'waiting')::text AS state
        FROM messages m
        LEFT JOIN LATERAL (
            SELECT state FROM attempts WHERE message_id = m.id ORDER BY seq DESC LIMIT 1
        ) last ON true
        WHERE m.mailing_id = $1
        """,
        mailing_id,
    )
    stands = {row["id"]: status_of(MessageState(row["state"]), status) for row in rows}
    counted = Counter(stands.values())
    for name in Status:
        if statistics["messages"][name] != counted[name]:
            lines.append(f"{name}: the statistics say {statistics['messages'][name]}, counted are {counted[name]}")
    if statistics["audience"] != len(stands):
        lines.append(f"audience: the statistics say {statistics['audience']}, counted are {len(stands)}")
    taken = Counter(entry.id for entry in ledger if entry.accepted)
    for message_id, stand in stands.items():
        times = taken[message_id]
        if times != (stand is Status.SENT):
            lines.append(f"message {message_id} is {stand}, and stands {times} times in the gateway's ledger")
    return lines
