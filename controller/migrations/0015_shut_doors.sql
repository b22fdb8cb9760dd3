-- Doors that are shut to sign-ins from before a revocation or a logout at the provider: controller/src/signals/provider/doors.rs.

CREATE TABLE shut_doors (
    id              TEXT    PRIMARY KEY,            -- SHA-256 of whose door it is, in hexadecimal
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;
