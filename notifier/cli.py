"""The command line: `server.py --help`, or `notifier --help` where it is installed, lists it."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path

import asyncpg
import click
from rich.console import Console
from rich.progress import FileSizeColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from notifier import __version__, app, install, process, settings, simulator
from notifier.demo import command as demo
from notifier.errors import NotifierError, SettingsError
from notifier.storage import audit as checks
from notifier.storage import database, embedded, installation, migrations, readiness, transfer


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="notifier")
@click.option(
    "--env-file",
    envvar="NOTIFIER_ENV_FILE",
    type=click.Path(path_type=Path),
    help="Read settings from this file. [default: .env here, or else beside server.py]",
)
@click.pass_context
def main(context: click.Context, env_file: Path | None) -> None:
    """Notifier: texts to many clients at the right time, through an HTTP gateway nobody can trust.

    Settings come from environment variables and a .env file; `config check` shows them.
    """
    context.obj = env_file
    _leave_foreign_home()
    if context.invoked_subcommand is None:
        context.invoke(serve)


def _load() -> settings.Settings:
    return settings.Settings.load(env_file=settings.find_env_file(click.get_current_context().obj))


def _leave_foreign_home() -> None:
    """Have no home rather than somebody else's: both drivers look for certificates there, and would be refused."""
    if not os.access(os.environ.get("HOME", os.sep), os.X_OK):
        os.environ["HOME"] = "/nonexistent"


@main.command()
def serve() -> None:
    """Migrate if needed, then serve API, admin pages and scheduler (the default)."""
    with process.told(stopped=0):
        loaded = _load()
        app.configure_logging(loaded)
        app.introduce(loaded)
        settings.secret_key(loaded)
        app.connections_at_most(loaded)  # where there is no room nothing is started
        with process.bound(loaded) as sockets, app.a_database(loaded) as dsn:
            process.run(app.serve(loaded, dsn, sockets))


@main.command()
@click.option("--status", is_flag=True, help="Say what is applied, and change nothing; exit 1 if any is pending.")
def migrate(status: bool) -> None:
    """Apply migrations and stop."""
    with process.told():
        loaded = _load()
        app.configure_logging(loaded)
        if not status:
            with app.a_database(loaded) as dsn:
                applied = migrations.status(dsn)
            click.echo(f"{len(applied)} migration{'s' * (len(applied) != 1)}, all applied")
            return
        standing = _migration_status(loaded)
    for name, done in standing:
        click.echo(f"{'applied' if done else 'pending'}  {name}")
    if not all(done for _, done in standing):
        sys.exit(1)


def _migration_status(loaded: settings.Settings) -> list[tuple[str, bool]]:
    with _as_it_is(loaded, must_exist=True) as dsn:
        return migrations.status(_direct(loaded, dsn))


@contextmanager
def _as_it_is(loaded: settings.Settings, *, must_exist: bool) -> Iterator[str]:
    """Yield the address of a database that is up, and was not migrated for this.

    Raises NotifierError where an embedded one ``must_exist`` and does not.
    """
    if loaded.database_url is None:
        folder = loaded.data_dir / "postgresql"
        if must_exist and not embedded.was_made(folder):
            raise NotifierError(f"there is no database in {folder.absolute()}; look at DATA_DIR, or set DATABASE_URL")
        with embedded.running(folder) as dsn:
            yield dsn
    else:
        asyncio.run(readiness.wait_until_up(loaded.database_url, say=lambda word: click.echo(word, err=True)))
        yield loaded.database_url


@main.command()
@click.option("--yes", is_flag=True, help="Do not ask; needed where there is no terminal.")
def release(yes: bool) -> None:
    """Let a database send that looks like a copy.

    A database that was restored or cloned sends nothing by itself: what was sent since it was copied would be sent
    again. This tells its replicas, running ones too, that it is the one to send from.
    """
    with process.told():
        loaded = _load()
        app.configure_logging(loaded)
        with _as_it_is(loaded, must_exist=True) as dsn:
            process.run(_release(dsn, loaded, sure=yes))


async def _release(dsn: str, loaded: settings.Settings, *, sure: bool) -> None:
    async with await database.create_pool(
        dsn, size=1, application_name="notifier-release", statement_cache=loaded.database_statement_cache
    ) as db:
        await readiness.check(db, durable=False)
        found = await installation.read(db, loaded.instance)
        if found is None or found.difference is None:
            click.echo("nothing to release: this database is not held")
            return
        open_mailings, waiting = await installation.would_send(db)
        click.echo(f"this database looks like a copy: {found.difference}")
        click.echo(f"it was in use there since {found.noted_at:%Y-%m-%d %H:%M} UTC")
        click.echo(f"open mailings: {open_mailings}; messages that would be sent: {waiting}")
        if not sure:
            if not sys.stdin.isatty():
                raise NotifierError("nothing was released: say --yes, since nobody can be asked here")
            click.confirm("Release it, so that its replicas send?", abort=True)
        await installation.release(db, loaded.instance)
        click.echo("released: its replicas send")


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
def dump(file: Path) -> None:
    """Write the whole database into FILE, for `load` on another server.

    For a move between PostgreSQL versions, also out of the embedded one: FILE can be read into every version from 15
    on. Stop the service first: what it does meanwhile is not in the file. FILE holds phones and texts.
    """
    with process.told():
        loaded = _load()
        app.configure_logging(loaded)
        with _as_it_is(loaded, must_exist=True) as dsn, _moving() as progress:
            moved = transfer.dump(_direct(loaded, dsn), file, progress)
        if moved.replicas:
            running = "a replica is" if moved.replicas == 1 else f"{moved.replicas} replicas are"
            click.echo(f"warning: {running} running; what is done from now on is not in {file}")
        click.echo(f"{sum(moved.rows.values())} rows of {len(moved.rows)} tables are in {file}")


@main.command()
@click.argument("file", type=click.Path(dir_okay=False, exists=True, path_type=Path))
def load(file: Path) -> None:
    """Read FILE, written by `dump`, into an empty database; all of it or nothing.

    The database then counts as a copy: `release` lets it send, once the other one does not any more.
    """
    with process.told():
        loaded = _load()
        app.configure_logging(loaded)
        with _as_it_is(loaded, must_exist=False) as dsn, _moving() as progress:
            moved = transfer.load(_direct(loaded, dsn), file, progress)
        click.echo(f"{sum(moved.rows.values())} rows of {len(moved.rows)} tables are loaded")
        click.echo(f"nothing is sent from here until you release it: {install.program()} release")


def _direct(loaded: settings.Settings, dsn: str) -> str:
    """The address for long transactions: that of the migrations, where the other leads to a pooler."""
    return (loaded.database_url and loaded.database_migration_url) or dsn


@contextmanager
def _moving() -> Iterator[transfer.Progress]:
    columns = (TextColumn("{task.description}"), FileSizeColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bars:
        tasks: dict[str, TaskID] = {}

        def progress(table: str, done: int) -> None:
            if table not in tasks:
                tasks[table] = bars.add_task(table, total=None)
            bars.update(tasks[table], completed=done)

        yield progress


@main.command()
def audit() -> None:
    """Check that the books balance; exit 1 if not.

    Looks at the whole database in one snapshot, also while the service runs, and changes nothing. A line for each
    check as soon as it is made: "ok NAME COUNT", so many things were looked at, or "BREACH NAME COUNT IDS", so many are
    wrong, with the first ten. Exit 1 on a breach, 2 if it could not run. docs/operations.md says what is checked.
    """
    with process.told(failed=2, stopped=2):
        loaded = _load()
        app.configure_logging(loaded)
        with _as_it_is(loaded, must_exist=True) as dsn:
            balanced = process.run(_audit(dsn, loaded.database_statement_cache))
    sys.exit(0 if balanced else 1)


async def _audit(dsn: str, statement_cache: int) -> bool:
    """Print a line for each check; whether none is broken."""
    balanced = True
    could_not: tuple[type[BaseException], ...] = (asyncpg.PostgresError, *database.AWAY)
    try:
        async with await database.create_pool(
            dsn, size=1, application_name="notifier-audit", statement_cache=statement_cache
        ) as db:
            await readiness.check(db, durable=False)
            async with aclosing(checks.run(db)) as findings:
                async for finding in findings:
                    click.echo(str(finding))
                    balanced &= not finding.breach
    except could_not as error:
        raise NotifierError(f"the audit could not run: {str(error) or type(error).__name__}") from error
    return balanced


@main.group()
def config() -> None:
    """Look at the settings."""


@config.command()
def check() -> None:
    """Show all settings with where each came from, secrets masked; every warning and error, exit 2 on an error."""
    errors: list[str] = []
    env_file = None
    try:
        env_file = settings.find_env_file(click.get_current_context().obj)
        loaded = settings.Settings.load(env_file=env_file)
        rows: Sequence[tuple[str, str, str]] = loaded.describe()
        warnings: Sequence[str] = loaded.warnings()
    except SettingsError as error:
        errors, rows, warnings = error.errors, error.rows, error.warnings
    click.echo(f"settings file: {env_file or 'none'}")
    table = Table("setting", Column("value", overflow="fold"), "from")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    for line in warnings:
        click.echo(f"warning: {line}", err=True)
    for line in errors:
        click.echo(f"error: {line}", err=True)
    if errors:
        sys.exit(2)


main.add_command(simulator.command)
main.add_command(demo)
