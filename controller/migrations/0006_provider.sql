-- What the identity provider vouches for after sign-in, and logout tokens that were used.
-- Times are milliseconds since the Unix epoch.

CREATE TABLE provider_sessions (
    session         BLOB    PRIMARY KEY,            -- the browser's login session in which it was proven
    issuer          TEXT    NOT NULL,
    subject         TEXT    NOT NULL,
    sid             TEXT,                           -- the session at the provider; NULL if it did not say
    refresh_token   BLOB,                           -- sealed; NULL if the provider gave none
    checked_at      INTEGER NOT NULL,
    failing_since   INTEGER                         -- since when the provider could not be asked
) STRICT, WITHOUT ROWID;
CREATE INDEX provider_sessions_by_person ON provider_sessions (issuer, subject);

CREATE TABLE logout_tokens (
    hash            BLOB    PRIMARY KEY,            -- SHA-256 of issuer and `jti`
    expires_at      INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
