"""Move a database between PostgreSQL servers of any supported version, as one file.

``pg_dump`` refuses a server newer than itself, and what a newer one writes an older server does not always take: that
shuts the way out of the embedded PostgreSQL. The file is a ZIP archive: ``manifest.json`` says what is in it, and each
table is a member in PostgreSQL's COPY text format, which has been the same since version 7.4. The schema itself is not
in it: the migrations make it.
"""

from __future__ import annotations

import json
import os
import secrets
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from notifier import address
from notifier.errors import NotifierError
from notifier.storage import database, migrations

FORMAT = 1
PIECE = 1 << 17
"""Bytes that are read and written at once."""
HELD = ("clients", "mailings", "messages")
"""Tables that are empty in a database that nobody has used."""

Progress = Callable[[str, int], None]
"""Is called with a table's name and the bytes done of it."""


@dataclass(frozen=True, slots=True)
class Moved:
    """What was written or read: rows by table, and how many replicas were running meanwhile."""

    rows: dict[str, int]
    replicas: int


def dump(dsn: str, path: Path, progress: Progress) -> Moved:
    """Write the whole database, as it is in one snapshot, into a new file that only its owner can read.

    A crash leaves no half: the file gets its name at the end. Raises `NotifierError` where the file is there or cannot
    be written, and for a database without our schema.
    """
    if path.exists():
        raise NotifierError(f"{path} is there already: name another file, or remove it")
    half = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")  # a name that nobody can have prepared
    try:
        with os.fdopen(os.open(half, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), "w+b") as file:
            moved = _dump(dsn, file, progress)
            file.flush()
            os.fsync(file.fileno())
        half.rename(path)
    except OSError as error:
        raise NotifierError(f"{path} cannot be written: {error.strerror}") from error
    finally:
        half.unlink(missing_ok=True)
    return moved


def _dump(dsn: str, file: Any, progress: Progress) -> Moved:
    with _unlimited(dsn) as connection, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        applied = migrations.applied(connection)
        if not applied:
            raise NotifierError("there is nothing to dump: the database has no schema of ours")
        tables, rows = _tables(connection), {}
        for table, columns in tables.items():
            statement = sql.SQL("COPY {} ({}) TO STDOUT").format(sql.Identifier(table), _names(columns))
            with connection.cursor() as cursor, archive.open(f"{table}.copy", "w", force_zip64=True) as member:
                done = 0
                with cursor.copy(statement) as copy:
                    for piece in copy:
                        member.write(piece)
                        done += len(piece)
                        progress(table, done)
                rows[table] = cursor.rowcount
        found = connection.execute("SELECT count(*) FROM replicas").fetchone()
        archive.writestr(
            "manifest.json",
            json.dumps(
                {
                    "format": FORMAT,
                    "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
                    "migrations": applied,
                    "tables": {table: {"columns": tables[table], "rows": rows[table]} for table in tables},
                    "sequences": _sequences(connection),
                },
                indent=1,
            ),
        )
    assert found is not None
    return Moved(rows, found[0])


def load(dsn: str, path: Path, progress: Progress) -> Moved:
    """Read a file of `dump` into an empty database, which gets the schema it needs; all of it or nothing.

    A dump of an older version is brought up to this one's schema. Raises `NotifierError` for a file that is none, is
    damaged or of a newer version, and for a database that holds anything.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _load(dsn, path, archive, progress)
    except OSError as error:
        raise NotifierError(f"{path} cannot be read: {error.strerror}") from error
    except (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError) as error:
        raise NotifierError(f"{path} is no whole file of the command dump: {error}") from error


def _load(dsn: str, path: Path, archive: zipfile.ZipFile, progress: Progress) -> Moved:
    manifest = json.loads(archive.read("manifest.json"))
    if manifest["format"] != FORMAT:
        raise NotifierError(f"{path} has the format {manifest['format']}; this program reads {FORMAT}: use a newer one")
    known = dict(migrations.status(dsn))
    wanted = set(manifest["migrations"])
    if newer := wanted - set(known):
        raise NotifierError(f"{path} comes from a newer version ({', '.join(sorted(newer))}): load it with that one")
    if surplus := {name for name, applied in known.items() if applied} - wanted:
        raise NotifierError(
            f"the database has a newer schema than {path} ({', '.join(sorted(surplus))}): load into an empty one"
        )
    migrations.migrate(dsn, only=wanted)
    rows = {}
    with _unlimited(dsn) as connection:
        for table in HELD:
            found = connection.execute(sql.SQL("SELECT 1 FROM {} LIMIT 1").format(sql.Identifier(table)))
            if found.fetchone() is not None:
                raise NotifierError(f"the database is in use: it has {table}; load into an empty one")
        present = _tables(connection)
        if unknown := set(manifest["tables"]) - set(present):
            raise NotifierError(f"{path} has tables that its migrations do not make: {', '.join(sorted(unknown))}")
        # The migrations have put rows into some; the dump has them as they were.
        connection.execute(sql.SQL("TRUNCATE {}").format(_names(list(present))))
        for table in present:
            if table not in manifest["tables"]:
                continue
            about = manifest["tables"][table]
            statement = sql.SQL("COPY {} ({}) FROM STDIN").format(sql.Identifier(table), _names(about["columns"]))
            with connection.cursor() as cursor, archive.open(f"{table}.copy") as member:
                done = 0
                with cursor.copy(statement) as copy:
                    while piece := member.read(PIECE):
                        copy.write(piece)
                        done += len(piece)
                        progress(table, done)
                rows[table] = cursor.rowcount
            if rows[table] != about["rows"]:
                raise NotifierError(f"{path} is damaged: {table} has {rows[table]} rows instead of {about['rows']}")
        for name, value in manifest["sequences"].items():
            named = sql.Literal(sql.Identifier(name).as_string(connection))
            connection.execute(sql.SQL("SELECT setval({}, {})").format(named, sql.Literal(value)))
        connection.execute("ANALYZE")
    migrations.migrate(dsn)
    return Moved(rows, 0)


@contextmanager
def _unlimited(dsn: str) -> Iterator[psycopg.Connection[tuple[Any, ...]]]:
    """Yield a connection whose statements may take as long as they need, in a transaction."""
    with psycopg.connect(address.parse(dsn).conninfo(), autocommit=True) as connection:
        connection.execute(database.unlimited(local=False))
        connection.autocommit = False
        yield connection


def _tables(connection: psycopg.Connection[tuple[Any, ...]]) -> dict[str, list[str]]:
    """Return table → columns of all but the migrations' own; those that others refer to come first."""
    found = connection.execute(
        """
        SELECT c.relname,
               ARRAY(SELECT a.attname::text FROM pg_attribute a
                     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
                     ORDER BY a.attnum),
               ARRAY(SELECT r.relname::text FROM pg_constraint f JOIN pg_class r ON r.oid = f.confrelid
                     WHERE f.conrelid = c.oid AND f.contype = 'f' AND f.confrelid <> c.oid)
        FROM pg_class c
        WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind = 'r'
          AND c.relname !~ '^_?yoyo_'
        ORDER BY c.relname
        """
    ).fetchall()
    ordered: dict[str, list[str]] = {}
    while len(ordered) < len(found):
        before = len(ordered)
        for name, columns, needs in found:
            if name not in ordered and all(need in ordered for need in needs):
                ordered[name] = columns
        assert len(ordered) > before, "the foreign keys form a circle"
    return ordered


def _sequences(connection: psycopg.Connection[tuple[Any, ...]]) -> dict[str, int]:
    """Return name → the last value given, of those that gave one."""
    rows = connection.execute(
        "SELECT sequencename, last_value FROM pg_sequences"
        " WHERE schemaname = current_schema() AND last_value IS NOT NULL"
    )
    return dict(rows.fetchall())


def _names(names: list[str]) -> sql.Composed:
    return sql.SQL(", ").join(map(sql.Identifier, names))
