//! Alerts that were not delivered: a table of the database, read by one task.

use sqlx::{Row, SqlitePool};

use super::Alert;

/// The most alerts that wait. A receiver that is away for a day of an alert every ten seconds misses none.
pub const MAX_SPOOLED: i64 = 10_000;
/// The most alerts that are read at once.
const BATCH: i64 = 64;

/// An alert in the spool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spooled {
    /// Its number; numbers of one database never repeat.
    pub sequence: i64,
    /// The alert.
    pub alert: Alert,
}

/// Drops the oldest alerts beyond the bound.
///
/// # Errors
/// What the database says.
pub async fn trim(pool: &SqlitePool, most: i64) -> Result<u64, sqlx::Error> {
    let newest = "DELETE FROM alerts WHERE seq <= (SELECT max(seq) FROM alerts) - ?";
    sqlx::query(newest).bind(most).execute(pool).await.map(|done| done.rows_affected())
}

/// Reads the oldest alerts.
///
/// # Errors
/// As [`after`].
pub async fn oldest(pool: &SqlitePool) -> Result<Vec<Spooled>, sqlx::Error> {
    after(pool, 0).await
}

/// Reads the oldest alerts of those behind a number.
///
/// # Errors
/// What the database says. A record that cannot be read is forgotten: nobody else could read it either.
pub async fn after(pool: &SqlitePool, sequence: i64) -> Result<Vec<Spooled>, sqlx::Error> {
    let behind = "SELECT seq, record FROM alerts WHERE seq > ? ORDER BY seq LIMIT ?";
    let rows = sqlx::query(behind).bind(sequence).bind(BATCH).fetch_all(pool).await?;
    let mut spooled = Vec::with_capacity(rows.len());
    for row in rows {
        let (sequence, record): (i64, String) = (row.try_get(0)?, row.try_get(1)?);
        match serde_json::from_str(&record) {
            Ok(alert) => spooled.push(Spooled { sequence, alert }),
            Err(error) => {
                tracing::error!(sequence, %error, "an alert in the spool cannot be read");
                forget(pool, sequence).await?;
            }
        }
    }
    Ok(spooled)
}

/// Forgets a delivered alert, and remembers that it was the last.
///
/// # Errors
/// What the database says.
pub async fn delivered(pool: &SqlitePool, sequence: i64) -> Result<(), sqlx::Error> {
    let mut both = pool.begin().await?;
    let remember =
        "INSERT INTO alert_delivered (id, seq) VALUES (1, ?) ON CONFLICT (id) DO UPDATE SET seq = excluded.seq";
    sqlx::query(remember).bind(sequence).execute(&mut *both).await?;
    sqlx::query("DELETE FROM alerts WHERE seq = ?").bind(sequence).execute(&mut *both).await?;
    both.commit().await
}

/// Returns the number of the alert that was delivered last.
///
/// # Errors
/// What the database says.
pub async fn last_delivered(pool: &SqlitePool) -> Result<Option<i64>, sqlx::Error> {
    sqlx::query_scalar("SELECT seq FROM alert_delivered WHERE id = 1").fetch_optional(pool).await
}

/// Forgets an alert that nobody takes.
///
/// # Errors
/// What the database says.
pub async fn forget(pool: &SqlitePool, sequence: i64) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM alerts WHERE seq = ?").bind(sequence).execute(pool).await.map(drop)
}
