//! Tampering, one table; crashes, one test each.

use super::*;

const BIG: u64 = 1 << 20;

fn write_lines(dir: &Path, count: u64, max_size: u64) -> (Head, Vec<Line>) {
    let (mut log, _) = AuditLog::open(dir, max_size, Head::START, &[]).unwrap();
    let mut lines = Vec::new();
    for n in 0..count {
        let line = chain(log.head(), WallTime::from_millis(n as i64), &serde_json::json!({ "kind": "test", "n": n }));
        log.write(std::slice::from_ref(&line)).unwrap();
        lines.push(line);
    }
    (log.head(), lines)
}

fn only_file(dir: &Path) -> PathBuf {
    files(dir).unwrap().pop().unwrap().1
}

#[test]
fn a_log_that_nobody_touched_is_whole_across_rotated_files() {
    let dir = tempfile::tempdir().unwrap();
    let (head, _) = write_lines(dir.path(), 40, 1_000);
    let report = verify(dir.path(), head, &[], 1).unwrap();
    assert!(report.is_whole(), "{report:?}");
    assert!(report.files > 3, "{report:?}");
    assert_eq!((report.lines, report.last), (40, head));
}

#[test]
fn every_kind_of_tampering_is_found() {
    type Tamper = fn(&mut Vec<String>);
    let table: [(&str, Tamper); 8] = [
        ("changed", |lines| lines[4] = lines[4].replace("\"n\":4", "\"n\":5")),
        ("changed with a new time", |lines| lines[4] = lines[4].replace("1970", "1971")),
        ("removed", |lines| drop(lines.remove(4))),
        ("first removed", |lines| drop(lines.remove(0))),
        ("reordered", |lines| lines.swap(4, 5)),
        ("repeated", |lines| lines.insert(5, lines[4].clone())),
        ("tail cut off", |lines| lines.truncate(8)),
        ("everything cut off", Vec::clear),
    ];
    for (name, tamper) in table {
        let dir = tempfile::tempdir().unwrap();
        let (head, _) = write_lines(dir.path(), 10, BIG);
        let path = only_file(dir.path());
        let mut lines: Vec<_> = fs::read_to_string(&path).unwrap().lines().map(String::from).collect();
        tamper(&mut lines);
        fs::write(&path, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).unwrap();
        assert!(!verify(dir.path(), head, &[], 1).unwrap().is_whole(), "{name}");
    }
}

#[test]
fn a_chain_that_was_computed_anew_does_not_fit_the_head() {
    let dir = tempfile::tempdir().unwrap();
    let (head, _) = write_lines(dir.path(), 10, BIG);
    fs::remove_file(only_file(dir.path())).unwrap();
    let forged = tempfile::tempdir().unwrap();
    let (mut log, _) = AuditLog::open(forged.path(), BIG, Head::START, &[]).unwrap();
    for n in 0..10 {
        let line = chain(log.head(), WallTime::from_millis(n), &serde_json::json!({ "kind": "forged" }));
        log.write(&[line]).unwrap();
    }
    let report = verify(forged.path(), head, &[], 1).unwrap();
    assert_eq!(report.findings, [Finding::Rewritten { seq: 10 }]);
}

#[test]
fn a_partial_last_line_is_cut_returned_and_written_again_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (head, lines) = write_lines(dir.path(), 3, BIG);
    let path = only_file(dir.path());
    let length = fs::metadata(&path).unwrap().len();
    OpenOptions::new().write(true).open(&path).unwrap().set_len(length - 20).unwrap();

    let (log, opened) = AuditLog::open(dir.path(), BIG, head, &lines[2..]).unwrap();

    assert_eq!(opened.recovered, 1);
    assert!(opened.partial.is_some_and(|partial| lines[2].text.starts_with(&partial)));
    assert_eq!((opened.broken, log.head()), (None, head));
    assert!(verify(dir.path(), head, &[], 1).unwrap().is_whole());
}

#[test]
fn lines_that_are_in_the_store_alone_are_written_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let (mut head, _) = write_lines(dir.path(), 3, BIG);
    let mut outbox = Vec::new();
    for n in 3..6 {
        let line = chain(head, WallTime::from_millis(n), &serde_json::json!({ "n": n }));
        head = line.head;
        outbox.push(line);
    }
    assert!(verify(dir.path(), head, &outbox, 1).unwrap().is_whole(), "the store vouches for them meanwhile");
    let (_, opened) = AuditLog::open(dir.path(), BIG, head, &outbox).unwrap();
    assert_eq!(opened.recovered, 3);
    assert!(verify(dir.path(), head, &[], 1).unwrap().is_whole());
}

#[test]
fn a_log_whose_tail_was_cut_off_goes_on_and_shows_the_break_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (head, lines) = write_lines(dir.path(), 5, BIG);
    fs::write(only_file(dir.path()), format!("{}\n{}\n", lines[0].text, lines[1].text)).unwrap();

    let (mut log, opened) = AuditLog::open(dir.path(), BIG, head, &lines[4..]).unwrap();
    assert_eq!(opened.broken, Some(lines[1].head));
    let next = chain(log.head(), WallTime::from_millis(9), &serde_json::json!({ "kind": "audit_broken" }));
    log.write(std::slice::from_ref(&next)).unwrap();

    let report = verify(dir.path(), next.head, &[], 1).unwrap();
    assert!(matches!(report.findings[..], [Finding::Order { expected: 3, found: 6, .. }]), "{report:?}");
}

#[test]
fn archived_files_are_accepted_only_when_they_are_declared() {
    let dir = tempfile::tempdir().unwrap();
    let (head, _) = write_lines(dir.path(), 40, 1_000);
    let all = files(dir.path()).unwrap();
    fs::remove_file(&all[0].1).unwrap();
    let first = all[1].0;
    assert_eq!(verify(dir.path(), head, &[], 1).unwrap().findings, [Finding::Begins { first }]);
    assert!(verify(dir.path(), head, &[], first).unwrap().is_whole());
}

#[test]
fn a_crash_before_the_first_line_of_a_file_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let first = chain(Head::START, WallTime::from_millis(1), &serde_json::json!({ "n": 1 }));
    let second = chain(first.head, WallTime::from_millis(2), &serde_json::json!({ "n": 2 }));
    let outbox = [first, second.clone()];
    let (_, opened) = AuditLog::open(dir.path(), BIG, second.head, &outbox).unwrap();
    assert_eq!(opened.recovered, 2);
    assert!(verify(dir.path(), second.head, &[], 1).unwrap().is_whole());
}
