ALTER TABLE counters RENAME COLUMN state TO standing;
ALTER TABLE attempts RENAME COLUMN state TO standing;
ALTER TABLE batches RENAME COLUMN foreign_rows TO late;
ALTER TABLE batches RENAME COLUMN watermark TO mark;
ALTER TABLE batches RENAME COLUMN state TO standing;
ALTER TYPE message_state RENAME TO standing;
ALTER SEQUENCE owners RENAME TO claims;
