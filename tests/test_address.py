"""What an address of the database means, to both drivers the same, and how what is wrong with it is told."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import psycopg
import pytest
import trustme
from psycopg.conninfo import conninfo_to_dict

from chaos.databases import pgbouncer
from chaos.stage import Postgres, scratch, server_user
from notifier import address
from notifier.errors import SettingsError, Unavailable
from notifier.storage import readiness
from tests.faults.conftest import skipped_where_lacking

# (what stands behind postgresql://, the password in it): each must be percent-encoded to be understood.
UNESCAPED = [
    ("u:Pq9#ssw@h/db", "Pq9#ssw"),
    ("u:Pq9/ssw@h/db", "Pq9/ssw"),
    ("u:Pq9%ssw@h/db", "Pq9%ssw"),
    ("u:Pq9?ssw@h/db", "Pq9?ssw"),
    ("u:p@ssw@h/db", "p@ssw"),
    ("u:p@s/sw@h/db", "p@s/sw"),
    ("u:p@s?s=w@h/db", "p@s?s=w"),
    ("u:123/ssw@h/db", "123/ssw"),
    ("u:Qz7:mk=)RtLp[nex]uN=@h:5432/db", "Qz7:mk=)RtLp[nex]uN="),
    ("u:Pq9 ssw@h/db", "Pq9 ssw"),
    ("u:Pq9%FFssw@h/db", "Pq9%FFssw"),
    ("u:Pq9ssw", "Pq9ssw"),
    ("u@h/db?password=Pq9&ssw=kfj", "Pq9&ssw=kfj"),
    ("u@h/db?password=Pq9&sswkfj", "Pq9&sswkfj"),
]


def words(text: str) -> dict[str, str]:
    return dict(address.parse(f"postgresql://{text}").words)


def refusal(text: str) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        address.parse(f"postgresql://{text}")
    return str(caught.value)


@pytest.mark.parametrize(("text", "password"), UNESCAPED)
def test_a_password_that_must_be_encoded_is_told_so_without_a_letter_of_it(text: str, password: str) -> None:
    said = refusal(text)
    assert "%40" in said
    assert [piece for at in range(len(password) - 2) if (piece := password[at : at + 3]) in said] == []


def test_an_encoded_password_is_read_by_both_drivers() -> None:
    place = address.parse("postgresql://u:Pq%23%2F%25%3F%40%5B%5D%3A%3D)@h/db")
    assert place.asyncpg(timeout=1)["password"] == conninfo_to_dict(place.conninfo())["password"] == "Pq#/%?@[]:=)"
    assert "Pq" not in f"{place!r} {place}"


@pytest.mark.parametrize("port", ["54x2", "99999", "0", "5432x", "-1", "٥"])
def test_a_port_that_is_none(port: str) -> None:
    assert "port that is not a number from 1 to 65535" in refusal(f"u@h:{port}/db")
    assert "port is not a number from 1 to 65535" in refusal(f"u@h/db?port={port}")


@pytest.mark.parametrize(
    ("text", "hosts", "ports", "database"),
    [
        ("u@h/db", ["h"], [5432], "db"),
        ("u@h:1/db", ["h"], [1], "db"),
        ("u@a,b/db", ["a", "b"], [5432, 5432], "db"),
        ("u@a:1,b/db", ["a", "b"], [1, 5432], "db"),
        ("u@[fd00::5]:1,b:2/db", ["fd00::5", "b"], [1, 2], "db"),
        ("u@h:9/db?host=a,b&port=1,2", ["a", "b"], [1, 2], "db"),
        ("u@h/db?host=a,b&port=7", ["a", "b"], [7, 7], "db"),
        ("u@h/first?dbname=second", ["h"], [5432], "second"),
        ("u@/db?host=/run/postgresql", ["/run/postgresql"], [5432], "db"),
        ("u@%2Frun%2Fpostgresql/db", ["/run/postgresql"], [5432], "db"),
        ("u@h/db?hostaddr=192.0.2.1", ["192.0.2.1"], [5432], "db"),
        ("u@h", ["h"], [5432], "u"),
    ],
)
def test_host_port_and_database_are_the_same_to_both_drivers(
    text: str, hosts: list[str], ports: list[int], database: str
) -> None:
    place = address.parse(f"postgresql://{text}")
    ours = place.asyncpg(timeout=1)
    assert (ours["host"], ours["port"], ours["database"], ours["user"]) == (hosts, ports, database, "u")
    theirs = conninfo_to_dict(place.conninfo())
    assert str(theirs.get("hostaddr") or theirs["host"]).split(",") == hosts
    assert theirs["dbname"] == database
    assert [int(port) for port in str(theirs["port"]).split(",") * len(hosts)][: len(hosts)] == ports


def test_what_is_left_open_is_filled_in_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "db.example.com")
    monkeypatch.setenv("PGUSER", "somebody")
    place = address.parse("postgresql:///db")
    assert (place.words["host"], place.words["user"]) == ("db.example.com", "somebody")
    monkeypatch.delenv("PGHOST")
    place = address.parse("postgresql:///db")
    assert place.asyncpg(timeout=1)["host"] == place.words["host"].split(",") == address.SOCKETS.split(",")


@pytest.mark.parametrize(
    "query",
    [
        *("connect_timeout=5&keepalives_idle=30&tcp_user_timeout=1000", "gssencmode=prefer", "sslmode=disable"),
        *("fallback_application_name=x&application_name=y", "load_balance_hosts=random", "client_encoding=UTF8"),
        *("sslmode=prefer&ssl_min_protocol_version=TLSv1.2", "options=-c%20work_mem%3D5MB", "krbsrvname=postgres"),
        *("target_session_attrs=read-write", "channel_binding=prefer", "sslnegotiation=postgres", "sslsni=1"),
    ],
)
async def test_libpqs_words_work_with_both_drivers(dsn: str, query: str) -> None:
    place = address.parse(f"{dsn}{'&' if '?' in dsn else '?'}{query}")
    connection = await asyncpg.connect(**place.asyncpg(timeout=10))
    assert await connection.fetchval("SELECT current_database()") == place.words["dbname"]
    if "options" in query:
        assert await connection.fetchval("SHOW work_mem") == "5MB"
    await connection.close()

    def ask() -> object:
        with psycopg.connect(place.conninfo()) as session:
            return session.execute("SELECT current_database()").fetchone()

    assert await asyncio.to_thread(ask) == (place.words["dbname"],)


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("gssencmode=require", "gssencmode can only be disable or prefer"),
        ("channel_binding=require&sslmode=require", "write sslmode=verify-full&sslrootcert=system instead"),
        ("require_auth=scram-sha-256", "require_auth asks for a check"),
        ("requirepeer=postgres", "requirepeer asks for a check"),
        ("service=prod", "service is not supported"),
        ("replication=true", "replication is for replication only"),
        ("sslmode=verify", "sslmode is not one of disable, allow"),
        ("target_session_attrs=master", "target_session_attrs is not one of any, read-write"),
        ("connect_timeout=soon", "connect_timeout is not a whole number"),
        ("sslcert=/nowhere/client.crt", "sslcert names a file that cannot be read (No such file"),
        ("sslrootcert=system&sslmode=require", "sslrootcert=system needs sslmode=verify-full"),
        ("sslmode=verify-full&hostaddr=192.0.2.1", "hostaddr cannot be had together with sslmode=verify-full"),
        ("sslnegotiation=direct", "sslnegotiation=direct needs sslmode=require"),
        ("client_encoding=latin1", "client_encoding must be UTF8"),
        ("conect_timeout=5", "conect_timeout, which libpq does not know; did you mean connect_timeout?"),
        ("statement_timeout=5", "statement_timeout, which libpq does not know"),
        ("options=-c a=b", "spaces"),
        ("options=-c%20a=b", "write = inside a value as %3D"),
        ("host=a,b&port=1,2,3", "names 2 hosts and 3 ports"),
        ("host=a,,b", "a host without a name"),
    ],
)
def test_what_cannot_be_had_is_named(query: str, says: str) -> None:
    assert says in refusal(f"u@h/db?{query}")


def test_the_systems_certificates_are_one_file_for_both(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = tmp_path / "bundle.pem"
    bundle.touch()
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    found = words("u@h/db?sslrootcert=system&channel_binding=require")
    assert (found["sslrootcert"], found["sslmode"]) == (str(bundle), "verify-full")


def test_connect_timeout_is_for_each_host() -> None:
    assert address.parse("postgresql://u@a,b/db?connect_timeout=4").asyncpg(timeout=1)["timeout"] == 8
    assert address.parse("postgresql://u@a,b/db").asyncpg(timeout=1)["timeout"] == 1


# What a server answers to it


async def refused(dsn: str) -> str:
    """What is said at once, where waiting cannot mend it."""
    with pytest.raises(SettingsError) as caught:
        await readiness.wait_until_up(dsn, say=pytest.fail)
    return str(caught.value)


async def test_a_server_without_tls_is_told_at_once(postgres: Postgres) -> None:
    said = await refused(f"{postgres.dsn}?sslmode=require")
    assert f"127.0.0.1:{postgres.port} takes no TLS, and sslmode=require asks for it" in said


@pytest.fixture
def encrypted(postgres: Postgres) -> Iterator[tuple[int, Path]]:
    """The port of a PgBouncer that insists on TLS for `localhost`, and the certificate that signed its own."""
    folder = scratch("notifier-test-")
    try:
        authority = trustme.CA()
        own = authority.issue_cert("localhost")
        authority.cert_pem.write_to_path(folder / "ca.pem")
        own.private_key_and_cert_chain_pem.write_to_path(folder / "own.pem")
        if user := server_user():
            shutil.chown(folder / "own.pem", user["user"])
        tls = [f"client_tls_key_file = {folder}/own.pem", f"client_tls_cert_file = {folder}/own.pem"]
        with (
            skipped_where_lacking(),
            pgbouncer(folder, postgres.port, settings=["client_tls_sslmode = require", *tls]) as dsn,
        ):
            yield address.parse(dsn).places[0].port, folder / "ca.pem"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def connects(dsn: str) -> None:
    """Let both drivers in."""
    place = address.parse(dsn)
    await readiness.wait_until_up(dsn, say=pytest.fail)
    await asyncio.to_thread(lambda: psycopg.connect(place.conninfo()).close())


async def test_the_certificate_is_checked_by_both(encrypted: tuple[int, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    port, authority = encrypted
    dsn = f"postgresql://notifier@localhost:{port}/notifier"
    await connects(f"{dsn}?sslmode=verify-full&sslrootcert={authority}")
    await connects(f"{dsn}?sslmode=require")
    await connects(f"{dsn}?ssl=true")
    await connects(dsn)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority))
    await connects(f"{dsn}?sslrootcert=system&channel_binding=prefer")


async def test_a_certificate_that_nobody_trusts_is_told_at_once(encrypted: tuple[int, Path]) -> None:
    port, authority = encrypted
    said = await refused(f"postgresql://notifier@localhost:{port}/notifier?sslrootcert=system")
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert f"localhost:{port}" in said
    of_another = f"postgresql://notifier@127.0.0.1:{port}/notifier?sslmode=verify-full&sslrootcert={authority}"
    assert "127.0.0.1" in await refused(of_another)


async def test_the_wait_names_the_host() -> None:
    said: list[str] = []
    with pytest.raises(Unavailable, match=r"did not come up within 0 s: no-such-host\.invalid:5432: "):
        await readiness.wait_until_up("postgresql://u@no-such-host.invalid/db", seconds=0, say=said.append)
