//! `checks`: commands that the machine's administrator named; exit code 0 is a pass.
//!
//! ```text
//! node.toml --> schedule (one thread, one command at a time) --run--> result --> Results --collected--> Facts.checks, with its age
//! ```
//!
//! A command that could not be run, or took too long, has no result: its fact is missing, and missing meets nothing.
//!
//! Threats: a program that others than root can replace would be anybody's way to run something and to pass; it is not run. A command
//! inherits nothing of the agent's environment or files, runs as `nobody` unless `node.toml` says otherwise, and is killed with its
//! process group. What left that group may live on and keep the output open: nothing waits for it, nor for what cannot be killed.
//!
//! Rejected: a thread that reads the output. One that such a process keeps waiting would stay, one more at each run.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read},
    os::unix::{
        fs::MetadataExt,
        process::{CommandExt, ExitStatusExt},
    },
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use postern_common::{
    id::FactName,
    posture::{CheckResult, facts::MAX_TEXT},
    time::Monotonic,
};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{OFlags, fcntl_setfl},
};

use super::{config::CheckConfig, root::Root};

/// The most bytes of a command's output that are read.
const MAX_OUTPUT: usize = 4_096;
/// How often is read from a command's output before is looked whether it has ended: what a pipe holds.
const MAX_READS: usize = 16;
/// How often is looked whether a command has ended.
const LOOK: Duration = Duration::from_millis(20);
/// How long the end of a command that was killed is waited for.
const KILLED: Duration = Duration::from_secs(2);
/// What a command finds its programs by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What one run of a command brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// Whether it ended with exit code 0.
    pub passed: bool,
    /// The first line of its output.
    pub said: String,
}

/// The newest result of each check, or why it has none.
#[derive(Debug, Clone, Default)]
pub struct Results(BTreeMap<FactName, (Result<Outcome, String>, Monotonic)>);

impl Results {
    /// Keeps what a run brought; tells whether that is another result than before.
    pub fn put(&mut self, name: &FactName, outcome: Result<Outcome, String>, at: Monotonic) -> bool {
        let before = self.0.insert(name.clone(), (outcome.clone(), at));
        before.is_none_or(|(before, _)| before != outcome)
    }

    /// Forgets every check that is not configured any more.
    pub fn keep(&mut self, configured: &BTreeMap<FactName, CheckConfig>) {
        self.0.retain(|name, _| configured.contains_key(name));
    }

    /// Tells whether every configured check has been run.
    pub fn has_all(&self, configured: &BTreeMap<FactName, CheckConfig>) -> bool {
        configured.keys().all(|name| self.0.contains_key(name))
    }

    /// Returns the results as facts, each with its age.
    pub fn facts(&self, now: Monotonic) -> BTreeMap<FactName, CheckResult> {
        let fact = |(name, (outcome, at)): (&FactName, &(Result<Outcome, String>, Monotonic))| {
            let outcome = outcome.as_ref().ok()?;
            let age_s = u32::try_from(now.since(*at).as_secs()).unwrap_or(u32::MAX);
            Some((name.clone(), CheckResult { passed: outcome.passed, said: outcome.said.clone(), age_s }))
        };
        self.0.iter().filter_map(fact).collect()
    }

    /// Lists why checks have no result, for the person at the machine.
    pub fn problems(&self) -> Vec<String> {
        let failed = self.0.iter().filter_map(|(name, (outcome, _))| Some((name, outcome.as_ref().err()?)));
        failed.map(|(name, why)| format!("check {name} has no result: {why}")).collect()
    }
}

/// Runs a check.
///
/// # Errors
/// Why it has no result, for the person at the machine.
pub fn run(root: &Root, check: &CheckConfig) -> Result<Outcome, String> {
    let [program, arguments @ ..] = &check.command[..] else { return Err("it names no command".into()) };
    let real = only_roots(Path::new(program))?;
    let user = user(root, &check.user)?;
    // What was looked at is what runs, wherever a link leads by now.
    let mut command = Command::new(real);
    command
        .arg0(program)
        .args(arguments)
        .env_clear()
        .env("PATH", PATH)
        .env("LC_ALL", "C.UTF-8")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0);
    if let Some((uid, gid)) = user {
        command.uid(uid).gid(gid);
    }
    let mut child = command.spawn().map_err(|error| format!("cannot run {program} as {}: {error}", check.user))?;
    let output = child.stdout.take().expect("standard output was asked for");
    let mut said = Said::new(output);
    let ended = said.until_end(&mut child, check.timeout.get());
    kill_group(&child);
    let Some(status) = ended else {
        let gone = said.until_end(&mut child, KILLED).is_some();
        let lives = if gone { "" } else { ", and cannot be ended" };
        return Err(format!("it took longer than {}{lives}", check.timeout));
    };
    if let Some(signal) = status.signal() {
        return Err(format!("it was ended by signal {signal}"));
    }
    Ok(Outcome { passed: status.success(), said: first_line(&said.bytes) })
}

/// What a command says.
struct Said {
    /// Until its end was read.
    output: Option<ChildStdout>,
    bytes: Vec<u8>,
}

impl Said {
    fn new(output: ChildStdout) -> Self {
        let output = fcntl_setfl(&output, OFlags::NONBLOCK).is_ok().then_some(output);
        Self { output, bytes: vec![] }
    }

    /// Reads until the command has ended, `timeout` at most. Who else holds the output open is not waited for.
    fn until_end(&mut self, child: &mut Child, timeout: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + timeout;
        loop {
            let ended = child.try_wait().ok()?;
            self.read(); // after that look: what it said before its end is in the pipe
            if ended.is_some() || Instant::now() >= end {
                return ended;
            }
            match &self.output {
                Some(output) => {
                    let look = Timespec { tv_sec: 0, tv_nsec: LOOK.subsec_nanos().into() };
                    let _ = poll(&mut [PollFd::new(output, PollFlags::IN)], Some(&look)); // a reason to look again
                }
                None => std::thread::sleep(LOOK),
            }
        }
    }

    /// Reads what is there. More than is kept is read too: the command must not block on a full pipe.
    fn read(&mut self) {
        let mut buffer = [0; MAX_OUTPUT];
        for _ in 0..MAX_READS {
            let Some(output) = &mut self.output else { return };
            match output.read(&mut buffer) {
                Ok(0) => self.output = None,
                Ok(read) => {
                    let room = MAX_OUTPUT - self.bytes.len();
                    self.bytes.extend(&buffer[..read.min(room)]);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => self.output = None, // what came before is what it said
            }
        }
    }
}

/// Makes sure that nobody but root can have put the program there, nor the link by which it is named; returns where it is.
fn only_roots(program: &Path) -> Result<PathBuf, String> {
    let shown = program.display();
    let real = program.canonicalize().map_err(|error| format!("cannot find {shown}: {error}"))?;
    let folder = program.parent().map(Path::canonicalize).transpose();
    let folder = folder.map_err(|error| format!("cannot find {shown}: {error}"))?.unwrap_or_default();
    let named = program.symlink_metadata().map_err(|error| format!("cannot look at {shown}: {error}"))?;
    if named.uid() != 0 {
        return Err(format!("{shown} is not run: others than root may write {shown}"));
    }
    for part in real.ancestors().chain(folder.ancestors()).filter(|part| !part.as_os_str().is_empty()) {
        let found = std::fs::metadata(part).map_err(|error| format!("cannot look at {}: {error}", part.display()))?;
        let sticky = found.is_dir() && found.mode() & 0o1000 != 0;
        if found.uid() != 0 || (found.mode() & 0o022 != 0 && !sticky) {
            return Err(format!("{shown} is not run: others than root may write {}", part.display()));
        }
    }
    Ok(real)
}

/// Finds a user's numbers; `None` for root, as whom the agent runs.
fn user(root: &Root, name: &str) -> Result<Option<(u32, u32)>, String> {
    let users = root.text("/etc/passwd").unwrap_or_default();
    let users = if users.is_empty() { Root::at("/").text("/etc/passwd").unwrap_or_default() } else { users };
    let found = users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        (fields.first() == Some(&name)).then(|| Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?)))?
    });
    match found {
        Some((0, _)) => Ok(None),
        Some(numbers) => Ok(Some(numbers)),
        None => Err(format!("there is no user {name}")),
    }
}

fn kill_group(child: &Child) {
    if let Some(group) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL); // none may be left
    }
}

fn first_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let line = text.lines().next().unwrap_or_default().trim();
    let mut said: String = line.chars().filter(|c| !c.is_control()).take(MAX_TEXT).collect();
    while said.len() > MAX_TEXT {
        said.pop();
    }
    said
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use postern_common::diagnostics::HumanDuration;

    use super::*;

    fn check(script: &str) -> CheckConfig {
        let seconds = |n| HumanDuration::new(Duration::from_secs(n));
        CheckConfig {
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            user: "nobody".into(),
            every: seconds(60),
            timeout: seconds(10),
        }
    }

    fn ran(script: &str) -> Result<Outcome, String> {
        run(&Root::at("/"), &check(script))
    }

    #[test]
    fn an_exit_code_is_the_result_and_the_first_line_what_it_says() {
        let said = |passed, said: &str| Ok(Outcome { passed, said: said.into() });
        assert_eq!(ran("echo signatures of today; echo more"), said(true, "signatures of today"));
        assert_eq!(ran("printf 'bad \\033[2J news'; exit 3"), said(false, "bad [2J news"));
        assert_eq!(ran("exit 0"), said(true, ""));
        assert_eq!(ran("yes | head -c 100000").map(|outcome| outcome.passed), Ok(true), "much output blocks nothing");
    }

    #[test]
    fn a_command_has_neither_privileges_nor_the_agents_environment() {
        assert_eq!(ran("id -un; env").map(|outcome| outcome.said), Ok("nobody".into()));
        let variables = ran("env | cut -d= -f1 | sort | tr '\\n' ' '").expect("ran").said;
        assert_eq!(variables, "LC_ALL PATH PWD", "nothing is inherited");
        let as_root = CheckConfig { user: "root".into(), ..check("id -un") };
        assert_eq!(run(&Root::at("/"), &as_root).map(|outcome| outcome.said), Ok("root".into()));
        let nobody = CheckConfig { user: "no-such-user".into(), ..check("id") };
        assert_eq!(run(&Root::at("/"), &nobody), Err("there is no user no-such-user".into()));
    }

    #[test]
    fn a_command_that_takes_too_long_has_no_result_and_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("a mode");
        let mark = folder.path().join("child");
        let slow = CheckConfig {
            timeout: HumanDuration::new(Duration::from_millis(300)),
            ..check(&format!("sleep 60 & echo $! > {}; sleep 60", mark.display()))
        };
        assert_eq!(run(&Root::at("/"), &slow), Err("it took longer than 300 ms".into()));
        let child = std::fs::read_to_string(&mark).expect("the number of its child");
        let status = format!("/proc/{}/status", child.trim());
        let end = Instant::now() + Duration::from_secs(10);
        let lives = || std::fs::read_to_string(&status).is_ok_and(|text| !text.contains("Z (zombie)"));
        while lives() {
            assert!(Instant::now() < end, "its child lives on");
            std::thread::sleep(LOOK);
        }
    }

    #[test]
    fn a_helper_that_keeps_the_output_open_is_not_waited_for() {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("a mode");
        let mark = folder.path().join("helper");
        let mark = mark.display();
        let helper = format!("setsid sh -c 'echo $$ > {mark}.new; mv {mark}.new {mark}; exec sleep 60' &");
        let begun = Instant::now();
        let outcome = ran(&format!("{helper} until [ -s {mark} ]; do sleep 0.01; done; echo fine"));
        let took = begun.elapsed();
        let helper = std::fs::read_to_string(mark.to_string()).expect("the number of its helper");
        let helper = rustix::process::Pid::from_raw(helper.trim().parse().expect("a number")).expect("a process");
        rustix::process::kill_process(helper, rustix::process::Signal::KILL).expect("it lives on");
        assert_eq!(outcome, Ok(Outcome { passed: true, said: "fine".into() }));
        assert!(took < Duration::from_secs(20), "{took:?}");
    }

    #[test]
    fn what_was_looked_at_is_what_runs_by_the_name_that_was_given() {
        let folder = tempfile::tempdir().expect("a folder");
        let [program, link, shell] = ["program", "link", "shell"].map(|name| folder.path().join(name));
        std::fs::write(&program, "#!/bin/sh\necho $0\n").expect("a file");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).expect("a mode");
        std::os::unix::fs::symlink(&program, &link).expect("a link");
        std::os::unix::fs::symlink("/bin/sh", &shell).expect("a link");
        let says = |command: &[&str]| {
            let command = command.iter().map(|&word| word.into()).collect();
            run(&Root::at("/"), &CheckConfig { command, user: "root".into(), ..check("") }).map(|outcome| outcome.said)
        };
        let text = |path: &Path| path.display().to_string();
        assert_eq!(says(&[&text(&link)]), Ok(text(&program)), "the kernel was given the file, not the link");
        assert_eq!(says(&[&text(&shell), "-c", "echo $0"]), Ok(text(&shell)));
        std::os::unix::fs::lchown(&shell, Some(65_534), None).expect("an owner");
        let refused = says(&[&text(&shell), "-c", "echo $0"]).expect_err("its owner may lead it elsewhere");
        assert!(refused.contains("others than root may write"), "{refused}");
        std::os::unix::fs::lchown(&shell, Some(0), None).expect("an owner");
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).expect("a mode");
        assert!(says(&[&text(&shell), "-c", "echo $0"]).is_err(), "others may put another link there");
    }

    #[test]
    fn a_program_that_others_could_have_written_is_not_run() {
        let folder = tempfile::tempdir().expect("a folder");
        let program = folder.path().join("check");
        std::fs::write(&program, "#!/bin/sh\nexit 0\n").expect("a file");
        let runs = |mode: u32| {
            std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).expect("a mode");
            run(
                &Root::at("/"),
                &CheckConfig { command: vec![program.display().to_string()], user: "root".into(), ..check("") },
            )
        };
        assert_eq!(runs(0o755), Ok(Outcome { passed: true, said: String::new() }));
        let refused = runs(0o777).expect_err("anybody may write it");
        assert!(refused.contains("others than root may write"), "{refused}");
    }

    #[test]
    fn what_is_said_is_cut_to_its_bytes_and_not_within_a_character() {
        let said = first_line("ü".repeat(MAX_TEXT).as_bytes());
        assert_eq!(said, "ü".repeat(MAX_TEXT / 2));
        assert_eq!(first_line(b"a\x1b[2J\nb"), "a[2J");
    }

    #[test]
    fn a_result_ages_and_a_run_that_failed_takes_it_away() {
        let name: FactName = "edr-ok".parse().expect("a name");
        let mut results = Results::default();
        let passed = Ok(Outcome { passed: true, said: "fine".into() });
        assert!(results.put(&name, passed.clone(), Monotonic::from_millis(1_000)));
        assert!(!results.put(&name, passed, Monotonic::from_millis(2_000)));
        assert_eq!(results.facts(Monotonic::from_millis(32_000))[&name].age_s, 30);
        assert!(results.put(&name, Err("there is no user x".into()), Monotonic::from_millis(3_000)));
        assert!(results.facts(Monotonic::from_millis(4_000)).is_empty());
        assert_eq!(results.problems(), ["check edr-ok has no result: there is no user x"]);
    }
}
