//! What people keep in their homes, read so that no home can hold the look up.
//!
//! A home may lie on a server that is away, or behind an automounter, and whoever opens a file there waits for ever. So each read has a
//! thread of its own and [`WITHIN`] to answer; one that hangs is left, and that home is asked nothing more until it comes back.
//!
//! Threat: below the home everything is the person's. No link is followed there and no other file system entered (one of their own
//! making can hang too); only a regular file is read. Where the home itself lies is the administrator's, and may be behind links.
//!
//! Bounds: [`MAX_HANGING`] threads that hang.

use std::{
    collections::BTreeMap,
    fs::File,
    os::fd::OwnedFd,
    path::PathBuf,
    sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, channel},
    time::Duration,
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};

use super::root::{Root, bounded};

/// How long a home has to answer.
pub const WITHIN: Duration = Duration::from_secs(2);
/// How many homes may hang before nothing more is read of any other.
const MAX_HANGING: usize = 8;

/// What a home says of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Told {
    /// The file's text; empty if it is not there.
    Text(String),
    /// The home or the file cannot be read, or is no regular file.
    Nothing,
    /// The home does not answer.
    Hangs,
}

/// Reads files of people's homes.
#[derive(Debug, Default)]
pub struct Homes {
    hanging: BTreeMap<PathBuf, Receiver<Told>>,
}

impl Homes {
    /// Reads a file below a home.
    pub fn text(&mut self, root: &Root, home: &str, file: &'static str) -> Told {
        let home = root.path(home);
        self.ask(home.clone(), move || read(&home, file))
    }

    /// Lists the homes that do not answer.
    pub fn hanging(&self) -> impl Iterator<Item = &PathBuf> {
        self.hanging.keys()
    }

    fn ask(&mut self, home: PathBuf, read: impl FnOnce() -> Told + Send + 'static) -> Told {
        if let Some(answer) = self.hanging.get(&home) {
            match answer.try_recv() {
                Err(TryRecvError::Empty) => return Told::Hangs,
                Ok(_) | Err(TryRecvError::Disconnected) => drop(self.hanging.remove(&home)), // it is back: what it said is old
            }
        }
        if self.hanging.len() >= MAX_HANGING {
            return Told::Nothing;
        }
        let (tell, answer) = channel();
        let thread = std::thread::Builder::new().name("home".into()).spawn(move || drop(tell.send(read())));
        if thread.is_err() {
            return Told::Nothing;
        }
        match answer.recv_timeout(WITHIN) {
            Ok(told) => told,
            Err(RecvTimeoutError::Disconnected) => Told::Nothing,
            Err(RecvTimeoutError::Timeout) => {
                self.hanging.insert(home, answer);
                Told::Hangs
            }
        }
    }
}

fn read(home: &PathBuf, file: &str) -> Told {
    let home = openat(CWD, home, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    let Ok(home) = home else { return Told::Nothing }; // hidden from the service, perhaps
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let bounds =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    match openat2(&home, file, flags, Mode::empty(), bounds) {
        Ok(opened) => text(opened),
        Err(rustix::io::Errno::NOENT) => Told::Text(String::new()),
        Err(_) => Told::Nothing,
    }
}

fn text(opened: OwnedFd) -> Told {
    let file = File::from(opened);
    let regular = file.metadata().is_ok_and(|found| found.is_file());
    let bytes = regular.then(|| bounded(file)).flatten();
    bytes.map_or(Told::Nothing, |bytes| Told::Text(String::from_utf8_lossy(&bytes).into_owned()))
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::{super::root::testing::Tree, *};

    #[test]
    fn a_home_that_hangs_costs_one_wait_and_one_thread_until_it_is_back() {
        let tree = Tree::new(&[("/home/anna/.rc", "hers"), ("/home/bert/.rc", "his")]);
        let (root, mut homes) = (tree.root(), Homes::default());
        let (back, away) = channel::<()>();
        let hangs = move || {
            let _ = away.recv();
            Told::Text("old".into())
        };
        assert_eq!(homes.ask(root.path("/home/anna"), hangs), Told::Hangs);
        let begun = Instant::now();
        for _ in 0..100 {
            assert_eq!(homes.text(&root, "/home/anna", ".rc"), Told::Hangs);
        }
        assert!(begun.elapsed() < WITHIN, "it is not waited for again");
        assert_eq!(homes.hanging().count(), 1);
        assert_eq!(homes.text(&root, "/home/bert", ".rc"), Told::Text("his".into()), "others are read");
        drop(back);
        let end = Instant::now() + Duration::from_secs(5);
        while homes.text(&root, "/home/anna", ".rc") == Told::Hangs && Instant::now() < end {
            std::thread::yield_now();
        }
        assert_eq!(homes.text(&root, "/home/anna", ".rc"), Told::Text("hers".into()));
        assert_eq!(homes.hanging().count(), 0);
    }

    #[test]
    fn nothing_but_a_regular_file_of_the_home_itself_is_read() {
        let tree = Tree::new(&[("/home/anna/there/rc", "elsewhere"), ("/secret", "root's")]);
        let (root, mut homes) = (tree.root(), Homes::default());
        let mut told = |home: &str, file| homes.text(&root, home, file);
        assert_eq!(told("/home/anna", ".config/rc"), Told::Text(String::new()), "it is not there");
        assert_eq!(told("/home/nobody", ".config/rc"), Told::Nothing, "nor is the home");
        tree.link("/home/anna/.config", "there");
        assert_eq!(told("/home/anna", ".config/rc"), Told::Nothing, "a folder that is a link");
        tree.link("/home/anna/rc", "/secret");
        assert_eq!(told("/home/anna", "rc"), Told::Nothing, "a file that is one");
        assert_eq!(told("/home/anna", "../../secret"), Told::Nothing, "not below it");
        assert_eq!(told("/home/anna", "there"), Told::Nothing, "a folder");
        assert_eq!(told("/home/anna", "there/rc"), Told::Text("elsewhere".into()));
        tree.link("/home/berta", "anna");
        assert_eq!(told("/home/berta", "there/rc"), Told::Text("elsewhere".into()), "where a home lies is no person's");
    }
}
