"""What must be true of the whole database in every snapshot, whatever was done to it before.

Only what holds after any legal history is asked. When a request was started is not compared with a mailing's times and
hours: those may have been edited since, and a clock may have been set back. Of a deleted mailing whose rows are being
purged piece by piece only what holds between two pieces is asked.
"""

from __future__ import annotations

from typing import NamedTuple

from notifier.models import MAX_IN_DOUBT, MESSAGE_TRANSITIONS
from notifier.storage.literals import pairs
from notifier.storage.mailings import WHOLE


class Check(NamedTuple):
    """A rule; ``sql`` returns (id, broken) for everything that it looks at, NULL for ``broken`` is a breach too."""

    name: str
    sql: str


# The last row of every message that has one. In the order of the primary key, so that nothing need be sorted.
_LAST = """
    SELECT DISTINCT ON (message_id) message_id, mailing_id, seq, state
    FROM attempts ORDER BY message_id DESC, seq DESC
"""

# Every message of every batch.
_QUEUED = """
    SELECT b.mailing_id, b.seq, b.state, e.message_id
    FROM batches b
    CROSS JOIN LATERAL unnest(coalesce(b.ids, ARRAY(SELECT generate_series(b.first_id, b.last_id)))) e (message_id)
"""

# Mailings m that are not being purged.
_KEPT = f"(m.deleted_at IS NULL OR {WHOLE})"

# ---- mailings (ids of mailings) -----------------------------------------------------------------------------------


_MAILINGS = (
    # Over are those that say when, and only those; what is deleted is over.
    Check(
        "mailings_over",
        """
        SELECT id, (status IN ('finished', 'cancelled')) <> (over_at IS NOT NULL)
                   OR (deleted_at IS NOT NULL AND over_at IS NULL) AS broken
        FROM mailings
        """,
    ),
    # Whoever is to be chosen is known once it runs, not before; without that nobody is chosen.
    Check(
        "mailings_begun",
        """
        SELECT id, CASE WHEN horizon IS NULL THEN status = 'running' OR planned OR audience <> 0 OR cursor <> 0
                        ELSE status IN ('draft', 'scheduled') OR cursor > horizon END
                   OR (horizon IS NULL AND started_at IS NOT NULL) AS broken
        FROM mailings
        """,
    ),
    Check(
        "mailings_archived",
        "SELECT id, archived_at IS NOT NULL AND status NOT IN ('finished', 'cancelled') AS broken FROM mailings",
    ),
    # Completed: everybody is chosen, and nothing is to be done but what a late truth put back after the end.
    Check(
        "mailings_completed",
        """
        SELECT m.id, NOT m.planned OR (m.status_reason = 'nobody_matched' AND m.audience <> 0) OR EXISTS (
                   SELECT FROM batches b WHERE b.mailing_id = m.id AND NOT EXISTS (
                       SELECT FROM attempts a
                       WHERE a.message_id = b.first_id AND a.seq = b.seq - 1 AND a.reason = 'late'
                   )
               ) AS broken
        FROM mailings m WHERE m.status = 'finished' AND m.status_reason IN ('completed', 'nobody_matched')
        """,
    ),
    # Every version of a text is kept, from the first to the present one.
    Check(
        "texts_kept",
        """
        SELECT m.id, min(t.version) IS DISTINCT FROM 1 OR max(t.version) <> m.text_version
                     OR count(t.version) <> m.text_version AS broken
        FROM mailings m LEFT JOIN mailing_texts t ON t.mailing_id = m.id GROUP BY m.id
        """,
    ),
    # Nothing stays behind of a mailing that is gone (its messages: slices_complete).
    Check(
        "no_orphans",
        """
        SELECT o.mailing_id AS id, m.id IS NULL AS broken
        FROM (
            SELECT mailing_id FROM slices UNION SELECT mailing_id FROM batches UNION SELECT mailing_id FROM counters
            UNION SELECT mailing_id FROM failures UNION SELECT mailing_id FROM series
        ) o LEFT JOIN mailings m ON m.id = o.mailing_id
        """,
    ),
)

# ---- recipients (ids of mailings) ---------------------------------------------------------------------------------


_RECIPIENTS = (
    Check(
        "audience",
        f"""
        SELECT m.id, m.audience <> coalesce(g.n, 0) AS broken
        FROM mailings m LEFT JOIN (SELECT mailing_id, count(*) AS n FROM messages GROUP BY 1) g ON g.mailing_id = m.id
        WHERE {_KEPT}
        """,
    ),
    # With slices_filled: every message lies in a slice. A join by ranges would look at each pair of the two.
    Check(
        "slices_complete",
        """
        SELECT mailing_id AS id, s.n IS DISTINCT FROM g.n AS broken
        FROM (SELECT mailing_id, sum(last_id - first_id + 1) AS n FROM slices GROUP BY 1) s
        FULL JOIN (SELECT mailing_id, count(*) AS n FROM messages GROUP BY 1) g USING (mailing_id)
        """,
    ),
    Check(
        "slices_filled",
        """
        SELECT s.mailing_id AS id, s.last_id - s.first_id + 1 <> (
                   SELECT count(*) FROM messages g
                   WHERE g.id BETWEEN s.first_id AND s.last_id AND g.mailing_id = s.mailing_id
               ) AS broken
        FROM slices s
        """,
    ),
    Check(
        "slices_apart",
        """
        SELECT mailing_id AS id, last_id < first_id OR first_id <= coalesce(max(last_id) OVER (
                   ORDER BY first_id, last_id ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
               ), first_id - 1) AS broken
        FROM slices
        """,
    ),
    # No id that was given is given again (ids of messages: the highest).
    Check(
        "message_ids",
        """
        SELECT g.id, g.id >= (SELECT next FROM message_ids) AS broken
        FROM (SELECT max(id) AS id FROM messages) g WHERE g.id IS NOT NULL
        """,
    ),
)

# ---- the ledger (ids of messages) ---------------------------------------------------------------------------------


_LEDGER = (
    Check(
        "ledger_dense",
        """
        SELECT message_id AS id, min(seq) <> 1 OR max(seq) <> count(*) AS broken FROM attempts GROUP BY message_id
        """,
    ),
    # Each row is of a message that is there, and of its mailing.
    Check(
        "ledger_messages",
        """
        SELECT a.message_id AS id, g.mailing_id IS DISTINCT FROM a.mailing_id AS broken
        FROM attempts a LEFT JOIN messages g ON g.id = a.message_id
        """,
    ),
    # Each step is legal. Accepted is sent (or unknown, where it could not be recorded so: delivery/recorder.py), and
    # only an acceptance or an operator's decision makes sent.
    Check(
        "ledger_steps",
        f"""
        SELECT message_id AS id,
               (outcome = 'accepted' AND state NOT IN ('sent', 'delivered', 'undelivered')
                   AND NOT (state = 'unknown' AND coalesce(reason IN ('unrecordable', 'late'), false)))
               OR (state = 'sent' AND before <> 'sent' AND outcome NOT IN ('accepted', 'resolved'))
               OR (before, state) NOT IN ({pairs(MESSAGE_TRANSITIONS)}) AS broken
        FROM (
            SELECT message_id, outcome, state, reason,
                   coalesce(lag(state) OVER (PARTITION BY message_id ORDER BY seq), 'waiting') AS before
            FROM attempts
        ) step
        """,
    ),
    # Promise 5. The late row of a request that was interrupted is its second row; each word of an operator may let one
    # more request go.
    Check(
        "in_doubt",
        f"""
        SELECT message_id AS id,
               count(*) FILTER (WHERE outcome = 'unknown') + greatest(0,
                   count(*) FILTER (WHERE outcome = 'interrupted') - count(*) FILTER (WHERE reason = 'late'))
               > {MAX_IN_DOUBT} + count(*) FILTER (WHERE outcome = 'resolved') AS broken
        FROM attempts WHERE outcome IN ('unknown', 'interrupted', 'resolved') OR reason = 'late' GROUP BY message_id
        """,
    ),
    # What was sent can be read: its version of the text is there.
    Check(
        "ledger_texts",
        """
        SELECT a.message_id AS id, t.version IS NULL AS broken
        FROM attempts a
        LEFT JOIN mailing_texts t ON t.mailing_id = a.mailing_id AND t.version = a.text_version
        WHERE a.text_version IS NOT NULL
        """,
    ),
)

# ---- the books: kept numbers are the counted ones (ids of mailings) -----------------------------------------------


_BOOKS = (
    Check(
        "counters",
        f"""
        SELECT mailing_id AS id, coalesce(kept.n, 0) <> coalesce(counted.n, 0) AS broken
        FROM (SELECT mailing_id, state, sum(n) AS n FROM counters GROUP BY 1, 2) kept
        FULL JOIN (
            SELECT mailing_id, state, count(*) AS n FROM ({_LAST}) last WHERE state <> 'waiting' GROUP BY 1, 2
        ) counted USING (mailing_id, state)
        JOIN mailings m ON m.id = mailing_id AND {_KEPT}
        """,
    ),
    # The reason is that of the row that made it fail: rows after it that leave it failed say something else.
    Check(
        "failures",
        f"""
        SELECT mailing_id AS id, coalesce(kept.n, 0) <> coalesce(counted.n, 0) AS broken
        FROM (SELECT mailing_id, reason, sum(n) AS n FROM failures GROUP BY 1, 2) kept
        FULL JOIN (
            SELECT mailing_id, coalesce(reason, 'unknown') AS reason, count(*) AS n
            FROM attempts a
            WHERE state = 'failed'
              AND NOT EXISTS (
                  SELECT FROM attempts b
                  WHERE b.message_id = a.message_id AND b.seq = a.seq - 1 AND b.state = 'failed'
              )
              AND NOT EXISTS (
                  SELECT FROM attempts b
                  WHERE b.message_id = a.message_id AND b.seq > a.seq AND b.state <> 'failed'
              )
            GROUP BY 1, 2
        ) counted USING (mailing_id, reason)
        JOIN mailings m ON m.id = mailing_id AND {_KEPT}
        """,
    ),
    # A step to sent or failed is plotted once, and stays.
    Check(
        "series",
        f"""
        SELECT mailing_id AS id, (coalesce(kept.sent, 0), coalesce(kept.failed, 0))
                                 <> (coalesce(counted.sent, 0), coalesce(counted.failed, 0)) AS broken
        FROM (SELECT mailing_id, sum(sent) AS sent, sum(failed) AS failed FROM series GROUP BY 1) kept
        FULL JOIN (
            SELECT mailing_id, count(*) FILTER (WHERE state = 'sent') AS sent,
                   count(*) FILTER (WHERE state = 'failed') AS failed
            FROM (
                SELECT mailing_id, state, lag(state) OVER (PARTITION BY message_id ORDER BY seq) AS before
                FROM attempts
            ) step
            WHERE state IN ('sent', 'failed') AND state IS DISTINCT FROM before
            GROUP BY 1
        ) counted USING (mailing_id)
        JOIN mailings m ON m.id = mailing_id AND {_KEPT}
        """,
    ),
    # As storage/statistics.py puts them together: their sum is the audience by construction, so none is negative.
    Check(
        "statistics",
        """
        SELECT id, bool_or(n < 0) AS broken
        FROM (
            SELECT id, state, sum(n) AS n
            FROM (
                SELECT id, 'waiting'::message_state AS state, audience AS n FROM mailings
                UNION ALL SELECT mailing_id, 'waiting', -n FROM counters
                UNION ALL SELECT mailing_id, state, n FROM counters
                UNION ALL SELECT mailing_id, state, done - watermark FROM batches WHERE owner IS NOT NULL
            ) d GROUP BY 1, 2
        ) shown GROUP BY id
        """,
    ),
)

# ---- the queue ----------------------------------------------------------------------------------------------------


_QUEUE = (
    # A list is sorted, names nobody twice, and its bounds are right (ids of batches).
    Check(
        "batches_sorted",
        """
        SELECT id, ids <> ARRAY(SELECT DISTINCT e FROM unnest(ids) e ORDER BY 1)
                   OR first_id <> ids[1] OR last_id <> ids[size] AS broken
        FROM batches WHERE ids IS NOT NULL
        """,
    ),
    # Whoever stands in a batch is a message of its mailing (ids of batches). While a mailing is purged its batches are
    # the last to go.
    Check(
        "batches_messages",
        f"""
        SELECT b.id, b.size <> CASE WHEN b.ids IS NULL
                   THEN (SELECT count(*) FROM messages g
                         WHERE g.id BETWEEN b.first_id AND b.last_id AND g.mailing_id = b.mailing_id)
                   ELSE (SELECT count(*) FROM messages g WHERE g.id = ANY (b.ids) AND g.mailing_id = b.mailing_id)
               END AS broken
        FROM batches b JOIN mailings m ON m.id = b.mailing_id AND {_KEPT}
        """,
    ),
    # What is done are the rows of those under the watermark (ids of batches; only owned ones have a watermark).
    Check(
        "batches_done",
        """
        SELECT b.id, b.done <> (
                   SELECT count(*)
                   FROM unnest(coalesce(b.ids, ARRAY(SELECT generate_series(b.first_id, b.last_id))))
                       WITH ORDINALITY e (message_id, position)
                   JOIN attempts a ON a.message_id = e.message_id AND a.seq = b.seq
                   WHERE e.position <= b.watermark
               ) AS broken
        FROM batches b WHERE b.owner IS NOT NULL
        """,
    ),
    # Nobody is to write the same row twice (ids of messages).
    Check(
        "queued_once",
        f"SELECT message_id AS id, count(*) > 1 AS broken FROM ({_QUEUED}) queued GROUP BY message_id, seq",
    ),
    # Whose row is not there yet writes the number after the last, and stands where its batch says; so none that is
    # final is sent again (ids of messages).
    Check(
        "queued_next",
        f"""
        SELECT message_id AS id, q.seq <> coalesce(l.seq, 0) + 1 OR q.state <> coalesce(l.state, 'waiting')
                                 OR q.state NOT IN ('waiting', 'retrying', 'doubtful') AS broken
        FROM ({_QUEUED}) q LEFT JOIN ({_LAST}) l USING (message_id)
        JOIN mailings m ON m.id = q.mailing_id AND {_KEPT}
        WHERE q.seq > coalesce(l.seq, 0)
        """,
    ),
    # Nothing is lost: whoever is not final stands in a batch that writes the next row (ids of messages).
    Check(
        "queued_all",
        f"""
        SELECT g.id, q.message_id IS NULL AS broken
        FROM messages g
        LEFT JOIN ({_LAST}) l ON l.message_id = g.id
        LEFT JOIN ({_QUEUED}) q
            ON q.message_id = g.id AND q.mailing_id = g.mailing_id AND q.seq = coalesce(l.seq, 0) + 1
        WHERE coalesce(l.state, 'waiting') IN ('waiting', 'retrying', 'doubtful')
        """,
    ),
)

CHECKS: tuple[Check, ...] = (*_MAILINGS, *_RECIPIENTS, *_LEDGER, *_BOOKS, *_QUEUE)
