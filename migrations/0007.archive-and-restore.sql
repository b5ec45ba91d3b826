-- depends: 0006.installation

ALTER TABLE mailings
    ADD COLUMN started_at  timestamptz,    -- when its audience began to be chosen; over_at is its counterpart
    ADD COLUMN archived_at timestamptz;
-- What was noted of the start until now: its first messages.
UPDATE mailings SET started_at = coalesce(
    (SELECT min(created_at) FROM slices WHERE mailing_id = mailings.id), greatest(starts_at, created_at))
WHERE horizon IS NOT NULL;

-- The lists, each in its order: without them a page would read past what is archived, or past what is not.
CREATE INDEX mailings_listed ON mailings (id) WHERE deleted_at IS NULL AND archived_at IS NULL;
CREATE INDEX mailings_listed_by_status ON mailings (status, id) WHERE deleted_at IS NULL AND archived_at IS NULL;
CREATE INDEX mailings_archived ON mailings (id) WHERE deleted_at IS NULL AND archived_at IS NOT NULL;
CREATE INDEX mailings_archived_by_status ON mailings (status, id) WHERE deleted_at IS NULL AND archived_at IS NOT NULL;

-- Which mailings have messages whose outcome is not known; the number stands in no index, so it changes in place.
CREATE INDEX counters_in_doubt ON counters (mailing_id) WHERE standing IN ('unknown', 'doubtful');
