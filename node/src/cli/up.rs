//! `postern up`: start the agent if need be, join if need be, connect, and show what may be reached.

use std::{
    io::Write,
    os::unix::{fs::OpenOptionsExt, process::CommandExt},
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use clap::Args;
use zeroize::Zeroizing;

use super::{
    Failure, Outcome, Places, client, qr, resources,
    show::{self, Mark},
};
use crate::{
    agent::{
        api::{Reply, Request, ResourceReport, StatusReport, StepUpReport},
        core::Notice,
        state::files::{self, FileError},
        target::ControllerTarget,
    },
    config::NodeConfig,
    host::privileges,
};

const START_PATIENCE: Duration = Duration::from_secs(15);
const SETTLE_PATIENCE: Duration = Duration::from_millis(1500);
/// Failed attempts after which the command no longer waits for an enrolled machine's controller.
const MAX_FAILURES: u32 = 3;
const MAX_TOKEN_BYTES: usize = 4096;
const UNIT: &str = "postern.service";

/// Connect this machine; join first if it has not yet
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  sudo postern up https://ctl.corp.example#k=4f9a...\n  sudo postern up https://ctl.corp.example#k=4f9a... --token-file /run/token\n  sudo postern up        # again, after `postern down`"
)]
pub(super) struct Up {
    /// The join link, as the administrator gave it; not needed again on a machine that has joined
    url: Option<ControllerTarget>,
    /// Join as a service, with the enrolment token in this file (`-` reads standard input)
    #[arg(long, value_name = "FILE", requires = "url")]
    token_file: Option<PathBuf>,
    /// The name that the machine would like [default: its host name]
    #[arg(long)]
    name: Option<String>,
    /// Open no browser
    #[arg(long)]
    no_browser: bool,
    /// Give up after this many seconds
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

impl Up {
    pub(super) fn run(self, places: &Places) -> Outcome {
        NodeConfig::load(places.config.as_deref())?;
        let token = self.token_file.as_ref().map(read_token).transpose()?;
        if let Some(seconds) = self.timeout {
            let json = places.json;
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_secs(seconds));
                show::error(
                    &format!("not connected within {seconds} s; the agent goes on trying: postern status"),
                    json,
                );
                std::process::exit(1);
            });
        }
        let request = Request::Up {
            target: self.url.as_ref().map(ToString::to_string),
            token: token.map(|token| token.to_string()),
            name: self.name.clone(),
        };
        let mut exchange = begin(places, &request)?;
        let mut failures = 0;
        while let Some(reply) = exchange.next()? {
            let Reply::Notice { notice } = reply else { return Err(client::confused()) };
            if let Notice::Retrying { error, .. } = &notice {
                failures += 1;
                if failures >= MAX_FAILURES {
                    return Err(Failure::Failed(format!("{error}\nThe agent goes on trying: postern status")));
                }
            }
            if places.json {
                show::json(&notice);
            } else {
                self.show(&notice);
            }
        }
        let (status, resources, step_ups) = settled(places)?;
        if places.json {
            show::json(&serde_json::json!({ "resources": resources, "step_ups": step_ups }));
        } else {
            show_resources(&status, &resources, &step_ups);
        }
        Ok(ExitCode::SUCCESS)
    }

    fn show(&self, notice: &Notice) {
        match notice {
            Notice::SignIn { code, url, url_with_code, fingerprint, .. } => {
                let (code, url) = (show::paint(&show::safe(code), "1"), show::safe(url));
                show::line(&format!("Sign in to confirm this machine:  {url}   code  {code}"));
                show::line(&format!("The page shows this machine's key:  {}", show::safe(fingerprint)));
                qr::print(url_with_code);
                if !self.no_browser && open_browser(url_with_code) {
                    show::line("(a browser was opened)");
                }
            }
            Notice::Joined { subject, machine, person } => {
                let (subject, machine) = (show::safe(subject), show::safe(machine));
                let verb = if *person { "Signed in" } else { "Joined" };
                show::marked(Mark::Good, &format!("{verb} as {subject}, machine {machine}"));
            }
            Notice::Retrying { error, after_ms } => {
                let wait = after_ms.div_ceil(1000);
                let _ = writeln!(std::io::stderr(), "{}; trying again in {wait} s", show::safe(error));
            }
            Notice::SessionEnded { reason } => {
                show::marked(Mark::Watch, &format!("the login session has ended: {}", show::safe(reason)));
            }
            Notice::Connecting { .. }
            | Notice::Enforcing { .. }
            | Notice::StepUp { .. }
            | Notice::SteppedUp { .. }
            | Notice::StepUpFailed { .. }
            | Notice::Failed { .. } => {}
        }
    }
}

type Settled = (Box<StatusReport>, Vec<ResourceReport>, Vec<StepUpReport>);

/// Returns what the machine may do. A machine that has just joined is told its first permissions a moment after its first
/// document, so an empty answer is asked again for a while.
fn settled(places: &Places) -> Result<Settled, Failure> {
    let begun = Instant::now();
    loop {
        let Reply::Resources { resources, step_ups } = client::ask(places, &Request::Resources)?.only()? else {
            return Err(client::confused());
        };
        let Reply::Status(status) = client::ask(places, &Request::Status)?.only()? else {
            return Err(client::confused());
        };
        if !resources.is_empty() || status.peers_in > 0 || begun.elapsed() > SETTLE_PATIENCE {
            return Ok((status, resources, step_ups));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn show_resources(status: &StatusReport, list: &[ResourceReport], step_ups: &[StepUpReport]) {
    for problem in &status.problems {
        show::marked(Mark::Bad, &show::safe(problem));
    }
    let mut may = Vec::new();
    if status.resources_out > 0 || status.peers_in == 0 {
        let until = status.session_until.map(|until| format!(" until {}", show::time(until))).unwrap_or_default();
        may.push(format!("{}{until}", show::count(status.resources_out, "resource", "resources")));
    }
    if status.peers_in > 0 {
        may.push(format!("{} may come in", show::count(status.peers_in, "peer", "peers")));
    }
    let end = if list.is_empty() { "." } else { ", renewed every few minutes:" };
    show::marked(Mark::Good, &format!("{}{end}", may.join("; ")));
    resources::table(list, step_ups, "    ");
}

fn read_token(path: &PathBuf) -> Result<Zeroizing<String>, Failure> {
    let failed =
        |error: std::io::Error| Failure::Failed(format!("cannot read the token in {}: {error}", path.display()));
    let text = if path.as_os_str() == "-" {
        std::io::read_to_string(std::io::stdin().lock()).map_err(failed)?
    } else {
        std::fs::read_to_string(path).map_err(failed)?
    };
    let text = Zeroizing::new(text);
    let token = text.trim();
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES || token.chars().any(char::is_whitespace) {
        return Err(Failure::Failed(format!("{} does not hold one enrolment token (pst_join_...)", path.display())));
    }
    Ok(Zeroizing::new(token.to_owned()))
}

/// Asks the agent, which is started if need be. One that is just ending is waited for, and another is started.
fn begin(places: &Places, request: &Request) -> Result<client::Exchange, Failure> {
    for _attempt in 0..3 {
        if !client::is_answering(places) {
            privileges::check().map_err(|error| Failure::Failed(error.to_string()))?;
            start_agent(places)?;
        }
        if let Ok(mut exchange) = client::ask(places, request)
            && exchange.is_heard()
        {
            return Ok(exchange);
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    client::ask(places, request)
}

/// Starts the systemd unit if it is installed and these are its places, else an agent of our own.
fn start_agent(places: &Places) -> Result<(), Failure> {
    if has_default_places(places) && unit_is_installed() {
        let started = Command::new("systemctl").args(["start", UNIT]).status();
        if !started.is_ok_and(|status| status.success()) {
            return Err(Failure::Failed(format!("systemd cannot start {UNIT}: journalctl -u {UNIT}")));
        }
        return wait_for_agent(places, None);
    }
    let program = std::env::current_exe()
        .map_err(|error| Failure::Failed(format!("cannot find the postern program: {error}")))?;
    files::make_directory(&places.state_dir, 0o700).map_err(|error| Failure::Failed(error.to_string()))?;
    let log = places.state_dir.join("agent.log");
    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(&log)
        .map_err(|error| Failure::Failed(FileError::new("write", &log, error).to_string()))?;
    // A disk that is full is noticed here, where it can still be said.
    let version = env!("CARGO_PKG_VERSION");
    writeln!(file, "postern {version} is started by `postern up`")
        .map_err(|error| Failure::Failed(FileError::new("write", &log, error).to_string()))?;
    let before = file.metadata().map(|metadata| metadata.len()).unwrap_or(0);
    let errors = file.try_clone().map_err(|error| Failure::Failed(error.to_string()))?;
    let mut command = Command::new(program);
    command.arg("--state-dir").arg(&places.state_dir).arg("--runtime-dir").arg(&places.runtime_dir);
    command.arg("--socket").arg(places.socket());
    if let Some(config) = &places.config {
        command.arg("--config").arg(config);
    }
    command.args(["run", "--detached"]).stdin(Stdio::null()).stdout(file).stderr(errors).process_group(0);
    let mut agent = command.spawn().map_err(|error| Failure::Failed(format!("cannot start the agent: {error}")))?;
    let ended = || match agent.try_wait() {
        Ok(Some(_)) => {
            let text = std::fs::read(&log).unwrap_or_default();
            let said = text.get(usize::try_from(before).unwrap_or(0)..).unwrap_or_default();
            let said = String::from_utf8_lossy(said);
            let line = said.rfind("error: ").map(|at| said[at + 7..].trim().to_owned());
            Some(line.unwrap_or_else(|| format!("the agent ended at once; see {}", log.display())))
        }
        Ok(None) | Err(_) => None,
    };
    wait_for_agent(places, Some(Box::new(ended)))
}

type Ended<'a> = Option<Box<dyn FnMut() -> Option<String> + 'a>>;

fn wait_for_agent(places: &Places, mut ended: Ended<'_>) -> Result<(), Failure> {
    let begun = Instant::now();
    while begun.elapsed() < START_PATIENCE {
        if client::is_answering(places) {
            return Ok(());
        }
        if let Some(error) = ended.as_mut().and_then(|ended| ended()) {
            return Err(Failure::Failed(error));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Err(Failure::Failed(format!("the agent did not answer at {} within 15 s", places.socket().display())))
}

fn has_default_places(places: &Places) -> bool {
    places.config.is_none()
        && places.socket.is_none()
        && places.state_dir == std::path::Path::new(crate::config::DEFAULT_STATE)
        && places.runtime_dir == std::path::Path::new(crate::config::DEFAULT_RUNTIME)
}

fn unit_is_installed() -> bool {
    std::path::Path::new("/run/systemd/system").exists()
        && Command::new("systemctl")
            .args(["cat", UNIT])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
}

/// Opens the page in the browser of the person's desktop session, if there is one.
pub(super) fn open_browser(url: &str) -> bool {
    let desktop = ["DISPLAY", "WAYLAND_DISPLAY"].iter().any(|name| std::env::var_os(name).is_some());
    if !desktop || !url.starts_with("https://") {
        return false;
    }
    let mut command = Command::new("xdg-open");
    // A browser as root is refused, and rightly: it belongs to the person who typed sudo.
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    if let (Some(uid), Some(gid)) = (number("SUDO_UID"), number("SUDO_GID")) {
        command.uid(uid).gid(gid);
    }
    command.arg(url).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().is_ok()
}
