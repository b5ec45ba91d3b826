DROP INDEX counters_in_doubt;
ALTER TABLE mailings DROP COLUMN started_at, DROP COLUMN archived_at;
