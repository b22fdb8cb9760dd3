-- What the core keeps, and the audit log's head.
--
-- A record is the JSON text of a Rust type (controller/src/records). The core decides from memory and reads all of it at start, so
-- columns exist for keys and for what the database itself has to hold together, not for queries.

CREATE TABLE meta (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT;

CREATE TABLE subjects (
    id              TEXT    PRIMARY KEY,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

CREATE TABLE devices (
    id              TEXT    PRIMARY KEY,
    name            TEXT    NOT NULL UNIQUE,
    address_v6      TEXT    NOT NULL UNIQUE,        -- no two devices ever share an address
    address_v4      TEXT    NOT NULL UNIQUE,
    owner           TEXT    NOT NULL REFERENCES subjects (id) DEFERRABLE INITIALLY DEFERRED,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

CREATE TABLE sessions (
    id              TEXT    PRIMARY KEY,
    subject         TEXT    NOT NULL REFERENCES subjects (id) DEFERRABLE INITIALLY DEFERRED,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

CREATE TABLE leases (
    id              TEXT    PRIMARY KEY,
    subject         TEXT    NOT NULL REFERENCES subjects (id) DEFERRABLE INITIALLY DEFERRED,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

CREATE TABLE tokens (
    id              TEXT    PRIMARY KEY,            -- SHA-256 of the token
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

CREATE TABLE pairs (
    id              TEXT    PRIMARY KEY,            -- both WireGuard public keys
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

CREATE TABLE holds (
    id              TEXT    PRIMARY KEY,            -- the IPv6 address
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

CREATE TABLE revoked_rules (
    id              TEXT    PRIMARY KEY,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

-- The last line of the audit chain, written in the transaction of what it records: cutting the log's tail off shows.
CREATE TABLE audit_head (
    one             INTEGER PRIMARY KEY CHECK (one = 1),
    seq             INTEGER NOT NULL,
    hash            BLOB    NOT NULL CHECK (length(hash) = 32)
) STRICT;

-- The lines of the last transactions: durable here before they are in the file.
CREATE TABLE audit_outbox (
    seq             INTEGER PRIMARY KEY,
    line            TEXT    NOT NULL
) STRICT;
