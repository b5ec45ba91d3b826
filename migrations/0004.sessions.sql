-- depends: 0003.secret-key

-- Who is logged in to the pages. Of the cookie's 256 random bits only the SHA-256 is kept; the token a session was
-- begun with can be read only with the cookie, so a copy of this table opens nothing and tells no hash to guess at.
CREATE TABLE sessions (
    id         bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    hash       bytea NOT NULL UNIQUE,
    token      bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    seen_at    timestamptz NOT NULL DEFAULT now(),
    expires_at timestamptz NOT NULL
) WITH (fillfactor = 70);
