-- The alert that was delivered last: what the next one counts its predecessors from.
CREATE TABLE alert_delivered (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    seq INTEGER NOT NULL
) STRICT;
