-- Access that an administrator opened past the rules: controller/src/records/break_glass.rs.
CREATE TABLE break_glass (
    id              TEXT    PRIMARY KEY,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;
