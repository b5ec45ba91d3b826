-- depends: 0003.secret-key

-- One row: where this database was when a replica last sent from it. A restored or cloned copy is somewhere else.
CREATE TABLE installation (
    only_row          boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    system_identifier bigint,          -- of the PostgreSQL cluster; NULL where it may not be read
    database_oid      bigint NOT NULL,
    instance          text,            -- the setting INSTANCE; NULL where none was given
    noted_at          timestamptz NOT NULL DEFAULT now()
);
