"""Every statement written in notifier/storage prepares against the schema, also those that no other test runs."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import asyncpg

from notifier import storage
from notifier.models import Filter, MailingStatus, Status
from notifier.storage import audience, audit, clients, mailings, queue, statistics
from notifier.storage.database import Pool
from tests.storage.scenes import ME, insert_clients, insert_mailing, plan_slice

FOLDER = Path(storage.__file__).parent
MODULES = sorted(path.stem for path in FOLDER.glob("*.py"))
VERBS = {"WITH", "SELECT", "INSERT", "UPDATE", "DELETE"}


def tree_of(module: str) -> ast.Module:
    return ast.parse((FOLDER / f"{module}.py").read_text(encoding="utf-8"))


def is_sql(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.split()[:1] != []
        and (node.value.split()[0] in VERBS)
    )


def composes(node: ast.AST) -> bool:
    """Whether a text is put together here: f"…", "…" + "…", "…".format(…)."""
    return isinstance(node, ast.JoinedStr | ast.BinOp) or (isinstance(node, ast.Attribute) and node.attr == "format")


def statements(module: str) -> Iterator[tuple[str, int]]:
    """The statements of a module that stand there as one literal, with their lines."""
    tree = tree_of(module)
    parts = {id(part) for node in ast.walk(tree) if composes(node) for part in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and is_sql(node) and id(node) not in parts:
            yield str(node.value), node.lineno


def composers(module: str) -> set[str]:
    """The functions of a module that put a statement together out of parts."""
    return {
        f"{module}.{function.name}"
        for function in ast.walk(tree_of(module))
        if isinstance(function, ast.AsyncFunctionDef | ast.FunctionDef)
        for node in ast.walk(function)
        if composes(node)
        if any(
            is_sql(part) or (isinstance(part, ast.Name) and part.id in ("_SELECT", "_READ")) for part in ast.walk(node)
        )
    }


async def test_every_literal_prepares(db: Pool) -> None:
    for module in MODULES:
        wrong = []
        async with db.acquire() as connection:
            for sql, line in statements(module):
                try:
                    await connection.prepare(sql)
                except asyncpg.PostgresError as error:
                    wrong.append(f"{module}.py:{line}: {error}")
        assert not wrong


async def test_every_statement_that_is_put_together_runs(db: Pool) -> None:
    """Those that cannot be read off the source are run here, in each of their forms, and none is forgotten."""
    (client_id, _) = await insert_clients(db, 2, tags=["vip"])
    mailing_id = await insert_mailing(db, planned=False)
    await db.execute("UPDATE mailings SET horizon = 5")

    (unplanned,) = await audience.unplanned(db)
    await plan_slice(db, unplanned, 5, 100)
    await audience.begin_due(db)
    await audience.by_zone(db, Filter(tags=["vip"]))
    for retries in (False, True):
        await queue.claim(db, ME, after=0, retries=retries)
    await queue.send_settings(db, mailing_id)
    await queue.load(db, [1], [1])
    await mailings.get(db, mailing_id)
    for archived in (False, True):
        await mailings.page(db, status=None, before=None, limit=5, archived=archived)
        await mailings.page(db, status=MailingStatus.FINISHED, before=None, limit=5, archived=archived)
        await statistics.of_mailings(db, None, 5, archived=archived)
    for status in (Status.FAILED, Status.UNKNOWN):
        await mailings.troubled(db, status, before=None, limit=5)
    for ids in (None, [mailing_id]):
        await statistics.of_mailings(db, 5, 5, ids=ids)
    await clients.get(db, client_id)
    await clients.page(db, phone=None, operator_code=None, tag=None, timezone=None, before=None, limit=5)
    await clients.page(db, phone=1, operator_code="916", tag="vip", timezone="UTC", before=9, limit=5)
    await db.execute("UPDATE mailings SET over_at = now()")  # a breach: whose ids are asked for too
    assert "mailings_over" in [finding.name async for finding in audit.run(db) if finding.breach]
    await mailings.delete(db, mailing_id)
    await mailings.get_deleted(db, mailing_id)
    await mailings.deleted(db, before=None, limit=5)
    await mailings.restore(db, mailing_id)
    await clients.delete(db, client_id)
    await clients.erase_again(db, 0.0)

    assert {name for module in MODULES for name in composers(module)} == {
        "audience.by_zone",
        "audience.begin_due",
        "audience.choose",
        "audience.unplanned",
        "audit._finding",
        "queue.claim",
        "queue.send_settings",
        "queue.load",
        "ledger._last",  # run in test_ledger_late.py
        "mailings.create",
        "mailings.get",
        "mailings.get_deleted",
        "mailings.deleted",
        "mailings.restore",
        "mailings.page",
        "mailings.troubled",
        "clients.delete",
        "clients.erase_again",
        "clients.get",
        "clients.page",
        "statistics.of_mailings",
        "migrations.migrate",  # made this database
        "database.unlimited",  # run by both
        "transfer._load",  # run in test_transfer.py
    }


def test_most_statements_are_found_by_reading() -> None:
    assert sum(len(list(statements(module))) for module in MODULES) > 60
