DROP TABLE idempotency_keys, erasures, gateways, replicas, series, failures, counters, attempts, batches, slices, message_ids,
    messages, mailing_texts, mailings, clients;
DROP SEQUENCE claims;
DROP TYPE outcome;
DROP TYPE standing;
DROP TYPE mailing_status;
