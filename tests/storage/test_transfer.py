"""A database that moves between servers of different versions, as one file."""

from __future__ import annotations

import json
import os
import subprocess
import zipfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from chaos.stage import PATIENCE, free_port, server_user, until
from notifier.errors import NotifierError
from notifier.storage import audit, database, migrations, readiness, transfer
from notifier.storage.database import Pool
from tests.conftest import with_database
from tests.storage.scenes import insert_clients, insert_mailing, running

HARD = 'tab\there, back\\slash, "quotes", \\N, line\nend, NUL-like \\x00, €, 👩‍🚀'


def quiet(table: str, done: int) -> None:
    """Show no progress."""


def rows(dsn: str) -> dict[str, list[str]]:
    """Every row of every table as text, by table, and what the sequences gave last."""
    with psycopg.connect(dsn) as connection:
        connection.execute("SET timezone = 'UTC'")
        names = connection.execute(
            "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = current_schema()::regnamespace"
            " AND relname !~ 'yoyo' ORDER BY 1"
        ).fetchall()
        found = {
            name: sorted(row[0] for row in connection.execute(f'SELECT t::text FROM "{name}" t').fetchall())
            for (name,) in names
        }
        found["sequences"] = sorted(
            f"{row[0]} {row[1]}"
            for row in connection.execute("SELECT sequencename, last_value FROM pg_sequences").fetchall()
        )
    return found


@pytest.fixture
def older(place: Path) -> Iterator[str]:
    """The DSN of an empty database on the oldest server of Debian's here, another version than the embedded one."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: int(path.parts[4]))
    if not found:
        if "NOTIFIER_REQUIRE_ALL" in os.environ:
            raise AssertionError("Debian's package postgresql lacks")
        pytest.skip("needs Debian's package postgresql")
    programs, data, port = found[0].parent, place / "older", free_port()
    user = server_user()
    place.chmod(0o711)
    data.mkdir()
    if user:
        os.chown(data, user["user"], user["group"])
    subprocess.run(
        [programs / "initdb", "-D", data, "-U", "notifier", "--auth=trust", "--no-sync", "--encoding=UTF8"],
        check=True, capture_output=True, cwd="/", env={"LC_ALL": "C"}, **user,
    )  # fmt: skip
    server = subprocess.Popen(
        [programs / "postgres", "-D", data, "-p", str(port), "-F", "-k", "", "-h", "127.0.0.1"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/", env={"LC_ALL": "C"}, **user,
    )  # fmt: skip
    dsn = f"postgresql://notifier@127.0.0.1:{port}/postgres"

    def answers() -> bool:
        assert server.poll() is None, "the server ended"
        try:
            psycopg.connect(dsn, connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    try:
        until(answers)
        with psycopg.connect(dsn, autocommit=True) as admin:
            admin.execute("CREATE DATABASE moved")
        yield with_database(dsn, "moved")
    finally:
        server.terminate()
        server.wait(PATIENCE)


async def filled(db: Pool) -> None:
    """Clients and mailings in all states of the queue, with text that is hard to quote."""
    await insert_clients(db, 30)
    await running(db, 5, 7)
    await db.execute(
        "UPDATE clients SET tags = ARRAY[$1, 'vip, \"x\"'], attributes = jsonb_build_object('a', $1::text, 'n', null)",
        HARD,
    )
    mailing_id = await insert_mailing(db, "draft")
    await db.execute("UPDATE mailing_texts SET text = $1 WHERE mailing_id = $2", HARD, mailing_id)
    await db.execute("UPDATE mailings SET name = $1, horizon = NULL, planned = false WHERE id = $2", HARD, mailing_id)
    await db.execute("INSERT INTO idempotency_keys VALUES ('\\x00ff', '\\x', 201, '{}', $1)", bytes(range(256)))


async def test_a_database_moves_to_an_older_server_and_back(
    db: Pool, dsn: str, older: str, empty_dsn: str, tmp_path: Path
) -> None:
    await filled(db)
    file = tmp_path / "moved.zip"
    moved = transfer.dump(dsn, file, quiet)
    assert moved.rows["clients"] == 42
    assert file.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [file.name]
    assert transfer.load(older, file, quiet).rows == moved.rows
    assert rows(older) == rows(dsn)

    again = tmp_path / "again.zip"
    transfer.dump(older, again, quiet)
    transfer.load(empty_dsn, again, quiet)
    assert rows(empty_dsn) == rows(dsn)
    async with await database.create_pool(older, size=2, application_name="test") as pool:
        await readiness.check(pool, durable=False)
        assert not [finding async for finding in audit.run(pool) if finding.breach]
        # identities go on where they were
        last = await pool.fetchval("SELECT max(id) FROM clients")
        assert await insert_clients(pool, 1) == [last + 1]


async def test_a_dump_of_an_older_version_is_brought_up_to_date(
    db: Pool, empty_dsn: str, server: str, tmp_path: Path
) -> None:
    names = [name for name, _ in migrations.status(empty_dsn)]
    migrations.migrate(empty_dsn, only=names[:3])
    with psycopg.connect(empty_dsn) as connection:
        connection.execute("INSERT INTO clients (phone, operator_code) VALUES (79161234567, '916')")
    transfer.dump(empty_dsn, tmp_path / "old.zip", quiet)
    name = f"{empty_dsn.rpartition('/')[2].partition('?')[0]}_new"
    with psycopg.connect(server, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}")
    new = with_database(server, name)
    try:
        transfer.load(new, tmp_path / "old.zip", quiet)
        assert all(applied for _, applied in migrations.status(new))
        assert rows(new)["clients"] == rows(empty_dsn)["clients"]
    finally:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


async def test_what_cannot_be_loaded_is_refused_and_changes_nothing(
    db: Pool, dsn: str, empty_dsn: str, tmp_path: Path
) -> None:
    await filled(db)
    file = tmp_path / "moved.zip"
    transfer.dump(dsn, file, quiet)
    before = rows(dsn)

    with pytest.raises(NotifierError, match="the database is in use: it has clients"):
        transfer.load(dsn, file, quiet)
    assert rows(dsn) == before

    whole = file.read_bytes()
    flipped = bytearray(whole)
    with zipfile.ZipFile(file) as archive:
        member = archive.getinfo("clients.copy")
    flipped[member.header_offset + 80] ^= 0xFF
    for text in (whole[: len(whole) // 2], b"not an archive", b"", bytes(flipped)):
        (tmp_path / "bad.zip").write_bytes(text)
        with pytest.raises(NotifierError, match="is no whole file of the command dump"):
            transfer.load(empty_dsn, tmp_path / "bad.zip", quiet)

    for change, said in (
        ({"format": 9}, "has the format 9"),
        ({"migrations": ["0001.clients-mailings-queue", "9999.later"]}, "comes from a newer version"),
    ):
        with zipfile.ZipFile(file) as good, zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
            for name in good.namelist():
                content = good.read(name)
                if name == "manifest.json":
                    content = json.dumps({**json.loads(content), **change}).encode()
                other.writestr(name, content)
        with pytest.raises(NotifierError, match=said):
            transfer.load(empty_dsn, tmp_path / "other.zip", quiet)

    transfer.load(empty_dsn, file, quiet)
    assert rows(empty_dsn) == before


async def test_a_file_that_is_there_is_left_alone(dsn: str, empty_dsn: str, tmp_path: Path) -> None:
    file = tmp_path / "moved.zip"
    with pytest.raises(NotifierError, match="has no schema of ours"):
        transfer.dump(empty_dsn, file, quiet)
    assert os.listdir(tmp_path) == []
    transfer.dump(dsn, file, quiet)
    with pytest.raises(NotifierError, match="is there already"):
        transfer.dump(dsn, file, quiet)
    with pytest.raises(NotifierError, match="cannot be written"):
        transfer.dump(dsn, tmp_path / "no" / "folder", quiet)
