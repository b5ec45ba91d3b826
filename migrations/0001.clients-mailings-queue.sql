-- depends:

CREATE TYPE mailing_status AS ENUM ('draft', 'scheduled', 'running', 'paused', 'finished', 'cancelled');

-- The status of a message after its last ledger row; shown as docs/delivery.md says.
CREATE TYPE standing AS ENUM (
    'waiting', 'retrying', 'doubtful', 'sent', 'delivered', 'undelivered', 'failed', 'suppressed', 'unknown');

CREATE TYPE outcome AS ENUM (
    'accepted', 'rejected', 'declined', 'throttled', 'unavailable', 'misconfigured', 'unknown',
    'interrupted', 'not_started', 'suppressed', 'resolved');

CREATE TABLE clients (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    phone         bigint NOT NULL UNIQUE,
    operator_code text NOT NULL,
    tags          text[] NOT NULL DEFAULT '{}',
    timezone      text,
    attributes    jsonb NOT NULL DEFAULT '{}',
    version       integer NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX clients_operator_code ON clients (operator_code, id);
CREATE INDEX clients_timezone ON clients (timezone, id);
CREATE INDEX clients_tags ON clients USING gin (tags);

CREATE TABLE mailings (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name          text,
    text_version  integer NOT NULL DEFAULT 1,
    filter        jsonb NOT NULL DEFAULT '{}',
    starts_at     timestamptz NOT NULL,
    ends_at       timestamptz NOT NULL,
    window_from   time,
    window_to     time,
    priority      smallint NOT NULL DEFAULT 0,
    status        mailing_status NOT NULL,
    status_reason text,
    -- what the planner has done: clients up to `cursor` of those up to `horizon` are chosen
    audience      bigint NOT NULL DEFAULT 0,
    planned       boolean NOT NULL DEFAULT false,
    cursor        bigint NOT NULL DEFAULT 0,
    horizon       bigint,
    version       integer NOT NULL DEFAULT 1,
    created_at    timestamptz NOT NULL DEFAULT now(),
    updated_at    timestamptz NOT NULL DEFAULT now(),
    over_at       timestamptz,
    deleted_at    timestamptz,
    CHECK (ends_at > starts_at),
    CHECK ((window_from IS NULL) = (window_to IS NULL)),
    CHECK (window_from <> window_to),
    CHECK (priority BETWEEN -10 AND 10)
) WITH (fillfactor = 70);
-- The scheduler asks only for what is alive; a few rows however many mailings lie behind.
CREATE INDEX mailings_alive ON mailings (status) WHERE status IN ('scheduled', 'running', 'paused');
CREATE INDEX mailings_shown ON mailings (status, id) WHERE deleted_at IS NULL;
CREATE INDEX mailings_deleted ON mailings (id) WHERE deleted_at IS NOT NULL;

-- Append-only: what was sent stays known after an edit.
CREATE TABLE mailing_texts (
    mailing_id bigint NOT NULL REFERENCES mailings ON DELETE CASCADE,
    version    integer NOT NULL,
    text       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (mailing_id, version)
);

-- Who should get it: one row per recipient, never updated. No foreign keys: a client may be erased,
-- and a mailing is purged in bounded pieces.
CREATE TABLE messages (
    id         bigint PRIMARY KEY,
    mailing_id bigint NOT NULL,
    client_id  bigint NOT NULL,
    UNIQUE (client_id, mailing_id)
);

-- One row: the next free message id. Ids carry the time, so neither a restore nor a failover gives one twice.
CREATE TABLE message_ids (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    next     bigint NOT NULL
);
INSERT INTO message_ids (next) VALUES (0);

-- The id ranges a mailing's messages occupy.
CREATE TABLE slices (
    mailing_id bigint NOT NULL,
    first_id   bigint NOT NULL,
    last_id    bigint NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (mailing_id, first_id)
);

-- What is still to be done: up to 500 message ids of one mailing with one due time, the queue.
-- Ids are first_id .. last_id, or the sorted list `ids` (then the two are its bounds).
CREATE SEQUENCE claims;
CREATE TABLE batches (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    mailing_id    bigint NOT NULL,
    due_at        timestamptz NOT NULL,
    first_id      bigint NOT NULL,
    last_id       bigint NOT NULL,
    size          integer NOT NULL CHECK (size > 0),
    seq           smallint NOT NULL,      -- the ledger number its messages will write
    standing      standing NOT NULL,      -- the counter its messages stand in now
    owner         bigint,                 -- a number drawn per claim
    replica       integer,                -- who claimed it
    mark          integer NOT NULL DEFAULT 0,   -- so many from the front may have been started
    done          integer NOT NULL DEFAULT 0,   -- and so many of those have their ledger row
    late          integer NOT NULL DEFAULT 0,   -- ledger rows that others wrote for its messages
    ids           bigint[],
    CHECK (mark BETWEEN 0 AND size AND done BETWEEN 0 AND mark),
    CHECK ((owner IS NULL) = (replica IS NULL)),
    CHECK (owner IS NOT NULL OR mark = 0),
    CHECK (coalesce(cardinality(ids), last_id - first_id + 1) = size)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 500);
CREATE INDEX batches_due ON batches (mailing_id, due_at, id) WHERE owner IS NULL;
CREATE INDEX batches_due_retries ON batches (mailing_id, due_at, id) WHERE owner IS NULL AND seq > 1;
CREATE INDEX batches_owned ON batches (mailing_id, replica) WHERE owner IS NOT NULL;
CREATE INDEX batches_of_message ON batches (mailing_id, seq, first_id, last_id);

-- What happened: append-only; a message's timeline is its rows here, numbered 1, 2, 3 without a gap.
CREATE TABLE attempts (
    message_id   bigint NOT NULL,
    mailing_id   bigint NOT NULL,
    started_at   timestamptz NOT NULL,
    phone        bigint,
    duration_ms  integer,
    replica      integer,
    text_version integer,
    outcome      outcome NOT NULL,
    standing     standing NOT NULL,      -- the status after
    seq          smallint NOT NULL,
    status_code  smallint,
    reason       text,
    detail       text,
    reference    text,                   -- the gateway's own id of the message, where it gives one
    PRIMARY KEY (message_id, seq)
) WITH (autovacuum_vacuum_insert_scale_factor = 0.4);
CREATE INDEX attempts_not_sent ON attempts (mailing_id, standing, message_id) WHERE standing <> 'sent';

-- How many messages stand where. Waiting has no rows: it is the audience less all else.
-- `slot` is the replica's number modulo 8, so that replicas do not queue up for one row.
CREATE TABLE counters (
    mailing_id bigint NOT NULL,
    slot       smallint NOT NULL,
    standing   standing NOT NULL,
    n          bigint NOT NULL,
    first_at   timestamptz,
    last_at    timestamptz,
    PRIMARY KEY (mailing_id, slot, standing)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE failures (
    mailing_id bigint NOT NULL,
    slot       smallint NOT NULL,
    reason     text NOT NULL,
    n          bigint NOT NULL,
    PRIMARY KEY (mailing_id, slot, reason)
) WITH (fillfactor = 50);

-- Sent and failed by ten seconds of the database's clock.
CREATE TABLE series (
    mailing_id bigint NOT NULL,
    slot       smallint NOT NULL,
    at         timestamptz NOT NULL,
    sent       bigint NOT NULL,
    failed     bigint NOT NULL,
    PRIMARY KEY (mailing_id, at, slot)
) WITH (fillfactor = 50);

CREATE TABLE replicas (
    id         integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name       text NOT NULL,
    beat       bigint NOT NULL DEFAULT 0,
    started_at timestamptz NOT NULL DEFAULT now()
) WITH (fillfactor = 50);

-- What all replicas must agree on about a gateway; NULL limits mean those of the environment.
CREATE TABLE gateways (
    name         text PRIMARY KEY,
    concurrency  integer CHECK (concurrency > 0),
    rate         double precision CHECK (rate >= 0),
    state        text NOT NULL DEFAULT 'running' CHECK (state IN ('running', 'paused', 'misconfigured')),
    reason       text,
    paused_until timestamptz,
    throttles    integer NOT NULL DEFAULT 0,     -- 429s in a row, each after the pause of the one before
    breaker      text NOT NULL DEFAULT 'closed' CHECK (breaker IN ('closed', 'open', 'half_open')),
    retry_at     timestamptz,                    -- open: when one probe may go; half open: when another may
    openings     integer NOT NULL DEFAULT 0,     -- in a row, without a success between
    tokens       double precision NOT NULL DEFAULT 0,
    tokens_at    timestamptz NOT NULL DEFAULT now(),
    last_errors  jsonb NOT NULL DEFAULT '[]',
    version      integer NOT NULL DEFAULT 1
) WITH (fillfactor = 50);
INSERT INTO gateways (name) VALUES ('default');

-- Erased clients whose phone a request that was under way may yet write into the ledger.
CREATE TABLE erasures (
    client_id bigint PRIMARY KEY,
    at        timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE idempotency_keys (
    key        bytea PRIMARY KEY,          -- hash of token, route and key
    body       bytea NOT NULL,             -- hash of the request's body
    status     smallint NOT NULL,          -- of the answer
    headers    jsonb NOT NULL,
    answer     bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX idempotency_keys_created ON idempotency_keys (created_at);
