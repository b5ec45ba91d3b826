"""How the whole installation stands, for metrics: few rows are read, however many messages there are."""

from __future__ import annotations

from dataclasses import dataclass

from notifier.models import GatewayState, MailingStatus
from notifier.storage.database import Db


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of one moment; messages that are under way count where they stood before.

    ``mailings`` are those alive by status. ``waiting`` and ``retrying`` are messages of running and paused mailings;
    ``unknown`` those of which nobody can know whether they were sent, without archived and deleted mailings.
    ``oldest_due`` is for how many seconds the oldest message that could be sent has been due: of running mailings, and
    of scheduled ones whose start has passed; 0 where nothing is due. Messages outside their local hours are not due.
    """

    mailings: dict[MailingStatus, int]
    waiting: int
    retrying: int
    unknown: int
    oldest_due: float
    gateways: dict[str, GatewayState]


async def figures(db: Db) -> Figures:
    """Count, in one statement: counters of mailings that are alive or in doubt, one batch of each running mailing."""
    row = await db.fetchrow(
        """
        WITH alive AS MATERIALIZED (
            SELECT id, status, audience, starts_at FROM mailings WHERE status IN ('scheduled', 'running', 'paused')
        ), counted AS MATERIALIZED (
            SELECT c.state, c.n FROM alive CROSS JOIN LATERAL (
                SELECT state, sum(n) AS n FROM counters WHERE mailing_id = alive.id GROUP BY state
            ) c
        )
        SELECT
            ARRAY(SELECT row(status::text, count(*)) FROM alive GROUP BY status) AS mailings,
            (SELECT coalesce(sum(audience), 0) FROM alive) - (SELECT coalesce(sum(n), 0) FROM counted) AS waiting,
            (SELECT coalesce(sum(n), 0) FROM counted WHERE state IN ('retrying', 'doubtful')) AS retrying,
            (
                SELECT coalesce(sum(c.n), 0) FROM counters c JOIN mailings m ON m.id = c.mailing_id
                WHERE c.state IN ('unknown', 'doubtful') AND m.deleted_at IS NULL AND m.archived_at IS NULL
                  AND (c.state = 'unknown' OR m.status IN ('finished', 'cancelled'))
            ) AS unknown,
            (
                SELECT extract(epoch FROM clock_timestamp() - min(due.at))
                FROM alive CROSS JOIN LATERAL (
                    SELECT starts_at AS at WHERE status = 'scheduled'
                    UNION ALL (
                        SELECT due_at FROM batches WHERE mailing_id = alive.id AND owner IS NULL AND status = 'running'
                        ORDER BY due_at LIMIT 1
                    )
                    UNION ALL
                    SELECT due_at FROM batches
                    WHERE mailing_id = alive.id AND owner IS NOT NULL AND status = 'running' AND done < size
                ) due
            ) AS oldest_due,
            ARRAY(SELECT row(name, state) FROM gateways) AS gateways
        """
    )
    assert row is not None
    return Figures(
        mailings={MailingStatus(status): n for status, n in row["mailings"]},
        waiting=int(row["waiting"]),
        retrying=int(row["retrying"]),
        unknown=int(row["unknown"]),
        oldest_due=max(0.0, float(row["oldest_due"] or 0)),
        gateways={name: GatewayState(state) for name, state in row["gateways"]},
    )
