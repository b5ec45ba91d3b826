-- depends: 0008.gateway-words

-- Columns get the names that docs/glossary.md defines. Replicas of an older version know the old names only: what they
-- have under way could not be recorded. So they are stopped first. A replica that runs holds its advisory lock (behind a
-- pooler it does not), and raises its counter at least every 8 s.
DO $$
DECLARE
    seen    jsonb;
    running text;
BEGIN
    SELECT jsonb_object_agg(id::text, beat) INTO seen FROM replicas;
    IF seen IS NOT NULL THEN
        SELECT string_agg(name, ', ' ORDER BY id) INTO running
        FROM replicas JOIN pg_locks ON locktype = 'advisory' AND classid = 1852798057 AND objid = id::bigint::oid AND objsubid = 2
        WHERE database = (SELECT oid FROM pg_database WHERE datname = current_database());
        IF running IS NULL THEN
            PERFORM pg_sleep(10);
            SELECT string_agg(name, ', ' ORDER BY id) INTO running
            FROM replicas WHERE beat > coalesce((seen ->> id::text)::bigint, -1);
        END IF;
        IF running IS NOT NULL THEN
            RAISE EXCEPTION USING ERRCODE = 'object_in_use', MESSAGE =
                'replicas of an older version are running, and could not record what they have sent: ' || running;
        END IF;
    END IF;
END $$;

-- A replica of an older version that is started later fails before it claims anything.
ALTER SEQUENCE claims RENAME TO owners;
ALTER TYPE standing RENAME TO message_state;
ALTER TABLE batches RENAME COLUMN standing TO state;
ALTER TABLE batches RENAME COLUMN mark TO watermark;
ALTER TABLE batches RENAME COLUMN late TO foreign_rows;
ALTER TABLE attempts RENAME COLUMN standing TO state;
ALTER TABLE counters RENAME COLUMN standing TO state;
