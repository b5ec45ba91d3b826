"""The command of the simulated gateway: ``server.py gateway`` and ``python -m notifier.simulator``."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Callable
from pathlib import Path

import click
import orjson

from notifier.simulator import kinds
from notifier.simulator import script as scripts
from notifier.simulator.gateway import Gateway
from notifier.simulator.script import Script
from notifier.simulator.server import serve


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _misbehaviour() -> str:
    """Return what the docstrings of scripts and kinds say, as a terminal shows it."""
    texts = [(module.__doc__ or "").partition("\n\n")[2].strip() for module in (scripts, kinds)]
    text = "\n\n".join(texts).replace("``", "").replace("::", ":")
    # A sign for click at each paragraph: it leaves the lines as they are.
    return "\b\n" + text.replace("\n\n", "\n\n\b\n")


@click.command("gateway", context_settings={"show_default": True}, epilog=_misbehaviour())
@click.option("--host", default="127.0.0.1", help="Where to listen.")
@click.option("--port", default=8090, type=click.IntRange(0, 65535), help="0 takes a free one and prints it.")
@click.option("--latency", default=0.0, metavar="MS", help="Milliseconds before each answer.")
@click.option("--jitter", default=0.0, metavar="MS", help="Up to so many milliseconds more.")
@click.option("--fail", default=0.0, metavar="SHARE", help="Share of requests (0..1) answered 500 and not accepted.")
@click.option("--rate", default=0, metavar="N", help="429 with Retry-After beyond N requests a second; 0: no limit.")
@click.option("--token", metavar="T", help="The one bearer token that is right. [default: any]")
@click.option("--ledger", type=click.Path(path_type=Path, dir_okay=False), help="A JSON line per request; continued.")
@click.option(
    "--script",
    "script_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="JSON with rules for misbehaviour, as POST /control takes it; beats the options.",
)
@click.option("--seed", type=int, help="Makes jitter, --fail and shares repeatable.")
@click.option("--exit-with-parent", is_flag=True, help="End when standard input ends.")
def command(
    host: str,
    port: int,
    latency: float,
    jitter: float,
    fail: float,
    rate: int,
    token: str | None,
    ledger: Path | None,
    script_file: Path | None,
    seed: int | None,
    exit_with_parent: bool,
) -> None:
    """Run the simulated gateway: a stand-in for the external sending API that texts nobody.

    It accepts POST /v1/send/{id}, writes each request into the ledger before it answers, drops ids it has
    accepted already, and misbehaves as told by --script or by POST /control from this machine. For
    development, tests and the demo only: real sending needs GATEWAY_URL and GATEWAY_TOKEN.
    """
    try:
        options = {"latency": latency, "jitter": jitter, "fail": fail, "rate": rate}
        script = Script.parse(options, Script())
        if script_file is not None:
            script = Script.parse(orjson.loads(script_file.read_bytes()), script)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            gateway = Gateway(script, token=token, seed=seed, ledger=ledger)
            runner.run(serve(gateway, host, port, ledger, exit_with_parent))
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    except OSError as error:
        reason = "the port is taken" if error.errno == errno.EADDRINUSE else str(error)
        click.echo(f"Cannot run the simulated gateway on {host}:{port}: {reason}", err=True)
        raise SystemExit(2) from error
    if gateway.failure is not None:
        click.echo(f"The ledger cannot be written: {gateway.failure}", err=True)
        raise SystemExit(1)
