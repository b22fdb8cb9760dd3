//! Notices to the people at this machine: a step-up waits for them.
//!
//! ```text
//! core: a new page --> Notices::show (paced) --queue--> thread: terminals of who is signed in here, session buses, --failed--> Troubles
//!                                                       or the program that `node.toml` names
//! ```
//!
//! Only a page that is *new* makes a notice: who asks by hand for one that waits is answered alone. The way leads to people who are
//! signed in on this machine: those with a folder under `/run/user`, who are not the system's own.
//!
//! Bounds: one notice for a resource in [`QUIET`], [`MOST`] in that time for all; [`WAITING`] wait for the thread, further ones are
//! dropped, because the log and `postern status` say the same, and that too; [`desktops::PATIENCE`] for programs. The main loop waits for none of
//! it: folders are other people's, and a program is anybody's to hang.
//!
//! Threats: a local user who makes packets that want a step-up shows others at most [`MOST`] lines a minute; what stands in them is
//! the controller's, without control characters; programs get nothing of the agent's environment, which may hold credentials.

mod desktops;
mod terminals;

use std::{
    collections::{BTreeMap, VecDeque},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::mpsc::{SyncSender, TrySendError, sync_channel},
};

use postern_common::{id::ResourceName, time::Monotonic};
use tracing::warn;

use super::{
    Agent,
    host::{Trouble, Troubles},
};
use crate::agent::core::{Notice, QUIET};

/// Notices within [`QUIET`], for all resources.
const MOST: usize = 6;
/// Notices that wait for those before.
const WAITING: usize = 4;
/// The most people whom one notice reaches.
const MAX_PEOPLE: usize = 8;
/// User identifiers from here on are people's.
const FIRST_PERSON: u32 = 1000;
/// The most bytes of a notice's line.
const MAX_LINE: usize = 400;

/// What is told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Words {
    title: String,
    text: String,
}

impl Words {
    /// One line for a terminal: bounded, and of nothing but printable characters.
    fn line(&self) -> String {
        let line = format!("postern: {}. {}", self.title, self.text);
        let printable = |c: &char| {
            !c.is_control() && !matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        let mut line: String = line.chars().filter(printable).collect();
        while line.len() > MAX_LINE {
            line.pop();
        }
        line
    }
}

/// By which ways notices go, by `node.toml`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Ways {
    /// The program that is run instead of `notify-send`; empty for none.
    command: Option<String>,
    terminals: bool,
}

/// Where people are found; tests have their own.
#[derive(Debug, Clone)]
struct Places {
    /// A folder for each user who is signed in.
    users: PathBuf,
    /// Folders of terminals.
    terminals: Vec<PathBuf>,
    /// The desktop's program.
    notify_send: String,
}

impl Places {
    fn of_machine() -> Self {
        Self {
            users: "/run/user".into(),
            terminals: vec!["/dev/pts".into(), "/dev".into()],
            notify_send: "notify-send".into(),
        }
    }
}

/// Somebody who is signed in on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Person {
    uid: u32,
    gid: u32,
    /// Their runtime folder.
    folder: PathBuf,
}

/// Lists who is signed in, in the order of their numbers.
fn people(users: &Path) -> Vec<Person> {
    let Ok(entries) = std::fs::read_dir(users) else { return vec![] };
    let person = |entry: std::io::Result<std::fs::DirEntry>| {
        let folder = entry.ok()?.path();
        let uid: u32 = folder.file_name()?.to_str()?.parse().ok()?;
        let found = folder.symlink_metadata().ok()?; // never by a link
        (found.is_dir() && found.uid() == uid && uid >= FIRST_PERSON).then(|| Person { uid, gid: found.gid(), folder })
    };
    let mut people: Vec<Person> = entries.filter_map(person).collect();
    people.sort_by_key(|person| person.uid);
    people.truncate(MAX_PEOPLE);
    people
}

/// Shows notices, at most so many.
#[derive(Debug, Default)]
pub(super) struct Notices {
    told: Pace,
    thread: Option<SyncSender<(Words, Ways)>>,
}

impl Notices {
    fn show(&mut self, words: Words, ways: Ways, troubles: &Troubles) {
        let thread = match &self.thread {
            Some(thread) => thread,
            None => match start(Places::of_machine(), troubles.clone()) {
                Ok(thread) => self.thread.insert(thread),
                Err(error) => return warn!(%error, "no notice for the people at this machine"),
            },
        };
        match thread.try_send((words, ways)) {
            Ok(()) => {}
            Err(TrySendError::Full(_)) => {
                let why = "notices of step-ups come faster than they can be shown, and some were left out";
                troubles.note(Trouble::Notices, Err(anyhow::Error::msg(why)));
            }
            Err(TrySendError::Disconnected(_)) => self.thread = None, // the next one starts another
        }
    }
}

fn start(places: Places, troubles: Troubles) -> std::io::Result<SyncSender<(Words, Ways)>> {
    let (to_thread, queue) = sync_channel::<(Words, Ways)>(WAITING);
    std::thread::Builder::new().name("notices".into()).spawn(move || {
        let mut desktops = desktops::Desktops::default();
        for (words, ways) in queue {
            troubles.note(Trouble::Notices, tell(&places, &ways, &words, &mut desktops));
        }
    })?;
    Ok(to_thread)
}

/// Tells the people at this machine.
///
/// # Errors
/// If a way failed. That there is no `notify-send` counts only if nobody was told on a terminal either: a server has none.
fn tell(places: &Places, ways: &Ways, words: &Words, desktops: &mut desktops::Desktops) -> Result<(), anyhow::Error> {
    let people = people(&places.users);
    let line = words.line();
    let told = match ways.terminals {
        true => terminals::write(&places.terminals, &people, &line),
        false => 0,
    };
    let failed = match ways.command.as_deref() {
        Some("") => vec![],
        Some(program) => desktops.run(vec![desktops::named(program)], words),
        None => {
            let desktop = |person: &Person| desktops::notify_send(person, &places.notify_send);
            desktops.run(people.iter().filter_map(desktop).collect(), words)
        }
    };
    let counts = |failure: &desktops::Failure| told == 0 || !failure.is_missing;
    match failed.into_iter().find(counts) {
        Some(failure) => Err(anyhow::anyhow!("a notice of a step-up could not be shown: {failure}")),
        None => Ok(()),
    }
}

/// When which resource was told of.
#[derive(Debug, Default)]
struct Pace {
    resources: BTreeMap<ResourceName, Monotonic>,
    all: VecDeque<Monotonic>,
}

impl Pace {
    fn permits(&mut self, resource: &ResourceName, now: Monotonic) -> bool {
        let lately = |at: &Monotonic| now.since(*at) < QUIET;
        self.resources.retain(|_, at| lately(at));
        self.all.retain(lately);
        let permitted = self.all.len() < MOST && !self.resources.contains_key(resource);
        if permitted {
            self.resources.insert(resource.clone(), now);
            self.all.push_back(now);
        }
        permitted
    }
}

impl Agent {
    /// Tells the people at this machine of a step-up.
    pub(super) fn tell_people(&mut self, notice: &Notice) {
        if let Notice::SteppedUp { resource } = notice {
            self.notices.told.resources.remove(resource); // what closes again is news
        }
        let Notice::StepUp { resource, demand, url, .. } = notice else { return };
        if !self.notices.told.permits(resource, self.clock.now().monotonic) {
            return;
        }
        let words = Words { title: format!("{resource} needs {demand}"), text: format!("Confirm it is you: {url}") };
        let ways = Ways { command: self.config.notify_command.clone(), terminals: self.config.notify_terminals };
        self.notices.show(words, ways, &self.troubles);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Monotonic {
        Monotonic::from_millis(seconds * 1_000)
    }

    fn words(text: &str) -> Words {
        Words { title: "git needs MFA within 15 min".into(), text: text.into() }
    }

    fn name(text: &str) -> ResourceName {
        text.parse().expect("a name")
    }

    #[test]
    fn one_resource_is_told_of_once_in_a_minute_and_all_of_them_a_few_times() {
        let mut pace = Pace::default();
        assert!(pace.permits(&name("git"), at(0)));
        assert!(!pace.permits(&name("git"), at(59)));
        let others = (0..100).filter(|number| pace.permits(&name(&format!("r{number}")), at(30))).count();
        assert_eq!(others, MOST - 1);
        assert!(pace.permits(&name("git"), at(60)));
        assert!(!pace.permits(&name("db"), at(60)), "the others are still of this minute");
        assert!(pace.permits(&name("db"), at(90)));
        assert!(pace.resources.len() <= MOST);
    }

    #[test]
    fn a_line_is_bounded_and_moves_no_cursor() {
        let line = words("see\u{1b}[2J\u{7}\r\nhttps://ctl/x\u{202e}").line();
        assert_eq!(line, "postern: git needs MFA within 15 min. see[2Jhttps://ctl/x");
        assert!(words(&"ü".repeat(1_000)).line().len() <= MAX_LINE);
    }

    #[test]
    fn people_are_those_with_a_folder_of_their_own() {
        let users = tempfile::tempdir().expect("a folder");
        for (folder, owner) in [("1000", 1000), ("1001", 1000), ("42", 42), ("text", 1000)] {
            let path = users.path().join(folder);
            std::fs::create_dir(&path).expect("made");
            std::os::unix::fs::chown(&path, Some(owner), Some(owner)).expect("root gives it away");
        }
        std::os::unix::fs::symlink("1000", users.path().join("1002")).expect("made");
        let found: Vec<u32> = people(users.path()).iter().map(|person| person.uid).collect();
        assert_eq!(found, [1000], "neither a stranger's folder, nor the system's, nor a link");
        assert!(people(Path::new("/nonexistent")).is_empty());
    }

    #[test]
    fn a_program_that_cannot_be_run_is_a_trouble_and_a_missing_desktop_is_none() {
        let empty = tempfile::tempdir().expect("a folder");
        let places = Places { users: empty.path().into(), terminals: vec![], notify_send: "notify-send".into() };
        let ways = |command: Option<&str>| Ways { command: command.map(Into::into), terminals: true };
        let told = |ways: &Ways| tell(&places, ways, &words("x"), &mut desktops::Desktops::default());
        assert!(told(&ways(None)).is_ok(), "nobody is signed in");
        assert!(told(&ways(Some(""))).is_ok());
        assert!(told(&ways(Some("/bin/true"))).is_ok());
        for program in ["/bin/false", "/nonexistent/program", "/etc/hostname"] {
            let error = told(&ways(Some(program))).expect_err(program);
            assert!(error.to_string().contains(program), "{error}");
        }
    }
}
