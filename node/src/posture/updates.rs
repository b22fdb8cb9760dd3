//! `security_updates`: how many installed packages have a newer version in a security suite.
//!
//! It is known on systems with apt, and only from what is on the disk already: the package lists that `apt update` last fetched from
//! suites with `security` in their name, compared with what dpkg says is installed. Where the lists are kept compressed (or there are none)
//! the count that Ubuntu's update-notifier left counts. Either is unknown once it is older than [`MAX_LIST_AGE`]: a machine that no
//! longer asks what is new must not look up to date. Other package managers: a check by command.

use std::{
    cmp::Ordering,
    collections::HashMap,
    io::{BufRead, BufReader, Read},
    time::{Duration, SystemTime},
};

use super::root::Root;

/// How old what apt fetched may be.
pub const MAX_LIST_AGE: Duration = Duration::from_secs(3 * 86_400);
/// The most bytes of one list that are read.
const MAX_LIST_BYTES: u64 = 256 << 20;
const LISTS: &str = "/var/lib/apt/lists";
const STATUS: &str = "/var/lib/dpkg/status";
const NOTIFIER: &str = "/var/lib/update-notifier/updates-available";
/// What apt touches whenever it has asked for lists.
const FETCHED: [&str; 3] = ["/var/lib/apt/periodic/update-success-stamp", "/var/lib/apt/lists/partial", LISTS];

/// Counts, and remembers the last count while its files stay as they are.
#[derive(Debug, Default)]
pub struct SecurityUpdates {
    last: Option<(Vec<Stamp>, u32)>,
}

/// A file as it was read: its path, its bytes, when it was written.
type Stamp = (String, u64, SystemTime);

impl SecurityUpdates {
    /// Counts the security updates that wait at `now`.
    pub fn waiting(&mut self, root: &Root, now: SystemTime) -> Option<u32> {
        let is_list = |name: &String| name.contains("security") && name.ends_with("_Packages");
        let lists: Vec<String> =
            root.names(LISTS).into_iter().filter(is_list).map(|name| format!("{LISTS}/{name}")).collect();
        if lists.is_empty() || !root.exists(STATUS) {
            return by_notifier(root, now);
        }
        let fetched = FETCHED.iter().filter_map(|path| root.written(path)).max()?;
        if !is_recent(fetched, now) {
            return None;
        }
        let stamp = |path: &String| {
            let metadata = std::fs::metadata(root.path(path)).ok()?;
            Some((path.clone(), metadata.len(), metadata.modified().ok()?))
        };
        let status = STATUS.to_owned();
        let stamps: Vec<_> = lists.iter().chain([&status]).filter_map(stamp).collect();
        if let Some((known, count)) = &self.last
            && *known == stamps
        {
            return Some(*count);
        }
        let count = count(root, &lists)?;
        self.last = Some((stamps, count));
        Some(count)
    }
}

fn is_recent(at: SystemTime, now: SystemTime) -> bool {
    // A time in the future is no proof of anything but a clock that was set.
    now.duration_since(at).is_ok_and(|age| age <= MAX_LIST_AGE)
}

/// Reads `2 of these updates are standard security updates.`; a translated text says nothing.
fn by_notifier(root: &Root, now: SystemTime) -> Option<u32> {
    let text = root.text(NOTIFIER)?;
    if !root.written(NOTIFIER).is_some_and(|at| is_recent(at, now)) {
        return None;
    }
    let number = |line: &str| line.split_whitespace().next()?.parse::<u32>().ok();
    let mut lines = text.lines().filter(|line| line.contains("update"));
    let security = lines.clone().find(|line| line.contains("security update") && !line.contains("additional"));
    security.and_then(number).or_else(|| lines.any(|line| line.starts_with("0 updates")).then_some(0))
}

/// One package of a list or of dpkg's status.
#[derive(Debug, Default, Clone)]
struct Stanza {
    package: String,
    version: String,
    architecture: String,
    installed: bool,
}

/// Reads stanzas (deb822(5)) and gives each to `take`.
fn stanzas(root: &Root, path: &str, mut take: impl FnMut(Stanza)) -> Option<()> {
    let mut reader = BufReader::new(root.open(path)?.take(MAX_LIST_BYTES));
    let (mut stanza, mut line) = (Stanza::default(), String::new());
    loop {
        line.clear();
        let read = reader.read_line(&mut line).ok()?;
        let text = line.trim_end();
        if text.is_empty() {
            if !stanza.package.is_empty() {
                take(std::mem::take(&mut stanza));
            }
            if read == 0 {
                return Some(());
            }
            continue;
        }
        if let Some((key, value)) = text.split_once(": ") {
            match key {
                "Package" => value.clone_into(&mut stanza.package),
                "Version" => value.clone_into(&mut stanza.version),
                "Architecture" => value.clone_into(&mut stanza.architecture),
                "Status" => stanza.installed = value.ends_with(" installed"),
                _ => {}
            }
        }
    }
}

fn count(root: &Root, lists: &[String]) -> Option<u32> {
    let mut newest: HashMap<(String, String), String> = HashMap::new();
    for list in lists {
        stanzas(root, list, |stanza| {
            let offered = newest.entry((stanza.package, stanza.architecture)).or_default();
            if offered.is_empty() || compare(&stanza.version, offered) == Ordering::Greater {
                *offered = stanza.version;
            }
        })?;
    }
    let mut waiting = 0;
    stanzas(root, STATUS, |stanza| {
        if !stanza.installed {
            return;
        }
        let offers = [stanza.architecture.as_str(), "all"]
            .map(|architecture| newest.get(&(stanza.package.clone(), architecture.to_owned())));
        let newer = |offered: &&String| compare(offered, &stanza.version) == Ordering::Greater;
        waiting += u32::from(offers.iter().flatten().any(newer));
    })?;
    Some(waiting)
}

/// Compares two versions as dpkg does (deb-version(7)).
pub fn compare(a: &str, b: &str) -> Ordering {
    let parts = |version: &str| -> (u64, String, String) {
        let (epoch, rest) = version.split_once(':').unwrap_or(("0", version));
        let (upstream, revision) = rest.rsplit_once('-').unwrap_or((rest, ""));
        (epoch.parse().unwrap_or(0), upstream.to_owned(), revision.to_owned())
    };
    let ((epoch_a, upstream_a, revision_a), (epoch_b, upstream_b, revision_b)) = (parts(a), parts(b));
    epoch_a
        .cmp(&epoch_b)
        .then_with(|| compare_part(&upstream_a, &upstream_b))
        .then_with(|| compare_part(&revision_a, &revision_b))
}

fn compare_part(a: &str, b: &str) -> Ordering {
    // `~` is before the end, the end before letters, letters before all else.
    let order = |c: Option<u8>| match c {
        Some(b'~') => -1,
        None => 0,
        Some(c) if c.is_ascii_digit() => 0,
        Some(c) if c.is_ascii_alphabetic() => i32::from(c),
        Some(c) => i32::from(c) + 256,
    };
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        while a.first().is_some_and(|c| !c.is_ascii_digit()) || b.first().is_some_and(|c| !c.is_ascii_digit()) {
            let by_character = order(a.first().copied()).cmp(&order(b.first().copied()));
            if by_character != Ordering::Equal {
                return by_character;
            }
            (a, b) = (&a[1..], &b[1..]);
        }
        let number = |text: &mut &[u8]| -> Vec<u8> {
            let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
            let (digits, rest) = text.split_at(end);
            *text = rest;
            digits.iter().copied().skip_while(|c| *c == b'0').collect()
        };
        let (number_a, number_b) = (number(&mut a), number(&mut b));
        let by_number = number_a.len().cmp(&number_b.len()).then_with(|| number_a.cmp(&number_b));
        if by_number != Ordering::Equal || (a.is_empty() && b.is_empty()) {
            return by_number;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::root::testing::Tree, *};

    const LIST: &str =
        "/var/lib/apt/lists/deb.debian.org_debian-security_dists_bookworm-security_main_binary-amd64_Packages";

    fn tree() -> Tree {
        let tree = Tree::new(&[
            (
                STATUS,
                "Package: openssl\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3.0.14-1~deb12u1\n\n\
                 Package: tzdata\nStatus: install ok installed\nArchitecture: all\nVersion: 2024a-0+deb12u1\n\n\
                 Package: old\nStatus: deinstall ok config-files\nArchitecture: amd64\nVersion: 1\n",
            ),
            (
                LIST,
                "Package: openssl\nArchitecture: amd64\nVersion: 3.0.14-1~deb12u1\n\nPackage: old\nArchitecture: amd64\nVersion: 9\n",
            ),
            (
                "/var/lib/apt/lists/deb.debian.org_debian_dists_bookworm_main_binary-amd64_Packages",
                "Package: openssl\nArchitecture: amd64\nVersion: 9\n",
            ),
        ]);
        tree.folder("/var/lib/apt/lists/partial");
        tree
    }

    fn waiting(tree: &Tree) -> Option<u32> {
        SecurityUpdates::default().waiting(&tree.root(), SystemTime::now())
    }

    #[test]
    fn a_newer_version_in_a_security_suite_of_an_installed_package_waits() {
        let tree = tree();
        let mut updates = SecurityUpdates::default();
        assert_eq!(updates.waiting(&tree.root(), SystemTime::now()), Some(0));
        let newer = "Package: openssl\nArchitecture: amd64\nVersion: 3.0.15-1~deb12u1\n\nPackage: tzdata\nArchitecture: all\nVersion: 2025a-0+deb12u1\n";
        tree.write(LIST, newer);
        assert_eq!(updates.waiting(&tree.root(), SystemTime::now()), Some(2), "the files changed");
        tree.write(
            STATUS,
            "Package: openssl\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3.0.15-1~deb12u1\n",
        );
        assert_eq!(updates.waiting(&tree.root(), SystemTime::now()), Some(0));
    }

    #[test]
    fn lists_that_nobody_renews_say_nothing() {
        let later = SystemTime::now() + MAX_LIST_AGE + Duration::from_secs(60);
        assert_eq!(SecurityUpdates::default().waiting(&tree().root(), later), None);
        let before = SystemTime::now() - Duration::from_secs(60);
        assert_eq!(SecurityUpdates::default().waiting(&tree().root(), before), None, "fetched in the future");
        assert_eq!(waiting(&Tree::new(&[])), None);
    }

    #[test]
    fn the_notifiers_count_serves_where_there_are_no_lists() {
        for (text, expected) in [
            ("\n5 updates can be applied immediately.\n2 of these updates are standard security updates.\n", Some(2)),
            ("\n1 update can be applied immediately.\n1 of these updates is a standard security update.\n", Some(1)),
            ("\n0 updates can be applied immediately.\n", Some(0)),
            ("\n5 updates can be applied immediately.\n", None),
            ("\n5 Aktualisierungen\n", None),
        ] {
            assert_eq!(waiting(&Tree::new(&[(NOTIFIER, text)])), expected, "{text}");
        }
        let tree = Tree::new(&[(NOTIFIER, "0 updates can be applied immediately.\n")]);
        tree.set_written(NOTIFIER, SystemTime::now() - MAX_LIST_AGE - Duration::from_secs(60));
        assert_eq!(waiting(&tree), None);
    }

    #[test]
    fn versions_compare_as_dpkg_does() {
        let ascending = [
            "1.0~rc1-1",
            "1.0-1",
            "1.0-1+b1",
            "1.0-1.1",
            "1.0-2~deb12u1",
            "1.0-2",
            "1.0a-1",
            "1.0+dfsg-1",
            "1.0.1-1",
            "1.2-1",
            "1.10-1",
            "1:0.1-1",
        ];
        for (i, a) in ascending.iter().enumerate() {
            for (j, b) in ascending.iter().enumerate() {
                assert_eq!(compare(a, b), i.cmp(&j), "{a} and {b}");
            }
        }
        assert_eq!(compare("1.0", "1.00"), Ordering::Equal);
        assert_eq!(compare("1.0-0", "1.0"), Ordering::Equal);
    }
}
