-- Alerts that were not delivered yet: controller/src/signals/alerts. Numbers never repeat, so that a gap shows what was dropped.
CREATE TABLE alerts (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT;
