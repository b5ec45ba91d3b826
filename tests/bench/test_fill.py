"""What the benchmarks fill is what the service would have left: the audit finds nothing."""

from __future__ import annotations

import pytest

from bench import fill
from notifier.models import Status
from notifier.storage import audit, mailings, queue, statistics
from notifier.storage.database import Pool


async def breaches(db: Pool) -> list[str]:
    return [str(finding) async for finding in audit.run(db) if finding.breach]


@pytest.mark.parametrize("count", [1, 3])
async def test_what_is_filled_balances(db: Pool, dsn: str, count: int) -> None:
    fill.clients(dsn, 3_700)
    first = fill.mailings(dsn, 3_600, count=count, through=2_000, sending=40)
    second = fill.mailings(dsn, 700, count=count, planned=False)

    assert await breaches(db) == []
    for mailing_id in first:
        found = await statistics.of_mailing(db, mailing_id)
        assert {status: n for status, n in found.messages.items() if n} == {
            Status.SENT: 1_992,
            Status.FAILED: 2,
            Status.UNKNOWN: 2,
            Status.SUPPRESSED: 2,
            Status.RETRYING: 2,
            Status.SENDING: 40,
            Status.WAITING: 1_560,
        }
    assert [(await mailings.get(db, mailing_id)).planned for mailing_id in second] == [False] * count
    claimed = await queue.claim(db, 1, after=second[0] - 1, limit=2)
    assert [(batch.mailing_id, len(batch.ids)) for batch in claimed] == [(second[0], 500), (second[0], 200)]
