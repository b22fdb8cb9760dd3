//! Login sessions of browsers: rows in the database, found by the hash of a cookie of 256 random bits.
//!
//! A session ends when it was not used for the idle time, at its absolute end, at sign-out, or when an administrator
//! ends it; there is no way to extend it but to sign in again, which makes a new cookie (session fixation).

use std::{collections::BTreeSet, time::Duration};

use postern_common::{id::SessionId, time::WallTime};
use sqlx::{Row, SqlitePool, sqlite::SqliteRow};

use crate::records::ScimKey;

use super::{
    Proof, SignedIn, StoreFailed,
    random::{self, Token},
};

/// How long a browser's login session lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Without use.
    pub idle: Duration,
    /// At the longest.
    pub absolute: Duration,
}

impl Default for SessionLimits {
    fn default() -> Self {
        Self { idle: Duration::from_secs(2 * 3_600), absolute: Duration::from_secs(12 * 3_600) }
    }
}

/// The most sessions of one person; the oldest make room.
const MAX_PER_PERSON: i64 = 16;
/// How exactly the last use is recorded, so that reading a page does not write each time.
const LAST_SEEN_STEP: Duration = Duration::from_secs(60);

/// The login sessions of browsers.
#[derive(Debug, Clone)]
pub struct WebSessions {
    pool: SqlitePool,
    limits: SessionLimits,
}

/// A session in a list for administrators.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WebSession {
    /// The person, as of sign-in.
    pub who: SignedIn,
    /// When the session began.
    pub began: WallTime,
    /// When it was last used, to a minute.
    pub last_seen: WallTime,
}

fn time(row: &SqliteRow, column: &str) -> Result<WallTime, sqlx::Error> {
    row.try_get(column).map(WallTime::from_millis)
}

fn read(row: &SqliteRow) -> Result<WebSession, sqlx::Error> {
    let decode = |error: Box<dyn std::error::Error + Send + Sync>| sqlx::Error::Decode(error);
    let proof: Proof = serde_json::from_str(row.try_get("proof")?).map_err(|error| decode(error.into()))?;
    let id: [u8; 16] = row.try_get::<&[u8], _>("id")?.try_into().map_err(|_| decode("a session id".into()))?;
    Ok(WebSession {
        who: SignedIn { proof, session: SessionId::from_bytes(id), session_until: time(row, "until_at")? },
        began: time(row, "began_at")?,
        last_seen: time(row, "last_seen_at")?,
    })
}

impl WebSessions {
    /// Uses the tables of `0002_identity.sql` in `pool`.
    pub const fn new(pool: SqlitePool, limits: SessionLimits) -> Self {
        Self { pool, limits }
    }

    /// Opens a session for somebody who has just signed in, with a new cookie.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn open(&self, proof: Proof, now: WallTime) -> Result<(Token, SignedIn), StoreFailed> {
        let token = Token::draw();
        let session = SessionId::from_bytes(random::bytes());
        let session_until = now.saturating_add(self.limits.absolute);
        let json = serde_json::to_string(&proof).expect("a proof is plain text and numbers");
        let mut transaction = self.pool.begin().await?;
        sqlx::query(
            "INSERT INTO web_sessions (cookie_hash, id, issuer, subject, proof, began_at, last_seen_at, until_at)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, ?7)",
        )
        .bind(&token.hash().as_bytes()[..])
        .bind(&session.as_bytes()[..])
        .bind(&proof.issuer)
        .bind(&proof.subject)
        .bind(json)
        .bind(now.as_millis())
        .bind(session_until.as_millis())
        .execute(&mut *transaction)
        .await?;
        sqlx::query(
            "DELETE FROM web_sessions WHERE issuer = ?1 AND subject = ?2 AND id NOT IN
             (SELECT id FROM web_sessions WHERE issuer = ?1 AND subject = ?2 ORDER BY began_at DESC LIMIT ?3)",
        )
        .bind(&proof.issuer)
        .bind(&proof.subject)
        .bind(MAX_PER_PERSON)
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok((token, SignedIn { proof, session, session_until }))
    }

    /// Gives a session the proof that the same person has just given anew, under a new cookie; the old one is void. `None` if
    /// there is no such session of that person.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn renew(&self, cookie: &Token, proof: Proof) -> Result<Option<(Token, SignedIn)>, StoreFailed> {
        let token = Token::draw();
        let json = serde_json::to_string(&proof).expect("a proof is plain text and numbers");
        let row = sqlx::query(
            "UPDATE web_sessions SET cookie_hash = ?1, proof = ?2
             WHERE cookie_hash = ?3 AND issuer = ?4 AND subject = ?5 RETURNING *",
        )
        .bind(&token.hash().as_bytes()[..])
        .bind(json)
        .bind(&cookie.hash().as_bytes()[..])
        .bind(&proof.issuer)
        .bind(&proof.subject)
        .fetch_optional(&self.pool)
        .await?;
        Ok(row.as_ref().map(read).transpose()?.map(|session| (token, session.who)))
    }

    /// Finds the live session of a cookie and notes that it was used.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn find(&self, cookie: &Token, now: WallTime) -> Result<Option<SignedIn>, StoreFailed> {
        let hash = cookie.hash();
        let row = sqlx::query("SELECT * FROM web_sessions WHERE cookie_hash = ?1")
            .bind(&hash.as_bytes()[..])
            .fetch_optional(&self.pool)
            .await?;
        let Some(session) = row.as_ref().map(read).transpose()? else { return Ok(None) };
        let idle_until = session.last_seen.saturating_add(self.limits.idle);
        // A clock set back far makes a session older than its own beginning: closed, like everything unclear.
        if now >= session.who.session_until || now >= idle_until || now.saturating_add(LAST_SEEN_STEP) < session.began {
            self.close(cookie).await?;
            return Ok(None);
        }
        if now.since(session.last_seen) >= LAST_SEEN_STEP {
            sqlx::query("UPDATE web_sessions SET last_seen_at = ?2 WHERE cookie_hash = ?1")
                .bind(&hash.as_bytes()[..])
                .bind(now.as_millis())
                .execute(&self.pool)
                .await?;
        }
        Ok(Some(session.who))
    }

    /// Ends the session of a cookie.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn close(&self, cookie: &Token) -> Result<(), StoreFailed> {
        sqlx::query("DELETE FROM web_sessions WHERE cookie_hash = ?1")
            .bind(&cookie.hash().as_bytes()[..])
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Ends a session by its identifier; tells whether there was one.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn end(&self, session: SessionId) -> Result<bool, StoreFailed> {
        let done = sqlx::query("DELETE FROM web_sessions WHERE id = ?1")
            .bind(&session.as_bytes()[..])
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected() > 0)
    }

    /// Ends every session of a person; tells how many there were.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn end_of_person(&self, issuer: &str, subject: &str) -> Result<u64, StoreFailed> {
        let done = sqlx::query("DELETE FROM web_sessions WHERE issuer = ?1 AND subject = ?2")
            .bind(issuer)
            .bind(subject)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected())
    }

    /// Ends the sessions of a person that were proven at `at` or before; returns how many those were, and the ones that stay.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn end_proven_until(
        &self,
        issuer: &str,
        subject: &str,
        at: WallTime,
    ) -> Result<(usize, BTreeSet<SessionId>), StoreFailed> {
        let rows = sqlx::query("SELECT * FROM web_sessions WHERE issuer = ?1 AND subject = ?2")
            .bind(issuer)
            .bind(subject)
            .fetch_all(&self.pool)
            .await?;
        let (mut ended, mut kept) = (0, BTreeSet::new());
        for session in rows.iter().map(read) {
            let session = session?;
            if session.who.auth_time().unwrap_or(session.began) > at {
                kept.insert(session.who.session());
            } else {
                ended += usize::from(self.end(session.who.session()).await?);
            }
        }
        Ok((ended, kept))
    }

    /// Ends a session if it was proven at `at` or before; tells whether it did.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn end_if_proven_until(&self, session: SessionId, at: WallTime) -> Result<bool, StoreFailed> {
        let row = sqlx::query("SELECT * FROM web_sessions WHERE id = ?1")
            .bind(&session.as_bytes()[..])
            .fetch_optional(&self.pool)
            .await?;
        match row.as_ref().map(read).transpose()? {
            Some(found) if found.who.auth_time().unwrap_or(found.began) <= at => self.end(session).await,
            Some(_) | None => Ok(false),
        }
    }

    /// Lists the people of an issuer who were called this at their sign-in, however it is written; at most 64.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn subjects_named(&self, issuer: &str, name: &str) -> Result<BTreeSet<String>, StoreFailed> {
        let named = "SELECT DISTINCT subject FROM web_sessions
                     WHERE issuer = ?1 AND lower(json_extract(proof, '$.name')) = lower(?2) LIMIT 64";
        Ok(sqlx::query_scalar(named).bind(issuer).bind(name).fetch_all(&self.pool).await?.into_iter().collect())
    }

    /// Tells whether a person of an issuer is signed in.
    ///
    /// # Errors
    /// If the store fails.
    pub(crate) async fn knows(&self, issuer: &str, subject: &str) -> Result<bool, StoreFailed> {
        let theirs = "SELECT 1 FROM web_sessions WHERE issuer = ?1 AND subject = ?2 LIMIT 1";
        Ok(sqlx::query(theirs).bind(issuer).bind(subject).fetch_optional(&self.pool).await?.is_some())
    }

    /// Ends every session of a person whom a provider keeps out: by the name under which they are provisioned, and by those under
    /// which they are known to have signed in.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn end_provisioned(
        &self,
        issuer: &str,
        key: ScimKey,
        name: &str,
        subjects: &[String],
    ) -> Result<u64, StoreFailed> {
        let subjects = serde_json::to_string(subjects).expect("a list of texts");
        let done = sqlx::query(
            "DELETE FROM web_sessions WHERE issuer = ?1 AND (subject IN (SELECT value FROM json_each(?3))
             OR json_extract(proof, '$.provisioned_as.value') = ?2
             OR (?4 AND lower(json_extract(proof, '$.provisioned_as.value')) = lower(?2)))",
        )
        .bind(issuer)
        .bind(name)
        .bind(subjects)
        .bind(key == ScimKey::UserName)
        .execute(&self.pool)
        .await?;
        Ok(done.rows_affected())
    }

    /// Lists one session of each person of a provider whose `sub` comes after `after`, by that; at most so many.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn people_of(&self, issuer: &str, after: &str, most: u32) -> Result<Vec<SignedIn>, StoreFailed> {
        let page =
            "SELECT * FROM web_sessions WHERE issuer = ?1 AND subject > ?2 GROUP BY subject ORDER BY subject LIMIT ?3";
        let rows = sqlx::query(page).bind(issuer).bind(after).bind(most).fetch_all(&self.pool).await?;
        Ok(rows.iter().map(|row| read(row).map(|session| session.who)).collect::<Result<_, _>>()?)
    }

    /// Lists the sessions that are live, newest first; at most 1,000.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn list(&self, now: WallTime) -> Result<Vec<WebSession>, StoreFailed> {
        let oldest_use =
            now.as_millis().saturating_sub(i64::try_from(self.limits.idle.as_millis()).unwrap_or(i64::MAX));
        let rows = sqlx::query(
            "SELECT * FROM web_sessions WHERE until_at > ?1 AND last_seen_at > ?2 ORDER BY began_at DESC LIMIT 1000",
        )
        .bind(now.as_millis())
        .bind(oldest_use)
        .fetch_all(&self.pool)
        .await?;
        Ok(rows.iter().map(read).collect::<Result<_, _>>()?)
    }

    /// Returns those of `asked` that are over, however they ended: signed out, expired, unused, displaced.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn over(&self, asked: BTreeSet<SessionId>, now: WallTime) -> Result<BTreeSet<SessionId>, StoreFailed> {
        let oldest_use =
            now.as_millis().saturating_sub(i64::try_from(self.limits.idle.as_millis()).unwrap_or(i64::MAX));
        let mut over = BTreeSet::new();
        for session in asked {
            let live = sqlx::query("SELECT 1 FROM web_sessions WHERE id = ?1 AND until_at > ?2 AND last_seen_at > ?3")
                .bind(&session.as_bytes()[..])
                .bind(now.as_millis())
                .bind(oldest_use)
                .fetch_optional(&self.pool)
                .await?;
            if live.is_none() {
                over.insert(session);
            }
        }
        Ok(over)
    }

    /// Deletes what has expired; tells how many there were. Call it now and then.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn sweep(&self, now: WallTime) -> Result<u64, StoreFailed> {
        let oldest_use =
            now.as_millis().saturating_sub(i64::try_from(self.limits.idle.as_millis()).unwrap_or(i64::MAX));
        let done = sqlx::query("DELETE FROM web_sessions WHERE until_at <= ?1 OR last_seen_at <= ?2")
            .bind(now.as_millis())
            .bind(oldest_use)
            .execute(&self.pool)
            .await?;
        Ok(done.rows_affected())
    }
}

/// Opens an empty database in memory with the tables of this module, for tests.
#[cfg(test)]
pub(crate) async fn test_pool() -> SqlitePool {
    let options = sqlx::sqlite::SqliteConnectOptions::new().in_memory(true).foreign_keys(true);
    let pool = sqlx::sqlite::SqlitePoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await
        .expect("a database in memory");
    let tables = [
        include_str!("../../migrations/0002_identity.sql"),
        include_str!("../../migrations/0006_provider.sql"),
        include_str!("../../migrations/0009_passkeys.sql"),
        include_str!("../../migrations/0018_credentials.sql"),
    ];
    for table in tables {
        sqlx::raw_sql(table).execute(&pool).await.expect("the tables");
    }
    pool
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::ProvisionedName;

    fn proof(subject: &str) -> Proof {
        SignedIn::for_test("https://idp.example", subject, "alice@corp.example", &["staff"]).proof
    }

    fn at(seconds: i64) -> WallTime {
        WallTime::from_millis(1_700_000_000_000 + seconds * 1_000)
    }

    async fn sessions() -> WebSessions {
        WebSessions::new(
            test_pool().await,
            SessionLimits { idle: Duration::from_secs(600), absolute: Duration::from_secs(3_600) },
        )
    }

    #[tokio::test]
    async fn a_session_is_found_by_its_cookie_and_nothing_else() {
        let sessions = sessions().await;
        let (cookie, who) = sessions.open(proof("1"), at(0)).await.expect("opens");
        assert_eq!(sessions.find(&cookie, at(1)).await.expect("works"), Some(who));
        assert_eq!(sessions.find(&Token::draw(), at(1)).await.expect("works"), None);
        let stored: Vec<u8> =
            sqlx::query_scalar("SELECT cookie_hash FROM web_sessions").fetch_one(&sessions.pool).await.expect("a row");
        assert_ne!(stored, cookie.expose().as_bytes(), "the cookie itself is not stored");
    }

    #[tokio::test]
    async fn what_was_proven_until_a_moment_ends_and_what_came_after_stays() {
        let sessions = sessions().await;
        let (_, unknown) = sessions.open(proof("1"), at(0)).await.expect("opens");
        let proven = |seconds| Proof { auth_time: Some(at(seconds)), ..proof("1") };
        let (_, old) = sessions.open(proven(5), at(20)).await.expect("opens");
        let (_, new) = sessions.open(proven(11), at(20)).await.expect("opens");
        let (_, other) = sessions.open(proof("2"), at(0)).await.expect("opens");
        let kept = sessions.end_proven_until("https://idp.example", "1", at(10)).await.expect("works");
        assert_eq!(kept, (2, BTreeSet::from([new.session()])));
        let asked = BTreeSet::from([unknown.session(), old.session(), new.session(), other.session()]);
        let over = sessions.over(asked, at(21)).await.expect("works");
        assert_eq!(over, BTreeSet::from([unknown.session(), old.session()]));
        let named = sessions.subjects_named("https://idp.example", "ALICE@corp.example").await.expect("works");
        assert_eq!(named, BTreeSet::from(["1".to_owned(), "2".to_owned()]));
        assert!(sessions.subjects_named("https://other", "alice@corp.example").await.expect("works").is_empty());
    }

    #[tokio::test]
    async fn a_session_ends_when_idle_and_at_its_absolute_end() {
        let sessions = sessions().await;
        let (idle, _) = sessions.open(proof("1"), at(0)).await.expect("opens");
        let (busy, _) = sessions.open(proof("1"), at(0)).await.expect("opens");
        for seconds in (0..3_600).step_by(300) {
            assert!(sessions.find(&busy, at(seconds)).await.expect("works").is_some(), "{seconds}");
        }
        assert!(sessions.find(&idle, at(600)).await.expect("works").is_none(), "idle");
        assert!(sessions.find(&busy, at(3_600)).await.expect("works").is_none(), "absolute");
        assert!(sessions.find(&busy, at(3_599)).await.expect("works").is_none(), "closed for good");
    }

    #[tokio::test]
    async fn a_session_is_over_when_it_is_unused_displaced_or_signed_out() {
        let sessions = sessions().await;
        let (unused, first) = sessions.open(proof("1"), at(0)).await.expect("opens");
        let (left, second) = sessions.open(proof("2"), at(0)).await.expect("opens");
        let (_, displaced) = sessions.open(proof("3"), at(0)).await.expect("opens");
        let asked = BTreeSet::from([first.session(), second.session(), displaced.session()]);
        assert_eq!(sessions.over(asked.clone(), at(1)).await.expect("works"), BTreeSet::new());
        for seconds in 0..MAX_PER_PERSON {
            sessions.open(proof("3"), at(1 + seconds)).await.expect("opens");
        }
        let over = sessions.over(asked.clone(), at(20)).await.expect("works");
        assert_eq!(over, BTreeSet::from([displaced.session()]));
        sessions.close(&left).await.expect("works");
        assert!(sessions.over(asked.clone(), at(20)).await.expect("works").contains(&second.session()));
        assert_eq!(sessions.over(asked.clone(), at(600)).await.expect("works"), asked);
        drop(unused);
    }

    #[tokio::test]
    async fn who_is_kept_out_is_signed_out_under_every_name_and_nobody_else() {
        let sessions = sessions().await;
        let named = |subject: &str, name: &str| {
            let name = ProvisionedName { claim: "oid".into(), value: name.into() };
            Proof { provisioned_as: Some(name), ..proof(subject) }
        };
        let elsewhere = Proof { issuer: "https://other.example".into(), ..named("5", "Alice") };
        let mut cookies = Vec::new();
        for proof in [proof("1"), named("2", "Alice"), named("3", "alice"), named("4", "bob"), elsewhere] {
            cookies.push(sessions.open(proof, at(0)).await.expect("opens").0);
        }
        let open = async || {
            let mut open = Vec::new();
            for (n, cookie) in cookies.iter().enumerate() {
                open.extend(sessions.find(cookie, at(1)).await.expect("works").map(|_| n + 1));
            }
            open
        };
        let (issuer, known) = ("https://idp.example", ["1".to_owned()]);
        assert_eq!(sessions.end_provisioned(issuer, ScimKey::ExternalId, "Alice", &known).await.expect("works"), 2);
        assert_eq!(open().await, [3, 4, 5], "an externalId is compared exactly");
        assert_eq!(sessions.end_provisioned(issuer, ScimKey::UserName, "ALICE", &[]).await.expect("works"), 1);
        assert_eq!(open().await, [4, 5]);
        assert_eq!(sessions.people_of(issuer, "", 10).await.expect("works").len(), 1);
        for number in 0..25 {
            sessions.open(proof(&format!("p{number:02}")), at(0)).await.expect("opens");
        }
        let (mut seen, mut after) = (vec![], String::new());
        while let Some(last) = {
            let page = sessions.people_of(issuer, &after, 10).await.expect("works");
            seen.extend(page.iter().map(|who| who.subject().to_owned()));
            page.last().map(|who| who.subject().to_owned())
        } {
            after = last;
        }
        assert_eq!((seen.len(), seen.is_sorted()), (26, true), "nobody is left out, and nobody comes twice");
    }

    #[tokio::test]
    async fn the_sessions_of_one_person_are_bounded_and_end_together() {
        let sessions = sessions().await;
        let (first, _) = sessions.open(proof("1"), at(0)).await.expect("opens");
        let (other, _) = sessions.open(proof("2"), at(0)).await.expect("opens");
        for seconds in 0..MAX_PER_PERSON {
            sessions.open(proof("1"), at(1 + seconds)).await.expect("opens");
        }
        assert!(sessions.find(&first, at(20)).await.expect("works").is_none());
        assert_eq!(sessions.list(at(20)).await.expect("works").len(), 17);
        assert_eq!(sessions.end_of_person("https://idp.example", "1").await.expect("works"), 16);
        assert!(sessions.find(&other, at(20)).await.expect("works").is_some());
        assert_eq!(sessions.sweep(at(700)).await.expect("works"), 1);
    }
}
