//! Notices on the person's desktop, where there is one: a step-up waits for them.
//!
//! The agent runs as root, and a session bus lets only its own user in. So a small program of the desktop's, `notify-send`,
//! is started as that user, for each user with a session bus under `/run/user`; `notify_command` in `node.toml` names
//! another, or none (`""`). It gets a title and a text as its last two arguments, never through a shell.
//!
//! Bounds: [`MAX_DESKTOPS`] users; a program that hangs is killed after [`PATIENCE`]; the core bounds how often there is a
//! notice. Rejected: speaking D-Bus ourselves, which brings a large library for one message, and changes of user inside this
//! process.

use std::{os::unix::fs::MetadataExt, path::PathBuf, process::Stdio, time::Duration};

use tokio::process::Command;
use tracing::debug;

use super::Agent;
use crate::agent::core::Notice;

/// The most desktops that one notice goes to.
const MAX_DESKTOPS: usize = 8;
/// How long the program may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// User identifiers from here on are people's.
const FIRST_PERSON: u32 = 1000;
const USERS: &str = "/run/user";

impl Agent {
    /// Shows a notice about a step-up on the desktop.
    pub(super) fn notify_desktop(&self, notice: &Notice) {
        let Notice::StepUp { resource, demand, url, .. } = notice else { return };
        let (title, text) = (format!("{resource} needs {demand}"), format!("Confirm it is you: {url}"));
        match self.config.notify_command.as_deref() {
            Some("") => {}
            Some(program) => start(Command::new(program), &title, &text),
            None => desktops().into_iter().for_each(|desktop| start(desktop.command(), &title, &text)),
        }
    }
}

/// Somebody's session bus.
struct Desktop {
    bus: PathBuf,
    uid: u32,
    gid: u32,
}

impl Desktop {
    fn command(&self) -> Command {
        let mut command = Command::new("notify-send");
        command.args(["--app-name=Postern", "--icon=dialog-password", "--"]);
        command.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", self.bus.display()));
        command.uid(self.uid).gid(self.gid);
        command
    }
}

fn desktops() -> Vec<Desktop> {
    let Ok(users) = std::fs::read_dir(USERS) else { return vec![] };
    let desktop = |entry: std::io::Result<std::fs::DirEntry>| {
        let folder = entry.ok()?;
        let bus = folder.path().join("bus");
        let owner = std::fs::metadata(folder.path()).ok()?;
        let is_persons = owner.uid() >= FIRST_PERSON && bus.exists();
        is_persons.then(|| Desktop { bus, uid: owner.uid(), gid: owner.gid() })
    };
    users.filter_map(desktop).take(MAX_DESKTOPS).collect()
}

fn start(mut command: Command, title: &str, text: &str) {
    command.args([title, text]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    match command.spawn() {
        Ok(mut child) => drop(tokio::spawn(async move { tokio::time::timeout(PATIENCE, child.wait()).await })),
        Err(error) => debug!(%error, "no notice on the desktop"),
    }
}
