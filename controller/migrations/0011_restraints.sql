-- What is taken from subjects and devices for a time: controller/src/records/restraint.rs.
CREATE TABLE restraints (
    id              TEXT    PRIMARY KEY,            -- `subject sub_... {what it takes}`
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;
