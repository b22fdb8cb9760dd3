-- Passkeys of local accounts (W3C Web Authentication Level 3). Times are milliseconds since the Unix epoch.

CREATE TABLE local_passkey_handles (
    account         TEXT    PRIMARY KEY REFERENCES local_accounts (id) ON DELETE CASCADE,
    handle          BLOB    NOT NULL UNIQUE CHECK (length(handle) = 64)     -- random: the authenticator learns no name by it
) STRICT, WITHOUT ROWID;

CREATE TABLE local_passkeys (
    id              BLOB    PRIMARY KEY,            -- the credential's, drawn by the authenticator
    account         TEXT    NOT NULL REFERENCES local_accounts (id) ON DELETE CASCADE,
    public_key      BLOB    NOT NULL,               -- with what never changes
    state           BLOB    NOT NULL,               -- what changes with use: the signature counter
    name            TEXT    NOT NULL,               -- what the person calls it
    added_at        INTEGER NOT NULL,
    used_at         INTEGER
) STRICT, WITHOUT ROWID;
CREATE INDEX local_passkeys_by_account ON local_passkeys (account);
