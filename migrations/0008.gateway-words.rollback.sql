ALTER TABLE gateways DROP COLUMN identity, DROP COLUMN breaker_detail, DROP COLUMN detail;
