//! Crashes, full disks, damage: what was committed is there, and what failed did not happen.

use std::{
    io::{BufRead, BufReader},
    process::{Command, Stdio},
};

use postern_common::{id::SubjectId, time::WallTime};

use super::*;
use crate::{
    audit::{self, AuditLog, chain},
    records::{SubjectKind, SubjectRecord},
};

fn subject(number: u64) -> SubjectRecord {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&number.to_be_bytes());
    SubjectRecord {
        id: SubjectId::from_bytes(id),
        kind: SubjectKind::Person { issuer: "https://ctl.test".into(), sub: format!("sub-{number}") },
        name: format!("person-{number}"),
        disabled: None,
        created: WallTime::from_millis(1),
        last_sign_in: WallTime::from_millis(1),
        provisioned_as: None,
        proven_after: None,
    }
}

/// Writes a subject and its audit line, as the actor does.
async fn write(store: &mut SqliteStore, log: &mut AuditLog, number: u64) -> Result<(), StoreError> {
    let line = chain(log.head(), WallTime::from_millis(1), &serde_json::json!({ "event": "test", "number": number }));
    store.commit(&[StoreChange::PutSubject(subject(number))], std::slice::from_ref(&line)).await?;
    log.write(&[line]).unwrap();
    Ok(())
}

async fn open(dir: &Path) -> (SqliteStore, AuditLog, audit::Opened) {
    let mut store = SqliteStore::open(&dir.join("controller.db"), 7).await.unwrap();
    let (head, outbox) = store.audit_state().await.unwrap();
    let (log, opened) = AuditLog::open(&dir.join("audit"), 16 << 10, head, &outbox).unwrap();
    (store, log, opened)
}

/// The process that the next test kills; by itself it does nothing.
#[tokio::test]
async fn child_that_writes() {
    let Ok(dir) = std::env::var("POSTERN_TEST_STORE") else { return };
    let (mut store, mut log, _) = open(Path::new(&dir)).await;
    let mut number = store.load().await.unwrap().subjects.len() as u64;
    loop {
        write(&mut store, &mut log, number).await.unwrap();
        println!("committed {number}");
        number += 1;
    }
}

#[tokio::test]
async fn kill_9_at_any_point_loses_nothing_that_was_committed() {
    let dir = tempfile::tempdir().unwrap();
    let mut committed = 0;
    for round in 0..6u64 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "store::sqlite::tests::child_that_writes", "--nocapture", "--test-threads=1"])
            .env("POSTERN_TEST_STORE", dir.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut wanted = 5 + 13 * round % 29;
        for line in lines {
            let line = line.unwrap();
            let Some(at) = line.find("committed ") else { continue };
            committed = line[at + 10..].parse::<u64>().unwrap() + 1;
            wanted -= 1;
            if wanted == 0 {
                child.kill().unwrap(); // SIGKILL
                break;
            }
        }
        child.wait().unwrap();

        let (mut store, log, opened) = open(dir.path()).await;
        assert_eq!(opened.broken, None);
        let kept = store.load().await.unwrap().subjects.len() as u64;
        assert!(kept >= committed, "round {round}: {kept} of {committed}");
        let report = audit::verify(&dir.path().join("audit"), log.head(), &[], 1).unwrap();
        assert!(report.is_whole(), "round {round}: {report:?}");
        assert_eq!(report.lines, kept, "each change has its record, and each record its change");
    }
}

#[tokio::test]
async fn a_full_disk_fails_the_whole_batch_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, mut log, _) = open(dir.path()).await;
    write(&mut store, &mut log, 0).await.unwrap();
    store.fill_disk_after(0).await;
    let many: Vec<_> = (1..2_000).map(|number| StoreChange::PutSubject(subject(number))).collect();
    let error = store.commit(&many, &[]).await.unwrap_err();
    assert!(matches!(error, StoreError::Full(_)), "{error}");
    assert!(error.to_string().contains("the disk is full"), "{error}");
    assert_eq!(store.load().await.unwrap().subjects, [subject(0)], "nothing of the batch happened");
}

#[tokio::test]
async fn a_damaged_database_is_refused_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("controller.db");
    let (mut store, mut log, _) = open(dir.path()).await;
    for number in 0..200 {
        write(&mut store, &mut log, number).await.unwrap();
    }
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(store.connection()).await.unwrap();
    drop(store);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..].iter_mut().for_each(|byte| *byte ^= 0x5a);
    std::fs::write(&path, bytes).unwrap();
    let error = loop {
        match SqliteStore::open(&path, 7).await {
            Err(StoreError::Locked(_)) => tokio::task::yield_now().await, // the dropped connection closes in its thread
            Err(error) => break error,
            Ok(_) => panic!("it was opened"),
        }
    };
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("postern-controller restore"), "{error}");
}

#[tokio::test]
async fn a_head_or_line_of_the_audit_log_that_cannot_be_read_is_damage_and_not_left_out() {
    for damage in [
        "UPDATE audit_outbox SET line = 'nothing of ours'",
        "PRAGMA ignore_check_constraints = 1; UPDATE audit_head SET hash = x'00'",
        "UPDATE audit_head SET seq = -1",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (mut store, mut log, _) = open(dir.path()).await;
        write(&mut store, &mut log, 1).await.unwrap();
        sqlx::raw_sql(damage).execute(store.connection()).await.unwrap();
        let read = store.audit_state().await;
        assert!(matches!(&read, Err(StoreError::Corrupt { .. })), "{damage}: {read:?}");
    }
}

#[tokio::test]
async fn a_change_that_breaks_a_reference_fails_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _, _) = open(dir.path()).await;
    let lease = crate::records::LeaseRecord {
        id: postern_common::id::LeaseId::from_bytes([1; 16]),
        device: postern_common::id::DeviceId::from_bytes([1; 16]),
        subject: subject(9).id,
        session: None,
        issued: WallTime::from_millis(1),
        renewed: WallTime::from_millis(1),
        until: WallTime::from_millis(2),
        later: vec![],
    };
    let batch = [StoreChange::PutSubject(subject(0)), StoreChange::PutLease(lease)];
    assert!(store.commit(&batch, &[]).await.is_err());
    assert!(store.load().await.unwrap().subjects.is_empty());
}

#[tokio::test]
async fn a_database_that_others_write_for_long_is_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let (mut store, _, _) = open(dir.path()).await;
    // As many times as in production, in less time.
    sqlx::query("PRAGMA busy_timeout = 20").execute(store.connection()).await.unwrap();
    let mut other = connect(&dir.path().join("controller.db")).await.unwrap();
    let held = other.begin_with("BEGIN IMMEDIATE").await.unwrap();
    let batch = [StoreChange::PutSubject(subject(0))];
    let mut commit = Box::pin(store.commit(&batch, &[]));
    let early = tokio::time::timeout(Duration::from_millis(300), &mut commit).await;
    assert!(early.is_err(), "it gave up, and the process would end: {early:?}");
    held.rollback().await.unwrap();
    commit.await.expect("written at last");
    assert_eq!(store.load().await.unwrap().subjects.len(), 1);
}

#[tokio::test]
async fn two_processes_do_not_serve_from_one_folder() {
    let dir = tempfile::tempdir().unwrap();
    let (_store, _, _) = open(dir.path()).await;
    let second = SqliteStore::open(&dir.path().join("controller.db"), 7).await;
    assert!(matches!(second, Err(StoreError::Locked(_))));
}

#[test]
fn every_migration_has_a_number_of_its_own() {
    let mut numbers: Vec<i64> = super::MIGRATIONS.iter().map(|migration| migration.version).collect();
    let all = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), all, "{numbers:?}");
}
