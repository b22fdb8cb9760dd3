//! The desktop: `notify-send` as each person with a session bus, or the program that `node.toml` names.
//!
//! The agent runs as root, and a session bus lets only its own user in: so the program changes to that user before it starts, which
//! needs CAP_SETUID and CAP_SETGID (the shipped unit gives them). It gets a title and a text as its last two arguments, never through
//! a shell, `PATH` and the address of the bus, and nothing else of the agent's environment.
//!
//! Threats: between the change of user and the program's start a person may stop the process, and the start then never returns; a program
//! may hang, killed or not. So each has a thread of its own, which lasts until it is gone; meanwhile its person gets no other, and
//! `postern status` says so. [`MAX_BUSY`] at most.
//!
//! Rejected: speaking D-Bus ourselves, which brings a large library for one message, and changes of user inside this process.

use std::{
    fmt,
    os::unix::{
        fs::{FileTypeExt, MetadataExt},
        process::{CommandExt, ExitStatusExt},
    },
    process::{Child, Command, ExitStatus, Stdio},
    sync::mpsc::{Receiver, sync_channel},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use super::{Person, Words};

/// How long a program may take.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
/// What a busy machine needs beyond that to say so.
const GRACE: Duration = Duration::from_secs(1);
/// How long one that starts is waited for before the next is started.
const START: Duration = Duration::from_secs(1);
/// The most programs that are not gone yet.
const MAX_BUSY: usize = 16;
/// How often is looked whether they have ended.
const LOOK: Duration = Duration::from_millis(50);
const PATH: &str = "/usr/local/bin:/usr/bin:/bin";

/// A program that shows a notice.
pub(super) struct Program {
    command: Command,
    /// For people: what runs, and as whom.
    name: String,
}

/// Why one showed none.
#[derive(Debug)]
pub(super) struct Failure {
    program: String,
    why: String,
    /// There is no such program on this machine.
    pub(super) is_missing: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.program, self.why)
    }
}

/// The program that `node.toml` names.
pub(super) fn named(program: &str) -> Program {
    Program { command: clean(program), name: program.to_owned() }
}

/// `notify-send` for a person, if they have a session bus.
pub(super) fn notify_send(person: &Person, program: &str) -> Option<Program> {
    let bus = person.folder.join("bus");
    let found = bus.symlink_metadata().ok()?; // a link could lead to a file system that hangs
    let is_bus = found.file_type().is_socket() && found.uid() == person.uid;
    is_bus.then(|| {
        let mut command = clean(program);
        command.args(["--app-name=Postern", "--icon=dialog-password", "--"]);
        command.env("DBUS_SESSION_BUS_ADDRESS", format!("unix:path={}", bus.display()));
        command.uid(person.uid).gid(person.gid);
        Program { command, name: format!("{program} as user {}", person.uid) }
    })
}

fn clean(program: &str) -> Command {
    let mut command = Command::new(program);
    command.env_clear().env("PATH", PATH).env("LC_ALL", "C.UTF-8").current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

/// What went wrong with a program, and whether there is none.
type Ended = Option<(String, bool)>;

/// Programs run, each on a thread of its own.
#[derive(Debug)]
pub(super) struct Desktops {
    patience: Duration,
    /// Programs that are not gone yet.
    busy: Vec<(String, JoinHandle<()>)>,
}

impl Default for Desktops {
    fn default() -> Self {
        Self { patience: PATIENCE, busy: vec![] }
    }
}

impl Desktops {
    /// Runs all of them at once, and returns what failed. One that has not gone since the last notice is not started again.
    pub(super) fn run(&mut self, programs: Vec<Program>, words: &Words) -> Vec<Failure> {
        let start = |mut program: Program| {
            program.command.args([&words.title, &words.text]);
            (program.name, move || program.command.spawn())
        };
        self.attend(programs.into_iter().map(start).collect())
    }

    fn attend<S>(&mut self, programs: Vec<(String, S)>) -> Vec<Failure>
    where
        S: FnOnce() -> std::io::Result<Child> + Send + 'static,
    {
        self.busy.retain(|(_, thread)| !thread.is_finished());
        let (mut running, mut failed) = (vec![], vec![]);
        for (program, spawn) in programs {
            let is_busy = self.busy.len() >= MAX_BUSY || self.busy.iter().any(|(busy, _)| *busy == program);
            let started = match is_busy {
                true => Err("hangs since an earlier notice, and is not started again before it has ended".into()),
                false => on_a_thread(spawn, Instant::now() + self.patience)
                    .map_err(|error| format!("cannot be started: {error}")),
            };
            match started {
                Ok((thread, said)) => {
                    let end = Instant::now() + self.patience;
                    self.busy.push((program.clone(), thread));
                    running.push((program, said, end));
                }
                Err(why) => failed.push(Failure { program, why, is_missing: false }),
            }
        }
        for (program, said, end) in running {
            let ended = said.recv_timeout((end + GRACE).saturating_duration_since(Instant::now()));
            let why = ended.unwrap_or_else(|_| Some(("does not even start".into(), false)));
            failed.extend(why.map(|(why, is_missing)| Failure { program, why, is_missing }));
        }
        failed
    }
}

/// Starts a program on a thread, which lasts until the program is gone.
fn on_a_thread(
    spawn: impl FnOnce() -> std::io::Result<Child> + Send + 'static,
    end: Instant,
) -> std::io::Result<(JoinHandle<()>, Receiver<Ended>)> {
    let ((starts, started), (say, said)) = (sync_channel::<()>(0), sync_channel(1));
    let thread = std::thread::Builder::new().name("notice".into()).spawn(move || {
        let spawned = spawn();
        drop(starts);
        // Who does not listen any more has given this program up.
        match spawned {
            Ok(mut child) => {
                let status = ended_by(&mut child, end);
                let _ = say.send(trouble(status).map(|why| (why, false)));
                if status.is_none() {
                    let _ = child.wait(); // it was killed, and nothing of it stays behind once it has gone
                }
            }
            Err(error) => {
                let is_missing = error.kind() == std::io::ErrorKind::NotFound;
                let _ = say.send(Some((format!("cannot be started: {error}"), is_missing)));
            }
        }
    })?;
    // One after another: a child that is stopped before its program runs would hold open what the start of another waits for.
    let _ = started.recv_timeout(START);
    Ok((thread, said))
}

fn trouble(status: Option<ExitStatus>) -> Option<String> {
    match status {
        Some(status) if status.success() => None,
        Some(status) => Some(match (status.code(), status.signal()) {
            (Some(code), _) => format!("ended with exit code {code}"),
            (None, signal) => format!("was ended by signal {}", signal.unwrap_or_default()),
        }),
        None => Some(format!("took longer than {} s", PATIENCE.as_secs())),
    }
}

/// Waits for the end of a program, and kills it and what it started if that does not come.
fn ended_by(child: &mut Child, end: Instant) -> Option<ExitStatus> {
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Some(status);
        }
        if Instant::now() >= end {
            if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
                let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL); // it may just have ended
            }
            return None;
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::PermissionsExt, net::UnixListener};

    use super::*;

    fn words() -> Words {
        Words { title: "git needs MFA".into(), text: "Confirm it is you: https://ctl/x".into() }
    }

    fn script(folder: &std::path::Path, text: &str) -> String {
        let path = folder.join("program");
        std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).expect("written");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("runnable");
        path.display().to_string()
    }

    #[test]
    fn a_program_gets_title_and_text_and_none_of_the_agents_environment() {
        let folder = tempfile::tempdir().expect("a folder");
        let seen = folder.path().join("seen");
        let program = script(folder.path(), &format!("printf '%s\\n' \"$@\" > {0}; env >> {0}", seen.display()));
        assert!(std::env::var_os("CARGO_MANIFEST_DIR").is_some(), "there is something to inherit");
        assert!(Desktops::default().run(vec![named(&program)], &words()).is_empty());
        let seen = std::fs::read_to_string(seen).expect("it ran");
        assert!(seen.starts_with("git needs MFA\nConfirm it is you: https://ctl/x\n"), "{seen}");
        assert!(!seen.contains("CARGO"), "{seen}");
    }

    #[test]
    fn a_program_that_hangs_is_ended_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        let number = folder.path().join("number");
        let program =
            script(folder.path(), &format!("echo $$ > {0}.new; mv {0}.new {0}; exec sleep 600", number.display()));
        let mut desktops = Desktops { patience: Duration::from_secs(2), ..Desktops::default() };
        let failed = desktops.run(vec![named(&program)], &words());
        assert!(matches!(&failed[..], [failure] if failure.to_string().contains("took longer")), "{failed:?}");
        let number = std::fs::read_to_string(number).expect("it ran");
        let process = std::path::Path::new("/proc").join(number.trim());
        let end = Instant::now() + PATIENCE;
        while process.exists() && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
        assert!(!process.exists(), "not even a zombie");
    }

    #[test]
    fn a_start_that_never_returns_holds_nobody_else_up_and_is_not_tried_again_meanwhile() {
        let mut desktops = Desktops { patience: Duration::from_millis(100), ..Desktops::default() };
        let (go, gate) = sync_channel::<()>(1);
        let gate = std::sync::Arc::new(std::sync::Mutex::new(gate));
        let start = |stopped: bool| {
            let gate = gate.clone();
            move || {
                if stopped {
                    let _ = gate.lock().expect("nobody panics").recv();
                }
                Command::new("/bin/true").spawn()
            }
        };
        let both = |anna: bool| vec![("anna".to_owned(), start(anna)), ("bert".to_owned(), start(false))];
        let why = |failed: Vec<Failure>| failed.iter().map(ToString::to_string).collect::<Vec<_>>();
        let first = why(desktops.attend(both(true)));
        assert!(matches!(&first[..], [anna] if anna.starts_with("anna does not even start")), "{first:?}");
        let meanwhile = why(desktops.attend(both(false)));
        assert!(matches!(&meanwhile[..], [anna] if anna.starts_with("anna hangs")), "{meanwhile:?}");
        go.send(()).expect("the thread waits");
        let end = Instant::now() + PATIENCE;
        while desktops.busy.iter().any(|(_, thread)| !thread.is_finished()) && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
        assert_eq!(why(desktops.attend(both(false))), [""; 0], "it went on");
    }

    #[test]
    fn only_a_bus_of_the_persons_own_is_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let person = |uid| Person { uid, gid: uid, folder: folder.path().into() };
        let bus = folder.path().join("bus");
        assert!(notify_send(&person(1000), "notify-send").is_none(), "there is none");
        std::os::unix::fs::symlink("/dev/null", &bus).expect("made");
        assert!(notify_send(&person(1000), "notify-send").is_none(), "a link");
        std::fs::remove_file(&bus).expect("removed");
        let _listener = UnixListener::bind(&bus).expect("bound");
        assert!(notify_send(&person(1000), "notify-send").is_none(), "another's");
        std::os::unix::fs::chown(&bus, Some(1000), Some(1000)).expect("given away");
        assert!(notify_send(&person(1000), "notify-send").is_some());
    }

    /// Set in the process that runs under the unit's bounds: the folder of the scene.
    const INSIDE: &str = "POSTERN_TEST_DESKTOP";
    /// `nobody`: a bus wants a user who has a name.
    const ANNA: u32 = 65_534;

    /// What `configs/postern.service` bounds the agent to, as `setpriv` says it.
    fn bounds() -> String {
        let unit = include_str!("../../../../../configs/postern.service");
        let set =
            unit.lines().find_map(|line| line.strip_prefix("CapabilityBoundingSet=")).expect("the unit bounds it");
        let names = set.split_whitespace().map(|name| format!("+{}", name.trim_start_matches("CAP_").to_lowercase()));
        std::iter::once("-all".to_owned()).chain(names).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn a_notice_reaches_a_real_session_bus_under_the_bounds_of_the_shipped_unit() {
        if let Some(scene) = std::env::var_os(INSIDE) {
            let folder = std::path::PathBuf::from(scene);
            let person = Person { uid: ANNA, gid: ANNA, folder: folder.join("user") };
            let program = notify_send(&person, &folder.join("program").display().to_string()).expect("a bus");
            let failed = Desktops::default().run(vec![program], &words());
            return assert!(failed.is_empty(), "{failed:?}");
        }
        let scene = tempfile::tempdir().expect("a folder");
        let user = scene.path().join("user");
        std::fs::create_dir(&user).expect("made");
        std::fs::set_permissions(scene.path(), std::fs::Permissions::from_mode(0o755)).expect("open to her");
        std::os::unix::fs::chown(&user, Some(ANNA), Some(ANNA)).expect("given away");
        let (bus, seen) = (user.join("bus"), user.join("seen"));
        // The bus lets only its own user in: an answer of it shows who asked.
        let ask = "dbus-send --bus=\"$DBUS_SESSION_BUS_ADDRESS\" --print-reply --dest=org.freedesktop.DBus / org.freedesktop.DBus.GetId";
        script(scene.path(), &format!("{ask} > {0} && id -u >> {0} && id -G >> {0}", seen.display()));
        let as_anna = |program: &str| {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &ANNA.to_string(), "--regid", &ANNA.to_string(), "--clear-groups", program]);
            command
        };
        let address = format!("--address=unix:path={}", bus.display());
        let mut daemon = as_anna("dbus-daemon").args(["--session", "--nofork", &address]).spawn().expect("dbus-daemon");
        let end = Instant::now() + PATIENCE;
        while !bus.exists() && Instant::now() < end {
            std::thread::sleep(LOOK);
        }
        let own = std::env::current_exe().expect("this program");
        let name = std::thread::current().name().expect("the test's own").to_owned();
        let inside = Command::new("setpriv")
            .args(["--no-new-privs", "--bounding-set", &bounds(), "--inh-caps", "-all"])
            .arg(own)
            .args(["--exact", &name, "--nocapture"])
            .env(INSIDE, scene.path())
            .output()
            .expect("setpriv");
        let _ = daemon.kill();
        let _ = daemon.wait();
        let said = [inside.stdout, inside.stderr].concat();
        assert!(inside.status.success(), "{}", String::from_utf8_lossy(&said));
        let seen = std::fs::read_to_string(seen).expect("the program ran");
        assert!(seen.contains("string \"") && seen.ends_with(&format!("{ANNA}\n{ANNA}\n")), "{seen}");
    }
}
