//! `screen_lock`: whether every person's screen locks by itself.
//!
//! A screen belongs to a graphical session of logind's. Of each it is known that it locks if
//!
//! - it is GNOME's, and an administrator fixed `lock-enabled` to true by dconf (a value and a lock on it), or
//! - it is KDE's, which locks unless `kscreenlockerrc` says otherwise ([`kde`]), or
//! - a locker of the same user runs that watches for idleness ([`LOCKERS`]).
//!
//! It is off where one of these says off. A GNOME session without an administrator's word is *unknown*: what the person chose is in a
//! binary file of theirs. So is another desktop without a locker, and one that does not say which it is. With no graphical session only an administrator's word counts. So this fact is as good as the desktop allows; an
//! organisation that needs it fixes it by dconf, or takes it from its device management.

mod kde;

use super::{homes::Homes, root::Root};

/// Programs that lock a screen when nobody has touched it for a while.
const LOCKERS: [&str; 6] = ["swayidle", "hypridle", "xautolock", "xss-lock", "light-locker", "xscreensaver"];
const SESSIONS: &str = "/run/systemd/sessions";
const LOCK_KEY: &str = "/org/gnome/desktop/screensaver/lock-enabled";

/// A graphical session of a person.
struct Session {
    uid: String,
    desktop: Desktop,
}

/// Whose settings say whether the screen locks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Desktop {
    Gnome,
    Kde,
    Other,
}

impl Desktop {
    /// Reads what logind has of `XDG_SESSION_DESKTOP`.
    fn parse(name: &str) -> Self {
        match name.to_ascii_lowercase().as_str() {
            "gnome"
            | "gnome-wayland"
            | "gnome-xorg"
            | "gnome-classic"
            | "gnome-classic-wayland"
            | "gnome-classic-xorg"
            | "ubuntu"
            | "ubuntu-wayland"
            | "ubuntu-xorg"
            | "pop" => Self::Gnome,
            "kde" | "plasma" | "plasmawayland" | "plasmax11" => Self::Kde,
            _ => Self::Other,
        }
    }
}

fn sessions(root: &Root) -> Vec<Session> {
    let read = |name: String| {
        let text = root.text(format!("{SESSIONS}/{name}"))?;
        let value = |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        let graphical = matches!(value("TYPE"), Some("x11" | "wayland" | "mir"));
        let of_a_person = value("CLASS").is_none_or(|class| class == "user");
        let closing = value("STATE") == Some("closing");
        (graphical && of_a_person && !closing).then(|| Session {
            uid: value("UID").unwrap_or_default().to_owned(),
            desktop: Desktop::parse(value("DESKTOP").unwrap_or_default()),
        })
    };
    root.names(SESSIONS).into_iter().filter_map(read).collect()
}

/// Returns what an administrator fixed for GNOME, if they did.
fn fixed_by_dconf(root: &Root) -> Option<bool> {
    let mut fixed = None;
    for folder in root.names("/etc/dconf/db").into_iter().filter(|name| name.ends_with(".d")) {
        let folder = format!("/etc/dconf/db/{folder}");
        let locks = root.names(format!("{folder}/locks"));
        let locked = locks.iter().any(|file| {
            let text = root.text(format!("{folder}/locks/{file}")).unwrap_or_default();
            text.lines().any(|line| line.trim() == LOCK_KEY)
        });
        if !locked {
            continue;
        }
        for file in root.names(&folder) {
            let text = root.text(format!("{folder}/{file}")).unwrap_or_default();
            fixed = value_in(&text, "org/gnome/desktop/screensaver", "lock-enabled").map(|v| v == "true").or(fixed);
        }
    }
    fixed
}

/// Reads a value of a file with sections.
fn value_in<'t>(text: &'t str, section: &str, key: &str) -> Option<&'t str> {
    let mut inside = false;
    let mut found = None;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|line| line.split(']').next()) {
            inside = name == section;
        } else if inside
            && let Some((name, value)) = line.split_once('=')
            && name.trim().split('[').next() == Some(key)
        {
            found = Some(value.trim());
        }
    }
    found
}

/// Where a user's home lies, as `/etc/passwd` says.
fn home(root: &Root, uid: &str) -> Option<String> {
    let users = root.text("/etc/passwd")?;
    users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.get(2) == Some(&uid)).then(|| fields.get(5).map(|home| (*home).to_owned()))?
    })
}

fn locker_runs(root: &Root, uid: &str) -> bool {
    let processes = root.names("/proc").into_iter().filter(|name| name.bytes().all(|c| c.is_ascii_digit()));
    processes.into_iter().any(|process| {
        let name = root.text(format!("/proc/{process}/comm")).unwrap_or_default();
        LOCKERS.contains(&name.trim()) && {
            let status = root.text(format!("/proc/{process}/status")).unwrap_or_default();
            let own = status.lines().find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next());
            own == Some(uid)
        }
    })
}

/// Tells whether every person's screen locks by itself.
pub fn on(root: &Root, homes: &mut Homes) -> Option<bool> {
    let fixed = fixed_by_dconf(root);
    let sessions = sessions(root);
    if sessions.is_empty() {
        return fixed;
    }
    let of_session = |session: &Session| {
        let by_desktop = match session.desktop {
            Desktop::Gnome => fixed,
            Desktop::Kde => home(root, &session.uid).and_then(|home| kde::locks(root, homes, &home)),
            Desktop::Other => None, // what is fixed for GNOME is nothing to it
        };
        by_desktop.or_else(|| locker_runs(root, &session.uid).then_some(true))
    };
    let all: Vec<Option<bool>> = sessions.iter().map(of_session).collect();
    if all.contains(&Some(false)) { Some(false) } else { all.iter().all(|on| *on == Some(true)).then_some(true) }
}

#[cfg(test)]
mod tests {
    use super::{super::root::testing::Tree, *};

    fn judged(tree: &Tree) -> Option<bool> {
        on(&tree.root(), &mut Homes::default())
    }

    fn session(tree: &Tree, number: u8, desktop: &str) {
        let text = format!("UID=1000\nTYPE=wayland\nCLASS=user\nSTATE=active\nDESKTOP={desktop}\n");
        tree.write(&format!("{SESSIONS}/{number}"), text);
    }

    fn fix(tree: &Tree, value: &str) {
        tree.write(
            "/etc/dconf/db/local.d/00-lock",
            format!("# by it\n[org/gnome/desktop/screensaver]\nlock-enabled={value}\n"),
        );
    }

    #[test]
    fn an_administrators_word_counts_once_it_is_locked() {
        let tree = Tree::new(&[]);
        assert_eq!(judged(&tree), None, "a machine without screens");
        fix(&tree, "true");
        session(&tree, 3, "gnome");
        assert_eq!(judged(&tree), None, "the person can choose otherwise");
        tree.write("/etc/dconf/db/local.d/locks/screensaver", format!("{LOCK_KEY}\n"));
        assert_eq!(judged(&tree), Some(true));
        fix(&tree, "false");
        assert_eq!(judged(&tree), Some(false));
    }

    #[test]
    fn what_is_fixed_for_gnome_is_nothing_to_another_desktop() {
        let tree = Tree::new(&[]);
        fix(&tree, "true");
        tree.write("/etc/dconf/db/local.d/locks/screensaver", format!("{LOCK_KEY}\n"));
        for (desktop, expected) in
            [("ubuntu", Some(true)), ("xfce", None), ("cinnamon", None), ("", None), ("sway", None)]
        {
            session(&tree, 3, desktop);
            assert_eq!(judged(&tree), expected, "{desktop}");
        }
    }

    #[test]
    fn kde_locks_unless_the_person_said_no() {
        let tree = Tree::new(&[("/etc/passwd", "root:x:0:0::/root:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n")]);
        session(&tree, 3, "KDE");
        assert_eq!(judged(&tree), None, "the homes are hidden");
        tree.folder("/home/bob");
        assert_eq!(judged(&tree), Some(true));
        tree.write("/home/bob/.config/kscreenlockerrc", "[Daemon]\nAutolock=false\nTimeout=0\n");
        assert_eq!(judged(&tree), Some(false));
        tree.write("/home/bob/.config/kscreenlockerrc", "[Other]\nAutolock=false\n[Daemon]\nAutolock=true\n");
        assert_eq!(judged(&tree), Some(true));
    }

    #[test]
    fn a_pipe_or_a_link_in_a_home_is_not_waited_for_and_says_nothing() {
        let tree = Tree::new(&[("/etc/passwd", "bob:x:1000:1000::/home/bob:/bin/sh\n")]);
        session(&tree, 3, "KDE");
        tree.folder("/home/bob/.config");
        let place = "/home/bob/.config/kscreenlockerrc";
        rustix::fs::mknodat(
            rustix::fs::CWD,
            tree.root().path(place),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .expect("a pipe");
        let (root, (told, answer)) = (tree.root(), std::sync::mpsc::channel());
        std::thread::spawn(move || told.send((on(&root, &mut Homes::default()), root.text(place))));
        let patience = std::time::Duration::from_secs(5);
        assert_eq!(answer.recv_timeout(patience), Ok((None, None)), "it waits for nobody");
        tree.remove(place);
        tree.write("/home/bob/elsewhere", "[Daemon]\nAutolock=true\n");
        tree.link(place, "../elsewhere");
        assert_eq!(judged(&tree), None);
    }

    #[test]
    fn a_locker_counts_for_the_person_whose_it_is_and_every_session_needs_one() {
        let tree =
            Tree::new(&[("/proc/50/comm", "swayidle\n"), ("/proc/50/status", "Name:\tswayidle\nUid:\t1001\t1001\n")]);
        session(&tree, 3, "sway");
        assert_eq!(judged(&tree), None, "somebody else's");
        tree.write("/proc/50/status", "Name:\tswayidle\nUid:\t1000\t1000\n");
        assert_eq!(judged(&tree), Some(true));
        tree.write(&format!("{SESSIONS}/4"), "UID=1002\nTYPE=x11\nCLASS=user\nDESKTOP=i3\n");
        assert_eq!(judged(&tree), None);
        tree.write(&format!("{SESSIONS}/4"), "UID=1002\nTYPE=x11\nCLASS=greeter\n");
        assert_eq!(judged(&tree), Some(true), "the sign-in screen is nobody's");
    }
}
