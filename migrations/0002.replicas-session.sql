-- depends: 0001.clients-mailings-queue

-- Whether the replica holds the session lock with its number: then a lock that is free says that it is gone.
ALTER TABLE replicas ADD COLUMN session boolean NOT NULL DEFAULT false;
