//! Terminals: one line to those of the people who are signed in on this machine, as `wall` writes it.
//!
//! A terminal is a person's if it belongs to them, and takes messages if its group may write to it (`mesg y`). Terminals are found by
//! their devices and not by the records of sign-ins: a desktop's terminal windows leave none.
//!
//! Bounds: [`MAX_TERMINALS`] are written to and [`MAX_ENTRIES`] looked at. Nothing blocks: a terminal that takes nothing now is left
//! out. It is opened without becoming the agent's own (`O_NOCTTY`), and looked at again once it is open.

use std::{
    fs::Metadata,
    io::Write,
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use rustix::fs::OFlags;

use super::Person;

/// The most terminals that one notice goes to.
const MAX_TERMINALS: usize = 32;
/// The most entries of a folder that are looked at.
const MAX_ENTRIES: usize = 4_096;

/// Writes a line to the terminals of people; returns to how many.
pub(super) fn write(folders: &[PathBuf], people: &[Person], line: &str) -> usize {
    if people.is_empty() {
        return 0;
    }
    let entries =
        folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flat_map(|all| all.take(MAX_ENTRIES));
    let terminals = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(|path| is_named_as_one(path));
    terminals.filter(|path| say(path, people, line).is_some()).take(MAX_TERMINALS).count()
}

/// `/dev/pts/7`, `/dev/tty3`.
fn is_named_as_one(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    let number = name.strip_prefix("tty").unwrap_or(name);
    !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit())
}

fn takes_messages(found: &Metadata, people: &[Person]) -> bool {
    found.file_type().is_char_device()
        && found.mode() & 0o020 != 0
        && people.iter().any(|person| person.uid == found.uid())
}

fn say(path: &Path, people: &[Person], line: &str) -> Option<()> {
    if !takes_messages(&path.symlink_metadata().ok()?, people) {
        return None;
    }
    let flags = OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::NOFOLLOW;
    let flags = i32::try_from(flags.bits()).ok()?;
    let mut terminal = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(path).ok()?;
    let is_theirs = takes_messages(&terminal.metadata().ok()?, people) && rustix::termios::isatty(&terminal);
    let text = format!("\r\n{line}\r\n");
    (is_theirs && terminal.write(text.as_bytes()).ok()? == text.len()).then_some(())
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::Read,
        os::unix::fs::{PermissionsExt, chown},
    };

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    /// A real terminal of a user.
    struct Terminal {
        controller: File,
        path: PathBuf,
    }

    impl Terminal {
        fn of(uid: u32, mode: u32) -> Self {
            let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
            rustix::fs::fcntl_setfl(&controller, OFlags::NONBLOCK).expect("set");
            grantpt(&controller).expect("granted");
            unlockpt(&controller).expect("unlocked");
            let path = PathBuf::from(ptsname(&controller, vec![]).expect("a name").into_string().expect("text"));
            chown(&path, Some(uid), Some(5)).expect("root gives it away");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
            Self { controller: controller.into(), path }
        }

        fn shows(&mut self) -> String {
            let mut bytes = [0; 4_096];
            let length = self.controller.read(&mut bytes).unwrap_or(0); // nothing to read is an error without waiting
            String::from_utf8_lossy(&bytes[..length]).into_owned()
        }
    }

    fn person(uid: u32) -> Person {
        Person { uid, gid: uid, folder: "/nonexistent".into() }
    }

    // Of nobody on any machine that runs tests.
    const ANNA: u32 = 61_001;
    const BERT: u32 = 61_002;

    #[test]
    fn a_line_goes_to_the_persons_own_terminals_that_take_messages() {
        let mut open = Terminal::of(ANNA, 0o620);
        let mut shut = Terminal::of(ANNA, 0o600);
        let mut others = Terminal::of(BERT, 0o620);
        let folder = open.path.parent().expect("a folder").to_owned();
        // The terminal has to be held open from its own side too, or nothing is kept for it.
        let held: Vec<File> = [&open, &shut, &others]
            .map(|terminal| File::options().read(true).write(true).open(&terminal.path).expect("opened"))
            .into();
        assert_eq!(write(std::slice::from_ref(&folder), &[person(ANNA)], "postern: git needs MFA"), 1);
        assert!(open.shows().contains("postern: git needs MFA\r"), "it is shown");
        assert_eq!((shut.shows(), others.shows()), (String::new(), String::new()));
        assert_eq!(write(&[folder], &[], "x"), 0, "nobody is signed in");
        drop(held);
    }

    #[test]
    fn a_terminal_that_takes_nothing_is_left_out_and_not_waited_for() {
        let full = Terminal::of(ANNA, 0o620);
        let held = File::options().read(true).write(true).open(&full.path).expect("opened");
        let long = "x".repeat(100_000); // nobody reads it
        assert_eq!(write(&[full.path.parent().expect("a folder").to_owned()], &[person(ANNA)], &long), 0);
        drop(held);
    }

    #[test]
    fn only_terminals_are_named_as_such() {
        for (path, is_one) in [
            ("/dev/pts/7", true),
            ("/dev/tty3", true),
            ("/dev/tty", false),
            ("/dev/pts/ptmx", false),
            ("/dev/ttyS0", false),
            ("/dev/sda1", false),
        ] {
            assert_eq!(is_named_as_one(Path::new(path)), is_one, "{path}");
        }
    }
}
