-- depends: 0002.replicas-session

-- One row: which SECRET_KEY the replica that started last has, as an HMAC that tells nothing of the key.
CREATE TABLE secret_key (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    mark     bytea NOT NULL
);
