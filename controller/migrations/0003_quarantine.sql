-- Whom or what is in quarantine: controller/src/records/quarantine.rs.
CREATE TABLE quarantines (
    id              TEXT    PRIMARY KEY,            -- `device dev_...`, `subject sub_...`, `resource NAME`
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

-- A machine was in quarantine by its own record before.
INSERT INTO quarantines (id, record)
SELECT
    'device ' || id,
    json_object(
        'target', json_object('kind', 'device', 'name', id),
        'reason', json_extract(record, '$.standing.reason'),
        'by', 'an earlier version',
        'since', json_extract(record, '$.standing.since')
    )
FROM devices WHERE json_extract(record, '$.standing.kind') = 'quarantined';

UPDATE devices SET record = json_set(record, '$.standing', json('{"kind":"good"}'))
WHERE json_extract(record, '$.standing.kind') = 'quarantined';
