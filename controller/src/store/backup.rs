//! Backup and restore.
//!
//! ```text
//! backup:  VACUUM INTO (consistent while serving) + the files beside it --> one SQLite file, mode 0600
//! restore: that file --> the database, in a new epoch, every login session over; files that are missing
//! ```
//!
//! A backup holds the database, `controller.toml`, the policy document and the authority's certificate. Private keys (signing, authority,
//! certificate) go into it only when they are asked for: who has them and the database is the controller. `seal.key`,
//! which protects second factors at rest, never does; keep it elsewhere, or people set up their second factors again.
//! The audit log's files are not in it: they are append-only, copy them as they are.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
};

use serde::Serialize;
use sqlx::{Connection, Row, SqliteConnection, sqlite::SqliteConnectOptions};

use super::{SqliteStore, Store, StoreError, sqlite::failed};
use crate::{
    audit::{self, chain},
    config::Config,
    serve::{
        clock,
        files::{self, FileError},
        tls,
    },
    stream::{Effect, restored},
};

/// The version of a backup's own tables.
const VERSION: i64 = 1;

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Written {
    /// The backup.
    pub file: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Files that are in it, by name.
    pub holds: Vec<String>,
    /// Private keys that are not in it: keep them elsewhere.
    pub left_out: Vec<PathBuf>,
}

/// What was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Restored {
    /// The new epoch.
    pub epoch: u64,
    /// Files that were missing and are there again.
    pub wrote: Vec<PathBuf>,
    /// Files that were there and stayed as they are.
    pub kept: Vec<PathBuf>,
    /// Where the database that was there before lies now.
    pub previous: Option<PathBuf>,
    /// Private keys that are still missing: put them there before serving.
    pub missing: Vec<PathBuf>,
}

/// Files that belong to a controller: name in the backup, path, whether it is a private key.
fn belongings(config: &Config) -> Vec<(&'static str, PathBuf, bool)> {
    let mut all = vec![
        ("controller.toml", config.file.clone(), false),
        ("policy.toml", config.policy.clone(), false),
        ("signing.key", config.signing_key(), true),
    ];
    match &config.tls {
        tls::Source::Own { dir, .. } => {
            all.push(("ca.crt", dir.join("ca.crt"), false));
            all.push(("ca.key", dir.join("ca.key"), true));
        }
        tls::Source::Given { chain, key } => {
            all.push(("tls.crt", chain.clone(), false));
            all.push(("tls.key", key.clone(), true));
        }
    }
    all
}

fn plain(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path)
}

/// Writes a backup to a file that must not exist.
///
/// # Errors
/// [`StoreError`]; no file is left then.
pub async fn write(config: &Config, file: &Path, with_keys: bool) -> Result<Written, StoreError> {
    if file.exists() {
        return Err(FileError::Exists(file.to_owned()).into());
    }
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part = file.with_file_name(name);
    drop(fs::remove_file(&part));
    files::write_new(&part, b"", files::SECRET)?; // SQLite fills an empty file and keeps its mode
    let written = fill(config, &part, with_keys).await;
    let (holds, left_out) = written.inspect_err(|_| drop(fs::remove_file(&part)))?;
    let io = |cause| FileError::Io { action: "write", path: file.to_owned(), cause };
    fs::File::open(&part).and_then(|part| part.sync_all()).map_err(io)?;
    fs::rename(&part, file).map_err(io)?;
    sync_folder_of(file)?;
    let bytes = fs::metadata(file).map_err(io)?.len();
    Ok(Written { file: file.to_owned(), bytes, holds, left_out })
}

async fn fill(config: &Config, part: &Path, with_keys: bool) -> Result<(Vec<String>, Vec<PathBuf>), StoreError> {
    let mut source = SqliteStore::open_beside(&config.database()).await?;
    let origin = source.path().to_owned();
    sqlx::query("VACUUM INTO ?")
        .bind(part.display().to_string())
        .execute(source.connection())
        .await
        .map_err(failed(&origin))?;
    let failed = failed(part);
    let mut copy = SqliteConnection::connect_with(&plain(part)).await.map_err(&failed)?;
    for statement in [
        "CREATE TABLE backup_info (version INTEGER NOT NULL, made_at INTEGER NOT NULL, url TEXT NOT NULL) STRICT",
        "CREATE TABLE backup_files (name TEXT PRIMARY KEY, is_secret INTEGER NOT NULL, content BLOB NOT NULL) STRICT",
    ] {
        sqlx::query(statement).execute(&mut copy).await.map_err(&failed)?;
    }
    sqlx::query("INSERT INTO backup_info VALUES (?, ?, ?)")
        .bind(VERSION)
        .bind(clock::now().wall.as_millis())
        .bind(&config.url)
        .execute(&mut copy)
        .await
        .map_err(&failed)?;
    let (mut holds, mut left_out) = (Vec::new(), Vec::new());
    for (name, path, secret) in belongings(config) {
        if secret && !with_keys {
            left_out.push(path);
            continue;
        }
        let content = match if secret { files::read_secret(&path) } else { files::read(&path) } {
            Err(FileError::Missing(_)) => continue,
            other => other?,
        };
        sqlx::query("INSERT INTO backup_files VALUES (?, ?, ?)")
            .bind(name)
            .bind(secret)
            .bind(content.into_bytes())
            .execute(&mut copy)
            .await
            .map_err(&failed)?;
        holds.push(name.to_owned());
    }
    left_out.push(config.key_dir.join("seal.key"));
    copy.close().await.map_err(&failed)?;
    Ok((holds, left_out))
}

/// Reads one of the files in a backup.
///
/// # Errors
/// [`StoreError::Corrupt`] if this is not a backup.
pub async fn read_file(backup: &Path, name: &str) -> Result<Option<Vec<u8>>, StoreError> {
    let (mut connection, origin) = open_backup(backup).await?;
    if origin == Origin::Database {
        return Ok(None);
    }
    let row = sqlx::query("SELECT content FROM backup_files WHERE name = ?")
        .bind(name)
        .fetch_optional(&mut connection)
        .await
        .map_err(failed(backup))?;
    row.map(|row| row.try_get(0).map_err(failed(backup))).transpose()
}

/// What [`restore`] can put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// What [`write`] wrote.
    Backup,
    /// A controller's database itself, of then.
    Database,
}

/// Makes what was renamed in a folder outlive a power cut.
fn sync_folder_of(path: &Path) -> Result<(), FileError> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let synced = fs::File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|cause| FileError::Io { action: "sync the folder", path: dir.to_owned(), cause })
}

async fn open_backup(backup: &Path) -> Result<(SqliteConnection, Origin), StoreError> {
    if !backup.exists() {
        return Err(FileError::Missing(backup.to_owned()).into());
    }
    let not_one = |what: &str| StoreError::Corrupt { path: backup.to_owned(), what: what.into() };
    let mut connection =
        SqliteConnection::connect_with(&plain(backup).read_only(true)).await.map_err(failed(backup))?;
    let version = sqlx::query("SELECT version FROM backup_info").fetch_one(&mut connection).await;
    let (version, origin): (i64, Origin) = match version {
        Ok(row) => (row.try_get(0).map_err(failed(backup))?, Origin::Backup),
        Err(sqlx::Error::Database(error)) if error.message().contains("no such table") => {
            let ours = "SELECT count(*) FROM sqlite_schema WHERE name IN ('meta', 'audit_head', 'audit_outbox')";
            let tables: i64 = sqlx::query_scalar(ours).fetch_one(&mut connection).await.map_err(failed(backup))?;
            if tables != 3 {
                return Err(not_one("it is not a backup of a controller"));
            }
            (VERSION, Origin::Database)
        }
        Err(other) => return Err(failed(backup)(other)),
    };
    if version != VERSION {
        return Err(not_one(&format!("it is a backup of version {version}, this program reads {VERSION}")));
    }
    let check = sqlx::query("PRAGMA integrity_check(1)").fetch_one(&mut connection).await.map_err(failed(backup))?;
    let words: String = check.try_get(0).map_err(failed(backup))?;
    if words != "ok" {
        return Err(not_one(&words));
    }
    Ok((connection, origin))
}

/// Gives a file to the user who owns its folder: root restores, the service's own user serves.
fn give_to_owner_of_folder(path: &Path) {
    let owner = path.parent().and_then(|dir| fs::metadata(dir).ok());
    if let Some(owner) = owner
        && let Err(error) = std::os::unix::fs::chown(path, Some(owner.uid()), Some(owner.gid()))
    {
        tracing::warn!(path = %path.display(), %error, "cannot give the file to the owner of its folder");
    }
}

/// Puts a backup in the place of the database: a new epoch begins and every login session ends. Files that are there
/// are kept. A copy of the database itself will do too, also the one that somebody has put in its place already.
///
/// Everything else is as it was then: an account, machine, token or rule that was disabled, removed or revoked after the
/// backup is enabled again, and an old password is good again. The audit log says what that was; it has to be done again.
///
/// # Errors
/// [`StoreError`]; the database that was there stays in use then.
pub async fn restore(config: &Config, backup: &Path) -> Result<Restored, StoreError> {
    let (connection, origin) = open_backup(backup).await?;
    connection.close().await.map_err(failed(backup))?;
    files::make_private_folder(&config.state_dir)?;
    let database = config.database();
    let now = clock::now();
    let next = config.state_dir.join("restored.db");
    let beside = |path: &Path, suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
    for suffix in ["", "-wal", "-shm"] {
        drop(fs::remove_file(beside(&next, suffix))); // of an attempt that broke off
    }
    let io = |action, path: &Path| {
        let path = path.to_owned();
        move |cause| FileError::Io { action, path, cause }
    };
    match origin {
        Origin::Backup => drop(fs::copy(backup, &next).map_err(io("write", &next))?),
        Origin::Database => {
            // With what is in its -wal file.
            let mut copied = SqliteConnection::connect_with(&plain(backup)).await.map_err(failed(backup))?;
            let into = next.to_string_lossy().into_owned();
            sqlx::query("VACUUM INTO ?").bind(into).execute(&mut copied).await.map_err(failed(backup))?;
            copied.close().await.map_err(failed(backup))?;
        }
    }
    fs::set_permissions(&next, fs::Permissions::from_mode(files::SECRET)).map_err(io("restrict", &next))?;

    // The lock of the folder is held from here on: no controller serves meanwhile.
    let mut store = SqliteStore::open(&next, now.wall.as_millis().unsigned_abs()).await?;
    let loaded = store.load().await?;
    let (loaded, effects) = restored(loaded, now);
    let (mut changes, mut events) = (Vec::new(), Vec::new());
    for effect in effects {
        match effect {
            Effect::Store(change) => changes.push(change),
            Effect::Audit(event) => events.push(event),
            Effect::Send { .. } | Effect::Close { .. } | Effect::VerifyToken { .. } => {} // there is no stream
        }
    }
    for statement in [
        "DELETE FROM web_sessions",
        "DELETE FROM local_password_links",
        "DROP TABLE IF EXISTS backup_files",
        "DROP TABLE IF EXISTS backup_info",
    ] {
        sqlx::query(statement).execute(store.connection()).await.map_err(failed(&next))?;
    }
    // The chain goes on from the files that are here; without any, from the backup's head.
    let (mut head, _) = store.audit_state().await?;
    if let Some(end) = audit::end(&config.audit_dir())
        .map_err(|error| StoreError::Corrupt { path: config.audit_dir(), what: error.to_string() })?
    {
        head = end;
    }
    let mut lines = Vec::new();
    for event in &events {
        let line = chain(head, now.wall, event);
        head = line.head;
        lines.push(line);
    }
    sqlx::query("DELETE FROM audit_outbox").execute(store.connection()).await.map_err(failed(&next))?;
    store.commit(&changes, &lines).await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(store.connection()).await.map_err(failed(&next))?;

    let previous = database.exists().then(|| beside(&database, &format!(".before-{}", now.wall.as_millis())));
    if let Some(previous) = &previous {
        fs::rename(&database, previous).map_err(io("put aside", &database))?;
        for suffix in ["-wal", "-shm"] {
            drop(fs::rename(beside(&database, suffix), beside(previous, suffix)));
        }
    }
    fs::rename(&next, &database).map_err(io("write", &database))?;
    give_to_owner_of_folder(&database);
    drop(store);
    for suffix in ["-wal", "-shm"] {
        drop(fs::remove_file(beside(&next, suffix)));
    }
    sync_folder_of(&database)?;
    let mut done = Restored { epoch: loaded.meta.epoch, wrote: vec![], kept: vec![], previous, missing: vec![] };
    for (name, path, secret) in belongings(config) {
        if path.exists() {
            done.kept.push(path);
            continue;
        }
        match read_file(backup, name).await? {
            Some(content) => {
                if let Some(dir) = path.parent() {
                    files::make_private_folder(dir)?;
                }
                files::write_new(&path, &content, if secret { files::SECRET } else { files::PUBLIC })?;
                give_to_owner_of_folder(&path);
                done.wrote.push(path);
            }
            None if secret => done.missing.push(path),
            None => {}
        }
    }
    Ok(done)
}
