//! The rows of what the provider vouches for.

use std::collections::BTreeSet;

use chacha20poly1305::{
    ChaCha20Poly1305, KeyInit,
    aead::{Aead, Payload},
};
use postern_common::{id::SessionId, time::WallTime};
use sqlx::{Row, SqliteConnection, SqlitePool, sqlite::SqliteRow};
use zeroize::Zeroizing;

use super::logout::LogoutToken;
use crate::identity::{StoreFailed, local::SealingKey, random};

/// What the provider handed over beside the proof.
#[derive(Clone, Default)]
pub struct Vouching {
    /// The session at the provider (OIDC Front-Channel Logout §3, `sid`).
    pub(crate) sid: Option<String>,
    /// With which it can be asked again.
    pub(crate) refresh_token: Option<Zeroizing<String>>,
}

impl std::fmt::Debug for Vouching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vouching").field("sid", &self.sid).finish_non_exhaustive()
    }
}

/// What a logout token ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ends {
    /// What was vouched for in these browsers' login sessions.
    Sessions(BTreeSet<SessionId>),
    /// Every login session of the person.
    Person {
        /// The issuer.
        issuer: String,
        /// The person.
        subject: String,
    },
}

/// A row whose time to be checked has come.
pub(super) struct Due {
    pub(super) session: SessionId,
    /// With which the provider is asked; `None` if it does not open under the sealing key.
    pub(super) refresh_token: Option<Zeroizing<String>>,
    /// The token as it stands in the row: an answer about it counts only while it stands there.
    pub(super) sealed: Vec<u8>,
    pub(super) failing_since: Option<WallTime>,
}

/// What came of a check that ended nothing.
pub(super) enum Checked {
    /// The provider still vouches; it may have handed over another token in place of the old one.
    Good(Option<Zeroizing<String>>),
    /// It could not be asked, since then.
    Failing(WallTime),
}

/// What the provider vouches for, in the database.
#[derive(Debug, Clone)]
pub struct Vouchers {
    pool: SqlitePool,
    key: SealingKey,
}

fn seal(key: &SealingKey, session: SessionId, text: &str) -> Vec<u8> {
    let nonce = random::bytes::<12>();
    let payload = Payload { msg: text.as_bytes(), aad: session.as_bytes() };
    let sealed = ChaCha20Poly1305::new(&key.derive(b"refresh token").into()).encrypt(&nonce.into(), payload);
    [&nonce[..], &sealed.expect("a token is within ChaCha20-Poly1305's limits")].concat()
}

fn open(key: &SealingKey, session: SessionId, sealed: &[u8]) -> Option<Zeroizing<String>> {
    let (nonce, text) = sealed.split_first_chunk::<12>()?;
    let payload = Payload { msg: text, aad: session.as_bytes() };
    let open = ChaCha20Poly1305::new(&key.derive(b"refresh token").into()).decrypt(nonce.into(), payload).ok()?;
    String::from_utf8(open).ok().map(Zeroizing::new)
}

fn session_of(row: &SqliteRow) -> Result<SessionId, sqlx::Error> {
    let bytes: &[u8] = row.try_get("session")?;
    let bytes = <[u8; 16]>::try_from(bytes).map_err(|_| sqlx::Error::Decode("a session id".into()))?;
    Ok(SessionId::from_bytes(bytes))
}

async fn forget(from: &mut SqliteConnection, sessions: &BTreeSet<SessionId>) -> Result<(), sqlx::Error> {
    for session in sessions {
        sqlx::query("DELETE FROM provider_sessions WHERE session = ?1")
            .bind(&session.as_bytes()[..])
            .execute(&mut *from)
            .await?;
    }
    Ok(())
}

impl Vouchers {
    /// Uses the tables of the provider's migration in `pool`.
    pub const fn new(pool: SqlitePool, key: SealingKey) -> Self {
        Self { pool, key }
    }

    /// Notes what the provider handed over for a browser's login session, in place of what it did before; what it does not hand over anew
    /// (some give a refresh token only once) stays.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn put(
        &self,
        session: SessionId,
        (issuer, subject): (&str, &str),
        vouching: &Vouching,
        now: WallTime,
    ) -> Result<(), StoreFailed> {
        let sealed = vouching.refresh_token.as_ref().map(|token| seal(&self.key, session, token));
        sqlx::query(
            "INSERT INTO provider_sessions (session, issuer, subject, sid, refresh_token, checked_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)
             ON CONFLICT (session) DO UPDATE SET sid = COALESCE(excluded.sid, sid),
                 refresh_token = COALESCE(excluded.refresh_token, refresh_token), checked_at = excluded.checked_at, failing_since = NULL",
        )
        .bind(&session.as_bytes()[..])
        .bind(issuer)
        .bind(subject)
        .bind(&vouching.sid)
        .bind(sealed)
        .bind(now.as_millis())
        .execute(&self.pool)
        .await?;
        Ok(())
    }

    /// Counts what is checked; its refresh tokens are sealed.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn count(&self) -> Result<u64, StoreFailed> {
        let count: i64 = sqlx::query_scalar("SELECT count(*) FROM provider_sessions WHERE refresh_token IS NOT NULL")
            .fetch_one(&self.pool)
            .await?;
        Ok(count.unsigned_abs())
    }

    /// Lists what was checked last at `before` or earlier, or by a clock that was ahead; oldest first, at most `most`.
    ///
    /// What does not open under the sealing key is due too: the provider cannot be asked about it, as if it were away.
    pub(super) async fn due(&self, before: WallTime, now: WallTime, most: u64) -> Result<Vec<Due>, StoreFailed> {
        let rows = sqlx::query(
            "SELECT * FROM provider_sessions WHERE refresh_token IS NOT NULL
             AND (checked_at <= ?1 OR checked_at > ?3) ORDER BY checked_at LIMIT ?2",
        )
        .bind(before.as_millis())
        .bind(i64::try_from(most).unwrap_or(i64::MAX))
        .bind(now.as_millis())
        .fetch_all(&self.pool)
        .await?;
        let mut due = Vec::with_capacity(rows.len());
        for row in &rows {
            let session = session_of(row)?;
            let sealed: Vec<u8> = row.try_get("refresh_token")?;
            let refresh_token = open(&self.key, session, &sealed);
            let failing_since: Option<i64> = row.try_get("failing_since")?;
            due.push(Due { session, refresh_token, sealed, failing_since: failing_since.map(WallTime::from_millis) });
        }
        Ok(due)
    }

    /// Notes what came of checks, all in one transaction: each by itself would keep the core from writing for as long as a disk takes to
    /// sync. Nothing, where a step-up has stored another token meanwhile.
    pub(super) async fn note(&self, checked: &[(Due, Checked)], now: WallTime) -> Result<(), StoreFailed> {
        if checked.is_empty() {
            return Ok(());
        }
        let mut batch = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        for (due, what) in checked {
            let (replacement, failing_since) = match what {
                Checked::Good(token) => (token.as_ref().map(|token| seal(&self.key, due.session, token)), None),
                Checked::Failing(since) => (None, Some(since.as_millis())),
            };
            sqlx::query(
                "UPDATE provider_sessions SET checked_at = ?2, failing_since = ?3,
                     refresh_token = COALESCE(?4, refresh_token) WHERE session = ?1 AND refresh_token = ?5",
            )
            .bind(&due.session.as_bytes()[..])
            .bind(now.as_millis())
            .bind(failing_since)
            .bind(replacement)
            .bind(&due.sealed)
            .execute(&mut *batch)
            .await?;
        }
        Ok(batch.commit().await?)
    }

    /// Tells whether the token that was asked about still stands in its row.
    pub(super) async fn stands(&self, due: &Due) -> Result<bool, StoreFailed> {
        let found = sqlx::query("SELECT 1 FROM provider_sessions WHERE session = ?1 AND refresh_token = ?2")
            .bind(&due.session.as_bytes()[..])
            .bind(&due.sealed)
            .fetch_optional(&self.pool)
            .await?;
        Ok(found.is_some())
    }

    /// Forgets rows.
    pub(super) async fn forget(&self, sessions: &BTreeSet<SessionId>) -> Result<(), StoreFailed> {
        if sessions.is_empty() {
            return Ok(());
        }
        let mut batch = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        forget(&mut batch, sessions).await?;
        Ok(batch.commit().await?)
    }

    /// Forgets rows on which nothing hangs any more, and logout tokens that could not be fresh.
    pub(super) async fn sweep(&self, in_use: &BTreeSet<SessionId>, now: WallTime) -> Result<(), StoreFailed> {
        let rows =
            sqlx::query("SELECT session FROM provider_sessions WHERE session NOT IN (SELECT id FROM web_sessions)")
                .fetch_all(&self.pool)
                .await?;
        let rows: BTreeSet<SessionId> = rows.iter().map(session_of).collect::<Result<_, _>>()?;
        self.forget(&rows.difference(in_use).copied().collect()).await?;
        sqlx::query("DELETE FROM logout_tokens WHERE expires_at <= ?1")
            .bind(now.as_millis())
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Notes that a logout token was used, and forgets what it ended: both or nothing. Without the row of a `sid` the token would mean
    /// more than it says, if it were taken again.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn used(&self, token: &LogoutToken, ends: &Ends) -> Result<(), StoreFailed> {
        let mut batch = self.pool.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("INSERT OR IGNORE INTO logout_tokens (hash, expires_at) VALUES (?1, ?2)")
            .bind(&token.hash[..])
            .bind(token.fresh_until.as_millis())
            .execute(&mut *batch)
            .await?;
        match ends {
            Ends::Sessions(sessions) => forget(&mut batch, sessions).await?,
            Ends::Person { issuer, subject } => {
                sqlx::query("DELETE FROM provider_sessions WHERE issuer = ?1 AND subject = ?2")
                    .bind(issuer)
                    .bind(subject)
                    .execute(&mut *batch)
                    .await?;
            }
        }
        Ok(batch.commit().await?)
    }

    /// Finds the browsers' login sessions behind sessions at the provider. Of `people`, those of which no `sid` is known may be meant too.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn browsers_of<'a>(
        &self,
        issuer: &str,
        sids: impl Iterator<Item = &'a str>,
        people: &BTreeSet<String>,
    ) -> Result<BTreeSet<SessionId>, StoreFailed> {
        let mut rows = Vec::new();
        for sid in sids {
            let found = "SELECT session, subject FROM provider_sessions WHERE issuer = ?1 AND sid = ?2";
            rows.extend(sqlx::query(found).bind(issuer).bind(sid).fetch_all(&self.pool).await?);
        }
        for person in people {
            let found =
                "SELECT session, subject FROM provider_sessions WHERE issuer = ?1 AND subject = ?2 AND sid IS NULL";
            rows.extend(sqlx::query(found).bind(issuer).bind(person).fetch_all(&self.pool).await?);
        }
        let mut browsers = BTreeSet::new();
        for row in &rows {
            let subject: String = row.try_get("subject")?;
            if people.is_empty() || people.contains(&subject) {
                browsers.insert(session_of(row)?);
            }
        }
        Ok(browsers)
    }

    /// Finds what a logout token ends: with `sid` that session at the provider, else everything of the person. Sessions of the person
    /// of which no `sid` is known may be that one too; and if the `sid` is not known at all, the person is signed out everywhere. `None` if
    /// the token was used before: what it ended is forgotten then, and it would seem to be of a `sid` that is not known.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn ends(&self, token: &LogoutToken) -> Result<Option<Ends>, StoreFailed> {
        let mut read = self.pool.begin().await?; // both questions of the same moment
        let used = sqlx::query("SELECT 1 FROM logout_tokens WHERE hash = ?1")
            .bind(&token.hash[..])
            .fetch_optional(&mut *read)
            .await?;
        if used.is_some() {
            return Ok(None);
        }
        let person = |subject: &String| Ends::Person { issuer: token.issuer.clone(), subject: subject.clone() };
        let Some(sid) = &token.sid else {
            return Ok(Some(person(&token.subject.clone().unwrap_or_default())));
        };
        let rows = sqlx::query(
            "SELECT session FROM provider_sessions WHERE issuer = ?1 AND sid = ?2 AND (?3 IS NULL OR subject = ?3)
             UNION SELECT session FROM provider_sessions WHERE issuer = ?1 AND subject = ?3 AND sid IS NULL",
        )
        .bind(&token.issuer)
        .bind(sid)
        .bind(&token.subject)
        .fetch_all(&mut *read)
        .await?;
        if let Some(subject) = token.subject.as_ref().filter(|_| rows.is_empty()) {
            return Ok(Some(person(subject)));
        }
        Ok(Some(Ends::Sessions(rows.iter().map(session_of).collect::<Result<_, _>>()?)))
    }
}

#[cfg(test)]
#[path = "store_tests.rs"]
mod tests;
