//! The embedded store: SQLite in WAL mode, synced at every commit.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde::{Serialize, de::DeserializeOwned};
use sqlx::{
    Connection, Row, SqliteConnection, SqlitePool,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};

use super::{Store, StoreError};
use crate::{
    audit::{Head, Line},
    records::{Loaded, Meta, StoreChange},
    serve::files,
};

/// The schema, in the order of its numbers; each file is applied once, in a transaction.
static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");

/// How many connections read and write the pages' tables. The core's tables have one of their own.
const POOL: u32 = 4;

/// For how long a batch is tried again that others keep from being written. Nothing of it was told to anybody yet, so that to wait is safe;
/// to give up ends the process.
const PATIENCE: Duration = Duration::from_secs(60);

/// The core's connection to the database.
#[derive(Debug)]
pub struct SqliteStore {
    path: PathBuf,
    connection: SqliteConnection,
    _lock: Option<File>,
}

fn options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full) // a commit survives a power cut
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(10))
        .pragma("trusted_schema", "OFF")
        .pragma("cell_size_check", "ON")
        .pragma("secure_delete", "ON") // what was forgotten (pre-shared keys) is overwritten
        .pragma("cache_size", "-2048")
}

pub(super) fn failed(path: &Path) -> impl Fn(sqlx::Error) -> StoreError {
    let path = path.to_owned();
    move |source| {
        let code = match &source {
            sqlx::Error::Database(error) => error.code().and_then(|code| code.parse::<u32>().ok()),
            _ => None,
        };
        match code.map(|code| code & 0xff) {
            Some(13) => StoreError::Full(path.clone()), // SQLITE_FULL
            Some(11) => StoreError::Corrupt { path: path.clone(), what: source.to_string() }, // SQLITE_CORRUPT
            Some(26) => StoreError::Corrupt { path: path.clone(), what: "it is not a database".into() }, // SQLITE_NOTADB
            _ => StoreError::Database { path: path.clone(), cause: source },
        }
    }
}

fn is_busy(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code()?.parse::<u32>().ok());
    code.is_some_and(|code| code & 0xff == 5) // SQLITE_BUSY
}

impl SqliteStore {
    /// Opens the database for serving: takes the folder's lock, makes the file if there is none, checks it, brings its
    /// schema up to date. `epoch` is the number of the new life of the controller if the file is new.
    ///
    /// # Errors
    /// [`StoreError`] says what is wrong and what to do.
    pub async fn open(path: &Path, epoch: u64) -> Result<Self, StoreError> {
        let dir = path.parent().unwrap_or(Path::new("."));
        files::make_private_folder(dir)?;
        let lock = lock(dir)?;
        let mut connection = connect(path).await?;
        check(&mut connection, path).await?;
        let migrated = MIGRATIONS.run(&mut connection).await;
        migrated.map_err(|error| match error {
            sqlx::migrate::MigrateError::VersionMissing(_) | sqlx::migrate::MigrateError::VersionMismatch(_) => {
                StoreError::Newer(path.to_owned())
            }
            sqlx::migrate::MigrateError::Execute(source) | sqlx::migrate::MigrateError::ExecuteMigration(source, _) => {
                failed(path)(source)
            }
            other => StoreError::Corrupt { path: path.to_owned(), what: other.to_string() },
        })?;
        let meta = Meta { epoch, ..Meta::default() };
        sqlx::query("INSERT OR IGNORE INTO meta (one, record) VALUES (1, ?)")
            .bind(json(&meta))
            .execute(&mut connection)
            .await
            .map_err(failed(path))?;
        Ok(Self { path: path.to_owned(), connection, _lock: Some(lock) })
    }

    /// Opens an existing database beside a process that serves from it, to read.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open_beside(path: &Path) -> Result<Self, StoreError> {
        if !path.exists() {
            return Err(files::FileError::Missing(path.to_owned()).into());
        }
        let connection = connect(path).await?;
        Ok(Self { path: path.to_owned(), connection, _lock: None })
    }

    /// Opens connections for the pages' own tables (accounts, sign-ins).
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn pool(path: &Path) -> Result<SqlitePool, StoreError> {
        SqlitePoolOptions::new().max_connections(POOL).connect_with(options(path)).await.map_err(failed(path))
    }

    /// Makes SQLite answer as on a full disk as soon as the file would grow by more than `pages`.
    #[cfg(test)]
    pub(crate) async fn fill_disk_after(&mut self, pages: i64) {
        let used: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&mut self.connection).await.unwrap();
        let limit = format!("PRAGMA max_page_count = {}", used + pages);
        sqlx::query(sqlx::AssertSqlSafe(limit)).execute(&mut self.connection).await.unwrap();
    }

    pub(super) fn connection(&mut self) -> &mut SqliteConnection {
        &mut self.connection
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    async fn all<T: DeserializeOwned>(&mut self, table: &str, query: &'static str) -> Result<Vec<T>, StoreError> {
        let rows = sqlx::query(query).fetch_all(&mut self.connection).await.map_err(failed(&self.path))?;
        let read = |row: &sqlx::sqlite::SqliteRow| {
            let text: &str = row.try_get(0).map_err(failed(&self.path))?;
            serde_json::from_str(text)
                .map_err(|error| corrupt(&self.path, format!("a record in `{table}` cannot be read: {error}")))
        };
        rows.iter().map(read).collect()
    }
}

fn corrupt(path: &Path, what: String) -> StoreError {
    StoreError::Corrupt { path: path.to_owned(), what }
}

fn lock(dir: &Path) -> Result<File, StoreError> {
    use std::os::unix::fs::OpenOptionsExt;
    let path = dir.join("lock");
    let io = |cause| files::FileError::Io { action: "open", path: path.clone(), cause };
    let file = File::options().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(std::fs::TryLockError::WouldBlock) => Err(StoreError::Locked(dir.to_owned())),
        Err(std::fs::TryLockError::Error(cause)) => Err(io(cause).into()),
    }
}

async fn connect(path: &Path) -> Result<SqliteConnection, StoreError> {
    if !path.exists() {
        files::write_new(path, b"", files::SECRET)?; // SQLite takes an empty file as a new database, and keeps its mode
    }
    SqliteConnection::connect_with(&options(path)).await.map_err(failed(path))
}

async fn check(connection: &mut SqliteConnection, path: &Path) -> Result<(), StoreError> {
    let rows = sqlx::query("PRAGMA quick_check(5)").fetch_all(&mut *connection).await.map_err(failed(path))?;
    let words = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<String>, _>>().map_err(failed(path))?;
    if words == ["ok"] {
        return Ok(());
    }
    // "*** in database main ***", then a line for each page: the first says what kind of damage it is
    let lines = words.iter().flat_map(|words| words.lines()).filter(|line| !line.starts_with("***"));
    let (first, more) = (lines.clone().next().unwrap_or_default(), lines.count().saturating_sub(1));
    let what = if more == 0 { first.to_owned() } else { format!("{first} (and {more} more)") };
    Err(StoreError::Corrupt { path: path.to_owned(), what })
}

fn json(record: &impl Serialize) -> String {
    serde_json::to_string(record).expect("a record has no part without a JSON form")
}

impl Store for SqliteStore {
    async fn load(&mut self) -> Result<Loaded, StoreError> {
        macro_rules! all {
            ($table:literal) => {
                self.all($table, concat!("SELECT record FROM ", $table, " ORDER BY id")).await?
            };
        }
        let members = "SELECT json_array(group_id, user_id) FROM scim_members ORDER BY group_id, user_id";
        Ok(Loaded {
            meta: self.all::<Meta>("meta", "SELECT record FROM meta").await?.pop().unwrap_or_default(),
            clock: self.all("clock", "SELECT record FROM clock").await?.pop(),
            subjects: all!("subjects"),
            devices: all!("devices"),
            sessions: all!("sessions"),
            leases: all!("leases"),
            tokens: all!("tokens"),
            pairs: all!("pairs"),
            holds: all!("holds"),
            revoked_rules: all!("revoked_rules"),
            quarantines: all!("quarantines"),
            postures: all!("postures"),
            requests: all!("requests"),
            break_glass: all!("break_glass"),
            event_streams: all!("event_streams"),
            seen_events: all!("seen_events"),
            shut_doors: all!("shut_doors"),
            restraints: all!("restraints"),
            scim_tokens: all!("scim_tokens"),
            scim_users: all!("scim_users"),
            scim_groups: all!("scim_groups"),
            scim_members: self.all("scim_members", members).await?,
            scim_gone: all!("scim_gone"),
            token_uses: all!("token_uses"),
            habits: all!("habits"),
        })
    }

    async fn audit_state(&mut self) -> Result<(Head, Vec<Line>), StoreError> {
        let path = self.path.clone();
        let failed = failed(&path);
        let mut read = self.connection.begin().await.map_err(&failed)?; // head and lines of the same moment
        let head = sqlx::query("SELECT seq, hash FROM audit_head").fetch_optional(&mut *read).await.map_err(&failed)?;
        let head = match head {
            None => Head::START,
            Some(row) => {
                let seq: i64 = row.try_get(0).map_err(&failed)?;
                let hash: Vec<u8> = row.try_get(1).map_err(&failed)?;
                let hash = hash.try_into().map_err(|_| corrupt(&path, "the audit log's head is no hash".into()))?;
                let seq = u64::try_from(seq).map_err(|_| corrupt(&path, "the audit log's head is no number".into()))?;
                Head { seq, hash }
            }
        };
        let rows = sqlx::query("SELECT seq, line FROM audit_outbox ORDER BY seq")
            .fetch_all(&mut *read)
            .await
            .map_err(&failed)?;
        let mut lines = Vec::with_capacity(rows.len());
        for row in rows {
            let text: String = row.try_get(1).map_err(&failed)?;
            // To leave one out would break the chain that it stands in, or lose it.
            let line =
                Line::parse(text).ok_or_else(|| corrupt(&path, "a line for the audit log cannot be read".into()))?;
            lines.push(line);
        }
        Ok((head, lines))
    }

    async fn commit(&mut self, changes: &[StoreChange], lines: &[Line]) -> Result<(), StoreError> {
        let began = Instant::now();
        loop {
            match self.try_to_commit(changes, lines).await {
                Err(StoreError::Database { cause, .. }) if is_busy(&cause) && began.elapsed() < PATIENCE => {
                    tracing::warn!("another connection has kept the database from being written; it is tried again");
                }
                done => return done,
            }
        }
    }
}

impl SqliteStore {
    async fn try_to_commit(&mut self, changes: &[StoreChange], lines: &[Line]) -> Result<(), StoreError> {
        let failed = failed(&self.path);
        let mut batch = self.connection.begin_with("BEGIN IMMEDIATE").await.map_err(&failed)?;
        for change in changes {
            apply(&mut batch, change).await.map_err(&failed)?;
        }
        if let (Some(first), Some(last)) = (lines.first(), lines.last()) {
            // Lines of earlier transactions are in the file: the caller writes it before it commits again.
            sqlx::query("DELETE FROM audit_outbox WHERE seq < ?")
                .bind(first.head.seq.cast_signed())
                .execute(&mut *batch)
                .await
                .map_err(&failed)?;
            for line in lines {
                sqlx::query("INSERT INTO audit_outbox (seq, line) VALUES (?, ?)")
                    .bind(line.head.seq.cast_signed())
                    .bind(&line.text)
                    .execute(&mut *batch)
                    .await
                    .map_err(&failed)?;
            }
            sqlx::query("INSERT OR REPLACE INTO audit_head (one, seq, hash) VALUES (1, ?, ?)")
                .bind(last.head.seq.cast_signed())
                .bind(last.head.hash.as_slice())
                .execute(&mut *batch)
                .await
                .map_err(&failed)?;
        }
        batch.commit().await.map_err(&failed)
    }
}

async fn apply(to: &mut SqliteConnection, change: &StoreChange) -> Result<(), sqlx::Error> {
    macro_rules! put {
        ($table:literal, $id:expr, $record:expr) => {
            sqlx::query(concat!(
                "INSERT INTO ",
                $table,
                " (id, record) VALUES (?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record"
            ))
            .bind($id.to_string())
            .bind(json($record))
        };
    }
    macro_rules! delete {
        ($table:literal, $id:expr) => {
            sqlx::query(concat!("DELETE FROM ", $table, " WHERE id = ?")).bind($id.to_string())
        };
    }
    macro_rules! put_owned {
        ($table:literal, $record:expr) => {
            sqlx::query(concat!(
                "INSERT INTO ",
                $table,
                " (id, subject, record) VALUES (?, ?, ?) ",
                "ON CONFLICT (id) DO UPDATE SET subject = excluded.subject, record = excluded.record"
            ))
            .bind($record.id.to_string())
            .bind($record.subject.to_string())
            .bind(json($record))
        };
    }
    let query = match change {
        StoreChange::PutMeta(meta) => {
            sqlx::query("INSERT OR REPLACE INTO meta (one, record) VALUES (1, ?)").bind(json(meta))
        }
        StoreChange::PutClock(record) => put!("clock", "one", record),
        StoreChange::PutSubject(subject) => put!("subjects", subject.id, subject),
        StoreChange::PutDevice(device) => sqlx::query(
            "INSERT INTO devices (id, name, address_v6, address_v4, owner, record) VALUES (?, ?, ?, ?, ?, ?) \
             ON CONFLICT (id) DO UPDATE SET name = excluded.name, address_v6 = excluded.address_v6, \
             address_v4 = excluded.address_v4, owner = excluded.owner, record = excluded.record",
        )
        .bind(device.id.to_string())
        .bind(device.name.to_string())
        .bind(device.addresses.v6.to_string())
        .bind(device.addresses.v4.to_string())
        .bind(device.owner.to_string())
        .bind(json(device)),
        StoreChange::DeleteDevice(id) => delete!("devices", id),
        StoreChange::PutSession(session) => put_owned!("sessions", session),
        StoreChange::DeleteSession(id) => delete!("sessions", id),
        StoreChange::PutLease(lease) => put_owned!("leases", lease),
        StoreChange::DeleteLease(id) => delete!("leases", id),
        StoreChange::PutToken(token) => put!("tokens", token.hash, token),
        StoreChange::DeleteToken(hash) => delete!("tokens", hash),
        StoreChange::PutPair(pair) => put!("pairs", pair.name(), pair),
        StoreChange::DeletePair(name) => delete!("pairs", name),
        StoreChange::PutHold(hold) => put!("holds", hold.addresses.v6, hold),
        StoreChange::DeleteHold(addresses) => delete!("holds", addresses.v6),
        StoreChange::PutRevokedRule(rule) => put!("revoked_rules", rule.rule, rule),
        StoreChange::DeleteRevokedRule(rule) => delete!("revoked_rules", rule),
        StoreChange::PutQuarantine(record) => put!("quarantines", record.target, record),
        StoreChange::DeleteQuarantine(target) => delete!("quarantines", target),
        StoreChange::PutPosture(posture) => put!("postures", posture.device, posture),
        StoreChange::DeletePosture(device) => delete!("postures", device),
        StoreChange::PutRequest(request) => put!("requests", request.id, request),
        StoreChange::DeleteRequest(id) => delete!("requests", id),
        StoreChange::PutBreakGlass(record) => put!("break_glass", record.id, record),
        StoreChange::DeleteBreakGlass(id) => delete!("break_glass", id),
        StoreChange::PutEventStream(record) => put!("event_streams", record.name, record),
        StoreChange::PutSeenEvent(record) => put!("seen_events", record.token, record),
        StoreChange::DeleteSeenEvent(token) => delete!("seen_events", token),
        StoreChange::PutShutDoor(record) => put!("shut_doors", record.name, record),
        StoreChange::DeleteShutDoor(name) => delete!("shut_doors", name),
        StoreChange::PutRestraint(record) => put!("restraints", record.name(), record),
        StoreChange::DeleteRestraint(record) => delete!("restraints", record.name()),
        StoreChange::PutScimToken(token) => put!("scim_tokens", token.hash, token),
        StoreChange::DeleteScimToken(hash) => delete!("scim_tokens", hash),
        StoreChange::PutScimUser(user) => put!("scim_users", user.id, user),
        StoreChange::DeleteScimUser(id) => delete!("scim_users", id),
        StoreChange::PutScimGroup(group) => put!("scim_groups", group.id, group),
        StoreChange::DeleteScimGroup(id) => delete!("scim_groups", id), // and its members, by the foreign key
        StoreChange::ScimMembers { group, added, removed } => {
            sqlx::query(
                "DELETE FROM scim_members WHERE group_id = ?1 AND user_id IN (SELECT value FROM json_each(?2))",
            )
            .bind(group.to_string())
            .bind(json(removed))
            .execute(&mut *to)
            .await?;
            // One statement for any number: ten thousand of them would keep everybody waiting.
            sqlx::query(
                "INSERT OR IGNORE INTO scim_members (group_id, user_id) SELECT ?1, value FROM json_each(?2) WHERE true",
            )
            .bind(group.to_string())
            .bind(json(added))
        }
        StoreChange::PutScimGone(gone) => put!("scim_gone", gone.id(), gone),
        StoreChange::DeleteScimGone(gone) => delete!("scim_gone", gone.id()),
        StoreChange::PutTokenUse(record) => put!("token_uses", record.token, record),
        StoreChange::DeleteTokenUse(token) => delete!("token_uses", token),
        StoreChange::PutHabits(record) => put!("habits", record.subject, record),
        StoreChange::PutAlert(alert) => sqlx::query("INSERT INTO alerts (record) VALUES (?)").bind(json(alert)),
    };
    query.execute(to).await.map(drop)
}

#[cfg(test)]
mod tests;
