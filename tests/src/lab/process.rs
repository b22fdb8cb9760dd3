//! Programs inside a host: run to their end, or kept in the background.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{Read, Write},
    os::unix::process::{CommandExt, ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use super::{host::Host, wait::eventually};

/// How long a program may run unless told otherwise.
const DEFAULT_TIME_LIMIT: Duration = Duration::from_secs(60);

/// A program to be started inside a host.
#[derive(Debug)]
#[must_use = "a command does nothing until `run` or `spawn`"]
pub struct HostCommand {
    host: Host,
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    input: Option<Vec<u8>>,
    time_limit: Duration,
}

/// What a program said until it ended.
#[derive(Debug, Clone)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote to standard output.
    pub stdout: String,
    /// What it wrote to standard error.
    pub stderr: String,
    /// How long it ran.
    pub elapsed: Duration,
}

impl Output {
    /// Tells whether it ended with zero.
    pub fn success(&self) -> bool {
        self.status.success()
    }

    /// Returns the exit code; `None` if a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Returns standard output if the program ended with zero.
    ///
    /// # Errors
    /// Fails with the command and everything that it said otherwise.
    pub fn ok(self) -> Result<String> {
        ensure!(
            self.success(),
            "`{}` ended with {}\n--- stdout\n{}--- stderr\n{}",
            self.command,
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }

    /// Returns what it said on both.
    pub fn text(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl HostCommand {
    pub(super) fn new(host: Host, program: impl AsRef<OsStr>) -> Self {
        Self {
            host,
            program: program.as_ref().to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            input: None,
            time_limit: DEFAULT_TIME_LIMIT,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Adds arguments.
    pub fn args<S: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = S>) -> Self {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Gives it something to read.
    pub fn stdin(mut self, input: impl Into<Vec<u8>>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Changes how long it may run (one minute).
    pub fn time_limit(mut self, limit: Duration) -> Self {
        self.time_limit = limit;
        self
    }

    fn line(&self) -> String {
        let words = std::iter::once(&self.program).chain(&self.arguments);
        words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    fn build(&self) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--target={}", self.host.holder_pid()))
            .args(["--net", "--mount", "--uts", "--ipc", "--pid", "--"])
            .arg(&self.program)
            .args(&self.arguments)
            .env("HOME", "/run/home")
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .current_dir("/")
            .process_group(0);
        command
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// Fails when it cannot be started or is still running after its time, and is then killed. An exit code other than
    /// zero is not an error here: see [`Output::ok`].
    pub fn run(self) -> Result<Output> {
        let line = format!("{}: {}", self.host.name(), self.line());
        let began = Instant::now();
        let mut command = self.build();
        command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), self.input) {
            std::thread::spawn(move || pipe.write_all(&input)); // a program need not read all of it
        }
        let read_all = |mut from: Box<dyn Read + Send>| {
            std::thread::spawn(move || {
                let mut bytes = Vec::new();
                let _ = from.read_to_end(&mut bytes);
                String::from_utf8_lossy(&bytes).into_owned()
            })
        };
        let stdout = read_all(Box::new(child.stdout.take().expect("it was piped")));
        let stderr = read_all(Box::new(child.stderr.take().expect("it was piped")));
        let mut guard = KillGroup { child };
        let ended =
            eventually(self.time_limit, &format!("`{line}` did not end"), || guard.child.try_wait().transpose());
        let in_time = ended.is_ok();
        if !in_time {
            guard.kill();
        }
        let (stdout, stderr) = (stdout.join().unwrap_or_default(), stderr.join().unwrap_or_default());
        match ended {
            Ok(status) => {
                let status = status.with_context(|| format!("cannot wait for `{line}`"))?;
                Ok(Output { command: line, status, stdout, stderr, elapsed: began.elapsed() })
            }
            Err(error) => Err(error.context(format!("--- stdout\n{stdout}--- stderr\n{stderr}"))),
        }
    }

    /// Starts it in the background. Standard output and error go to one log.
    ///
    /// # Errors
    /// Fails when it cannot be started.
    pub fn spawn(self) -> Result<Background> {
        let line = format!("{}: {}", self.host.name(), self.line());
        let name = Path::new(&self.program).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = self.host.new_log(&name);
        let out = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        let errors = out.try_clone().context("cannot share the log")?;
        let mut command = self.build();
        command.stdin(if self.input.is_some() { Stdio::piped() } else { Stdio::null() });
        command.stdout(out).stderr(errors);
        let mut child = command.spawn().with_context(|| format!("cannot start `{line}`"))?;
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), &self.input) {
            pipe.write_all(input).with_context(|| format!("`{line}` does not read"))?;
        }
        Ok(Background { guard: KillGroup { child }, line, log, host: self.host, ended: None })
    }
}

/// Kills the whole process group, `nsenter` and what it started, when dropped.
#[derive(Debug)]
struct KillGroup {
    child: Child,
}

impl KillGroup {
    fn kill(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            for pid in inner_pids(self.child.id()) {
                send(Signal::Kill, &pid.to_string());
            }
            send(Signal::Kill, &format!("-{}", self.child.id()));
            let _ = self.child.wait();
        }
    }
}

impl Drop for KillGroup {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A signal to a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// SIGTERM: please end.
    Terminate,
    /// SIGINT: as Control-C.
    Interrupt,
    /// SIGKILL: it learns nothing of it.
    Kill,
    /// SIGHUP.
    HangUp,
    /// SIGSTOP: stand still.
    Stop,
    /// SIGCONT: go on.
    Continue,
}

fn send(signal: Signal, target: &str) {
    let name = match signal {
        Signal::Terminate => "TERM",
        Signal::Interrupt => "INT",
        Signal::Kill => "KILL",
        Signal::HangUp => "HUP",
        Signal::Stop => "STOP",
        Signal::Continue => "CONT",
    };
    // The shell's own `kill`: the program of that name is not everywhere. It complains if the target is gone already.
    let _ = Command::new("sh").args(["-c", "kill -s \"$0\" -- \"$1\" 2>/dev/null", name, target]).status();
}

/// Returns what `nsenter` started: it forks, to enter the process namespace.
fn inner_pids(outer: u32) -> Vec<u32> {
    let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children")).unwrap_or_default();
    children.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// A program in the background; killed when dropped.
#[derive(Debug)]
pub struct Background {
    guard: KillGroup,
    line: String,
    log: PathBuf,
    host: Host,
    ended: Option<ExitStatus>,
}

impl Background {
    /// Returns everything that it has written so far.
    pub fn output(&self) -> String {
        std::fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    /// Returns the host that it runs in.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Waits until its output contains `text`, and returns the first line with it.
    ///
    /// # Errors
    /// Fails with the output when the deadline passes or the program ends before.
    pub fn wait_for_output(&mut self, text: &str, deadline: Duration) -> Result<String> {
        let what = format!("`{}` did not write {text:?}", self.line);
        let found = eventually(deadline, &what, || {
            let ended = !self.is_running(); // looked at first, so that its last words are not missed
            match self.output().lines().find(|line| line.contains(text)) {
                Some(line) => Some(Some(line.to_owned())),
                None => ended.then_some(None),
            }
        });
        match found {
            Ok(Some(line)) => Ok(line),
            Ok(None) => bail!("`{}` ended before it wrote {text:?}:\n{}", self.line, self.output()),
            Err(error) => Err(error.context(format!("its output was:\n{}", self.output()))),
        }
    }

    /// Tells whether it is still running.
    pub fn is_running(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.guard.child.try_wait().ok().flatten();
        }
        self.ended.is_none()
    }

    /// Returns the process identifier of the program itself, as the test sees it.
    pub fn pid(&self) -> Option<u32> {
        inner_pids(self.guard.child.id()).first().copied()
    }

    /// Sends a signal to the program itself, not to its children.
    ///
    /// # Errors
    /// Fails when it is not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = eventually(Duration::from_secs(5), "no process to signal", || self.pid())
            .with_context(|| format!("`{}` is not running:\n{}", self.line, self.output()))?;
        send(signal, &pid.to_string());
        Ok(())
    }

    /// Kills it as `kill -9` does, and waits until it is gone.
    pub fn kill(mut self) {
        self.guard.kill();
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// Fails when it is still running at the deadline.
    pub fn wait(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let what = format!("`{}` did not end", self.line);
        let ended = eventually(deadline, &what, || (!self.is_running()).then_some(()));
        ended.with_context(|| format!("its output was:\n{}", self.output()))?;
        Ok(self.ended.unwrap_or_else(|| ExitStatus::from_raw(0)))
    }

    /// Asks it to end and waits until it did.
    ///
    /// # Errors
    /// Fails when it does not end within the deadline.
    pub fn stop(mut self, deadline: Duration) -> Result<ExitStatus> {
        if self.is_running() {
            self.signal(Signal::Terminate)?;
        }
        self.wait(deadline)
    }
}
