-- Local accounts and the login sessions of browsers.
-- Times are milliseconds since the Unix epoch. Bearer secrets are stored as SHA-256 of 256 random bits.

CREATE TABLE local_accounts (
    id              TEXT    PRIMARY KEY,            -- the `sub` of the account; never reused
    login           TEXT    NOT NULL UNIQUE,        -- lower case; what the person types
    password_hash   TEXT,                           -- Argon2id in PHC form; NULL until first set
    totp_secret     BLOB,                           -- sealed; NULL without a second factor
    totp_last_step  INTEGER NOT NULL DEFAULT 0,     -- the newest 30-second step whose code was used
    is_admin        INTEGER NOT NULL DEFAULT 0,
    is_disabled     INTEGER NOT NULL DEFAULT 0,
    created_at      INTEGER NOT NULL
) STRICT;

CREATE TABLE local_groups (
    account         TEXT    NOT NULL REFERENCES local_accounts (id) ON DELETE CASCADE,
    name            TEXT    NOT NULL,
    PRIMARY KEY (account, name)
) STRICT, WITHOUT ROWID;

-- One-time links by which a person sets a password.
CREATE TABLE local_password_links (
    hash            BLOB    PRIMARY KEY,
    account         TEXT    NOT NULL REFERENCES local_accounts (id) ON DELETE CASCADE,
    expires_at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Where an account signed in before: such an address keeps its own allowance of attempts, so that a stranger who
-- guesses at the account elsewhere cannot lock its owner out. At most eight per account.
CREATE TABLE local_known_addresses (
    account         TEXT    NOT NULL REFERENCES local_accounts (id) ON DELETE CASCADE,
    prefix          TEXT    NOT NULL,
    last_used_at    INTEGER NOT NULL,
    PRIMARY KEY (account, prefix)
) STRICT, WITHOUT ROWID;

CREATE TABLE web_sessions (
    cookie_hash     BLOB    PRIMARY KEY,
    id              BLOB    NOT NULL UNIQUE,        -- the session's public identifier
    issuer          TEXT    NOT NULL,
    subject         TEXT    NOT NULL,
    proof           TEXT    NOT NULL,               -- what was proven at sign-in, JSON
    began_at        INTEGER NOT NULL,
    last_seen_at    INTEGER NOT NULL,
    until_at        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX web_sessions_by_person ON web_sessions (issuer, subject, began_at);
CREATE INDEX web_sessions_by_end ON web_sessions (until_at);
