-- What identity providers provision by SCIM: controller/src/records/scim.rs.
CREATE TABLE scim_tokens (
    id              TEXT    PRIMARY KEY,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

CREATE TABLE scim_users (
    id              TEXT    PRIMARY KEY,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

CREATE TABLE scim_groups (
    id              TEXT    PRIMARY KEY,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;

-- Apart from their groups: a group of thousands is not written anew for each of them.
CREATE TABLE scim_members (
    group_id        TEXT    NOT NULL REFERENCES scim_groups (id) ON DELETE CASCADE,
    user_id         TEXT    NOT NULL REFERENCES scim_users (id) ON DELETE CASCADE,
    PRIMARY KEY (group_id, user_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX scim_members_by_user ON scim_members (user_id);

CREATE TABLE scim_gone (
    id              TEXT    PRIMARY KEY,
    record          TEXT    NOT NULL CHECK (json_valid(record))
) STRICT, WITHOUT ROWID;
