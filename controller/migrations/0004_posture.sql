-- What is known of devices' postures, by their own word and by that of device-management systems.

CREATE TABLE postures (
    id              TEXT    PRIMARY KEY,            -- the device
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;
