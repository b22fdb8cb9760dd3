-- The time that goes on whatever somebody sets the clock to: controller/src/records/clock.rs. One row.
CREATE TABLE clock (
    id              TEXT    PRIMARY KEY,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;
