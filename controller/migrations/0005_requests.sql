-- Requests for access for a time: controller/src/records/request.rs.
CREATE TABLE requests (
    id              TEXT    PRIMARY KEY,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;
