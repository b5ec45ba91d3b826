"""How many messages stand where: from counters and owned batches, never by counting rows.

Waiting is the audience less all else, so the statuses sum to the audience by construction, in every snapshot.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

import asyncpg

from notifier.errors import Code, NotFound
from notifier.models import INT64_MAX, MailingStatus, MessageState, Status, status_of
from notifier.storage.database import Db

SERIES_POINTS = 1_000
RATE_SECONDS = 10  # also the width of a row in `series`


class Step(StrEnum):
    """The width of a point of a series."""

    MINUTE = "minute"
    HOUR = "hour"
    DAY = "day"


SECONDS = {Step.MINUTE: 60, Step.HOUR: 3_600, Step.DAY: 86_400}


@dataclass(frozen=True, slots=True)
class Failure:
    """How many messages failed for this reason."""

    reason: str
    count: int


@dataclass(frozen=True, slots=True)
class Point:
    """Messages sent and failed within one step, which begins ``at`` (UTC)."""

    at: datetime
    sent: int
    failed: int


@dataclass(frozen=True, slots=True)
class Statistics:
    """One mailing in one snapshot; ``rate`` is messages (sent or failed) a second over the last 10 s.

    ``forecast_finish_at`` is None until it has been sent for 10 to 20 s: see `_forecast`.
    """

    audience: int
    planned: bool
    messages: dict[Status, int]
    failures: list[Failure]
    rate: float
    forecast_finish_at: datetime | None
    first_sent_at: datetime | None
    last_sent_at: datetime | None
    series: list[Point]


@dataclass(frozen=True, slots=True)
class Totals:
    """All mailings that are not deleted."""

    audience: int
    messages: dict[Status, int]


@dataclass(frozen=True, slots=True)
class Line:
    """One mailing of the overview."""

    id: int
    name: str | None
    status: MailingStatus
    audience: int
    messages: dict[Status, int]


def _messages(
    mailing: MailingStatus,
    audience: int,
    counters: Iterable[tuple[str, int]],
    sending: Iterable[tuple[str, int]],
) -> dict[Status, int]:
    """Every status and its number. ``sending`` is taken off the counters that the owned batches name."""
    states = Counter({MessageState(name): n for name, n in counters})
    states[MessageState.WAITING] = audience - states.total()
    messages = dict.fromkeys(Status, 0)
    for name, n in sending:
        states[MessageState(name)] -= n
        messages[Status.SENDING] += n
    for state, n in states.items():
        messages[status_of(state, mailing)] += n
    return messages


async def of_mailing(db: Db, mailing_id: int, step: Step = Step.MINUTE) -> Statistics:
    """The statistics of one mailing, in one statement; ``series`` has the newest 1,000 points, oldest first.

    Raises NotFound, also for a deleted mailing. The rate slides over rows of ten seconds: the present one
    and, of the one before it, the part that is not older than 10 s, by the database's clock.
    """
    row = await db.fetchrow(
        """
        SELECT m.audience, m.planned, m.status, now() AS now, c.counters, c.first_sent_at, c.last_sent_at,
               ARRAY(
                   SELECT row(state::text, sum(watermark - done)::bigint) FROM batches
                   WHERE mailing_id = m.id AND owner IS NOT NULL GROUP BY state
               ) AS sending,
               ARRAY(
                   SELECT row(reason, sum(n)::bigint) FROM failures
                   WHERE mailing_id = m.id GROUP BY reason HAVING sum(n) > 0 ORDER BY sum(n) DESC, reason
               ) AS failures,
               (
                   SELECT coalesce(
                       sum((sent + failed) * least(1, 2 - extract(epoch FROM now() - at) / $3)), 0
                   )::float8 / $3
                   FROM series WHERE mailing_id = m.id AND at > now() - $3 * interval '2 seconds'
               ) AS rate,
               (
                   SELECT count(DISTINCT at) = 2 FROM series
                   WHERE mailing_id = m.id AND at > now() - $3 * interval '3 seconds'
                     AND at <= now() - $3 * interval '1 second'
               ) AS steady,
               ARRAY(
                   SELECT row(point.at, point.sent, point.failed) FROM (
                       SELECT date_trunc($2, s.at, 'UTC') AS at, sum(sent)::bigint AS sent,
                              sum(failed)::bigint AS failed
                       FROM (
                           -- the newest points have no more rows than this; what is older need not be grouped
                           SELECT at, sent, failed FROM series WHERE mailing_id = m.id ORDER BY at DESC
                           LIMIT $5::bigint * greatest(
                               1, (SELECT count(DISTINCT slot) FROM counters WHERE mailing_id = m.id)
                           )
                       ) s
                       GROUP BY 1 ORDER BY 1 DESC LIMIT $4
                   ) point ORDER BY point.at
               ) AS series
        FROM mailings m
        CROSS JOIN LATERAL (
            SELECT coalesce(array_agg(row(state::text, n)), '{}') AS counters,
                   min(first_at) FILTER (WHERE state = 'sent' AND n > 0) AS first_sent_at,
                   max(last_at) FILTER (WHERE state = 'sent' AND n > 0) AS last_sent_at
            FROM (
                SELECT state, sum(n)::bigint AS n, min(first_at) AS first_at, max(last_at) AS last_at
                FROM counters WHERE mailing_id = m.id GROUP BY state
            ) per_state
        ) c
        WHERE m.id = $1 AND m.deleted_at IS NULL
        """,
        mailing_id,
        step.value,
        float(RATE_SECONDS),
        SERIES_POINTS,
        SERIES_POINTS * SECONDS[step] // RATE_SECONDS,
    )
    if row is None:
        raise NotFound(Code.NO_MAILING, id=mailing_id)
    messages = _messages(MailingStatus(row["status"]), row["audience"], row["counters"], row["sending"])
    return Statistics(
        audience=row["audience"],
        planned=row["planned"],
        messages=messages,
        failures=[Failure(*failure) for failure in row["failures"]],
        rate=round(row["rate"], 2),
        forecast_finish_at=_forecast(row, messages),
        first_sent_at=row["first_sent_at"],
        last_sent_at=row["last_sent_at"],
        series=[Point(*point) for point in row["series"]],
    )


def _forecast(row: asyncpg.Record, messages: dict[Status, int]) -> datetime | None:
    """When the last message is sent at the present rate; None where nothing is known of that.

    ``steady`` says that both rows of the series before the present one have results, so sending began at least 10 s
    ago, and the rate is of ten seconds of sending. After the first second of a mailing it is of one second and nine
    of nothing, and the end would seem ten times as far off.
    """
    if row["status"] != MailingStatus.RUNNING or not row["planned"] or not row["steady"] or row["rate"] < 0.01:
        return None
    left = sum(messages[status] for status in (Status.WAITING, Status.SENDING, Status.RETRYING))
    now: datetime = row["now"]
    return now + timedelta(seconds=left / row["rate"])


async def totals(db: Db) -> Totals:
    """Audience and messages by status over all mailings that are not deleted, in one statement."""
    rows = await db.fetch(
        """
        WITH mailing AS MATERIALIZED (
            SELECT id, status, audience FROM mailings WHERE deleted_at IS NULL
        )
        SELECT g.status, g.audience,
               ARRAY(
                   SELECT row(c.state::text, sum(c.n)::bigint)
                   FROM counters c JOIN mailing m ON m.id = c.mailing_id
                   WHERE m.status = g.status GROUP BY c.state
               ) AS counters,
               ARRAY(
                   SELECT row(b.state::text, sum(b.watermark - b.done)::bigint)
                   FROM batches b JOIN mailing m ON m.id = b.mailing_id
                   WHERE b.owner IS NOT NULL AND m.status = g.status GROUP BY b.state
               ) AS sending
        FROM (SELECT status, sum(audience)::bigint AS audience FROM mailing GROUP BY status) g
        """
    )
    messages: Counter[Status] = Counter(dict.fromkeys(Status, 0))
    for row in rows:
        messages.update(_messages(MailingStatus(row["status"]), row["audience"], row["counters"], row["sending"]))
    return Totals(audience=sum(row["audience"] for row in rows), messages=dict(messages))


async def of_mailings(
    db: Db, before: int | None, limit: int, *, archived: bool = False, ids: Sequence[int] | None = None
) -> list[Line]:
    """Up to ``limit`` mailings with ids under ``before``, newest first, in one statement: the archived, or all others.

    With ``ids`` of those, archived or not.
    """
    # A statement for each: a plan that serves all uses the index of none.
    listed = f"m.id < $1 AND m.archived_at IS {'NOT NULL' if archived else 'NULL'}"
    narrow = listed if ids is None else "m.id = ANY($1::bigint[])"
    rows = await db.fetch(
        f"""
        SELECT m.id, m.name, m.status, m.audience,
               ARRAY(
                   SELECT row(state::text, sum(n)::bigint) FROM counters
                   WHERE mailing_id = m.id GROUP BY state
               ) AS counters,
               ARRAY(
                   SELECT row(state::text, sum(watermark - done)::bigint) FROM batches
                   WHERE mailing_id = m.id AND owner IS NOT NULL GROUP BY state
               ) AS sending
        FROM mailings m
        WHERE m.deleted_at IS NULL AND {narrow}
        ORDER BY m.id DESC LIMIT $2
        """,
        (INT64_MAX if before is None else before) if ids is None else ids,
        limit,
    )
    return [
        Line(
            id=row["id"],
            name=row["name"],
            status=MailingStatus(row["status"]),
            audience=row["audience"],
            messages=_messages(MailingStatus(row["status"]), row["audience"], row["counters"], row["sending"]),
        )
        for row in rows
    ]
