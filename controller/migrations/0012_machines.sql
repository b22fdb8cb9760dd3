-- Platform tokens that machines have shown, and what services are known to do: controller/src/records/machine.rs,
-- controller/src/signals/habits.
CREATE TABLE token_uses (
    id              TEXT    PRIMARY KEY,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

CREATE TABLE habits (
    id              TEXT    PRIMARY KEY,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;
