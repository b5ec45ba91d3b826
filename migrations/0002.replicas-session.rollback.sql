ALTER TABLE replicas DROP COLUMN session;
