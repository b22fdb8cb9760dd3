-- Streams of security events of other systems, and the names of the tokens that were taken: controller/src/signals/events.

CREATE TABLE event_streams (
    id              TEXT    PRIMARY KEY,            -- the stream's name in the configuration
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

CREATE TABLE seen_events (
    id              TEXT    PRIMARY KEY,            -- SHA-256 of issuer and `jti`, in hexadecimal
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;
