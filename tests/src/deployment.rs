//! A whole Postern in the lab: a controller, servers that joined with tokens, machines of people, all by the real
//! programs and their real commands.
//!
//! ```text
//! Deployment::start("name")            a controller on the host `ctl`, https://ctl
//!   .add_user("alice", &["payroll"])   local account; its password is PASSWORD
//!   .apply_policy(text)
//!   .server("payroll", ..)             host, agent, token, joined
//!   .laptop("laptop")                  host and agent, nobody signed in
//!   .sign_in(&laptop, "alice")         `postern up`, then the pages as a browser does them
//! ```

use std::{net::IpAddr, path::PathBuf, sync::Mutex, time::Duration};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::{
    browser::{Browser, Page},
    lab::{
        binaries,
        host::Host,
        process::{Background, HostCommand, Signal},
        topology::Lab,
        wait::eventually,
    },
};

/// The password of every account in the lab.
pub const PASSWORD: &str = "correct horse battery staple";
/// Where the controller's own certificate authority is written for browsers on each machine.
const AUTHORITY: &str = "/run/postern-ca.pem";
/// Where the controller's files are on its machine.
const CONTROLLER: &str = "/etc/postern-controller";
/// Where on each machine a test puts the milliseconds by which the programs' wall clock is moved; nothing is moved unless it is there.
pub const WALL_OFFSET: &str = "/run/postern-wall-offset";
/// Where on each machine a test puts files that stand for the machine's own when it looks at its posture; its own count unless it is
/// there.
pub const POSTURE_ROOT: &str = "/run/posture-root";
const POSTURE_ROOT_VARIABLE: &str = "POSTERN_TEST_POSTURE_ROOT";
const WALL_OFFSET_VARIABLE: &str = "POSTERN_TEST_WALL_OFFSET_FILE";
/// How long a step of the whole may take on a busy machine before it counts as failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A lab with a controller in it.
#[derive(Debug)]
pub struct Deployment {
    /// The machines and their network.
    pub lab: Lab,
    /// The controller's machine.
    pub controller: Host,
    serve: Mutex<Option<Background>>,
    join_url: String,
}

/// A machine with an agent.
#[derive(Debug)]
pub struct Node {
    /// The machine.
    pub host: Host,
    program: PathBuf,
    environment: Vec<(String, String)>,
    agent: Mutex<Option<Background>>,
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl Deployment {
    /// Starts a controller as `init` makes it.
    ///
    /// # Errors
    /// Fails with what the programs said.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_with(name, |_host, config| Ok(config))
    }

    /// Starts a controller whose `controller.toml` was changed by `edit` before.
    ///
    /// # Errors
    /// Fails with what the programs said.
    pub fn start_with(name: &str, edit: impl FnOnce(&Host, String) -> Result<String>) -> Result<Self> {
        let lab = Lab::new(name)?;
        let controller = lab.host("ctl")?;
        controller
            .command(binaries::find("postern-controller")?)
            .args(["init", "--dir", CONTROLLER, "--url", "https://ctl"])
            .run()?
            .ok()?;
        let file = format!("{CONTROLLER}/controller.toml");
        let edited = edit(&controller, controller.read(&file)?)?;
        controller.write(&file, edited)?;
        let mut deployment = Self { lab, controller, serve: Mutex::new(None), join_url: String::new() };
        deployment.start_controller()?;
        deployment.join_url = deployment.ctl(&["join-url"])?.trim().to_owned();
        Ok(deployment)
    }

    /// Starts the controller's program and waits until it answers.
    ///
    /// # Errors
    /// Fails with its log.
    pub fn start_controller(&self) -> Result<()> {
        let serve = self.controller_command()?.arg("serve").spawn()?;
        *lock(&self.serve) = Some(serve);
        let answered = eventually(PATIENCE, "the controller does not answer", || {
            self.controller_command().ok()?.arg("status").run().ok()?.success().then_some(())
        });
        answered.with_context(|| lock(&self.serve).as_ref().map(Background::output).unwrap_or_default())
    }

    /// Ends the controller's program with a signal and waits until it is gone.
    ///
    /// # Errors
    /// Fails when it does not end.
    pub fn stop_controller(&self, signal: Signal) -> Result<()> {
        if let Some(mut serve) = lock(&self.serve).take() {
            serve.signal(signal)?;
            serve.wait(PATIENCE)?;
        }
        Ok(())
    }

    /// Returns what the controller has logged since it was started.
    pub fn controller_log(&self) -> String {
        lock(&self.serve).as_ref().map(Background::output).unwrap_or_default()
    }

    /// Prepares `postern-controller` with its configuration.
    ///
    /// # Errors
    /// Fails when it is not built.
    pub fn controller_command(&self) -> Result<HostCommand> {
        let program = binaries::find("postern-controller")?;
        let command = self.controller.command(program).env(WALL_OFFSET_VARIABLE, WALL_OFFSET);
        Ok(command.args(["--config", &format!("{CONTROLLER}/controller.toml")]))
    }

    /// Runs a command of `postern-controller` and returns what it printed.
    ///
    /// # Errors
    /// Fails with what it said when it fails.
    pub fn ctl(&self, arguments: &[&str]) -> Result<String> {
        self.controller_command()?.args(arguments).run()?.ok()
    }

    /// Runs a command of `postern-controller` with `--json`.
    ///
    /// # Errors
    /// Fails with what it said when it fails or prints no JSON.
    pub fn ctl_json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.controller_command()?.arg("--json").args(arguments).run()?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Returns what the controller's own `explain` says of a person and a destination, whatever the answer is.
    pub fn explain(&self, login: &str, to: &str) -> String {
        let said =
            self.controller_command().and_then(|command| command.args(["explain", "--as", login, "--to", to]).run());
        said.map(|output| output.text()).unwrap_or_default()
    }

    /// Makes a policy document the one in force.
    ///
    /// # Errors
    /// Fails with the mistakes in it.
    pub fn apply_policy(&self, text: &str) -> Result<String> {
        self.controller.write("/run/policy.toml", text)?;
        self.ctl(&["policy", "apply", "/run/policy.toml"])
    }

    /// Makes a local account with [`PASSWORD`].
    ///
    /// # Errors
    /// Fails with what the command said.
    pub fn add_user(&self, login: &str, groups: &[&str]) -> Result<()> {
        let mut command = self.controller_command()?.args(["user", "add", login, "--password-file", "-"]);
        for group in groups {
            command = command.args(["--group", group]);
        }
        command.stdin(PASSWORD).run()?.ok().map(drop)
    }

    /// Makes a machine with an agent on the first network; nobody is signed in.
    ///
    /// # Errors
    /// Fails with the agent's log when it does not start.
    pub fn machine(&self, name: &str, node_toml: &str) -> Result<Node> {
        self.adopt(self.lab.host(name)?, node_toml)
    }

    /// Starts an agent on a machine that is there already.
    ///
    /// # Errors
    /// Fails with the agent's log when it does not start.
    pub fn adopt(&self, host: Host, node_toml: &str) -> Result<Node> {
        self.adopt_with(host, node_toml, &[])
    }

    /// As [`Deployment::adopt`], with further variables in the environment of `postern`.
    ///
    /// # Errors
    /// Fails with the agent's log when it does not start.
    pub fn adopt_with(&self, host: Host, node_toml: &str, environment: &[(&str, &str)]) -> Result<Node> {
        let authority = self.controller.read(format!("{CONTROLLER}/keys/ca.crt"))?;
        host.write(AUTHORITY, authority)?;
        host.write("/etc/postern/node.toml", node_toml)?;
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let node = Node { host, program: binaries::find("postern")?, environment, agent: Mutex::new(None) };
        node.start()?;
        Ok(node)
    }

    /// Makes a server that joined with a token made for its tags.
    ///
    /// # Errors
    /// Fails with what the programs said.
    pub fn server(&self, name: &str, tags: &[&str], service: Option<&str>) -> Result<Node> {
        self.server_with(name, tags, service, "")
    }

    /// Makes a server with a `node.toml` of its own.
    ///
    /// # Errors
    /// Fails with what the programs said.
    pub fn server_with(&self, name: &str, tags: &[&str], service: Option<&str>, node_toml: &str) -> Result<Node> {
        let node = self.machine(name, node_toml)?;
        self.enrol(&node, tags, service)?;
        Ok(node)
    }

    /// Joins a machine as a server.
    ///
    /// # Errors
    /// Fails with what the programs said.
    pub fn enrol(&self, node: &Node, tags: &[&str], service: Option<&str>) -> Result<()> {
        let mut arguments = vec!["token", "create"];
        tags.iter().for_each(|tag| arguments.extend(["--tag", tag]));
        if let Some(service) = service {
            arguments.extend(["--service", service]);
        }
        let token = self.ctl_json(&arguments)?;
        let token = token["token"].as_str().context("the answer has no token")?;
        node.host.write("/run/token", token)?;
        node.postern(&["up", &self.join_url, "--token-file", "/run/token"])?;
        Ok(())
    }

    /// Makes a machine of a person: an agent, nobody signed in.
    ///
    /// # Errors
    /// Fails with the agent's log when it does not start.
    pub fn laptop(&self, name: &str) -> Result<Node> {
        self.machine(name, "")
    }

    /// Returns the link with which machines join.
    pub fn join_url(&self) -> &str {
        &self.join_url
    }

    /// Signs a person in on a machine: `postern up` shows a code, a browser on the same machine does the rest.
    ///
    /// # Errors
    /// Fails with the page or the output that was not as it should be.
    pub fn sign_in(&self, node: &Node, login: &str) -> Result<String> {
        let (mut up, code) = self.begin_sign_in(node)?;
        let browser = self.browser(&node.host)?;
        let page = self.confirm_page(&browser, &code, login)?;
        let form = page.form("/join/confirm")?;
        let page = browser.patiently(|| browser.submit(&form, &[]))?;
        ensure!(page.status == 200, "the page after confirming: {} {}", page.status, page.text());
        let status = up.wait(PATIENCE)?;
        ensure!(status.success(), "`postern up` ended with {status}\n{}", up.output());
        Ok(up.output())
    }

    /// Begins `postern up` and returns it with the code that it shows.
    ///
    /// # Errors
    /// Fails with its output when no code comes.
    pub fn begin_sign_in(&self, node: &Node) -> Result<(Background, String)> {
        let up = node.command().args(["up", &self.join_url]).spawn()?;
        let code = eventually(PATIENCE, "`postern up` shows no code", || find_code(&up.output()))
            .with_context(|| format!("{}\n{}", up.output(), node.log()))?;
        Ok((up, code))
    }

    /// Opens a browser on a machine.
    ///
    /// # Errors
    /// Fails when the machine cannot keep cookies.
    pub fn browser(&self, host: &Host) -> Result<Browser> {
        host.write(AUTHORITY, self.controller.read(format!("{CONTROLLER}/keys/ca.crt"))?)?;
        Browser::open(host, AUTHORITY)
    }

    /// Follows a code's link, signs in with a local account, and returns the page that asks for confirmation.
    ///
    /// # Errors
    /// Fails with the page that was not as it should be.
    pub fn confirm_page(&self, browser: &Browser, code: &str, login: &str) -> Result<Page> {
        let link = format!("https://ctl/join?code={code}");
        // Where there were too many attempts, it begins again: signed in by then, or not.
        let page = browser.patiently(|| {
            let page = browser.get(&link)?;
            match page.form("password") {
                Ok(form) => browser.submit(&form, &[("login", login), ("password", PASSWORD)]),
                Err(_) => Ok(page),
            }
        })?;
        ensure!(page.body.contains("/join/confirm"), "no question on {} ({}): {}", page.url, page.status, page.text());
        Ok(page)
    }
}

/// Finds a join code, four letters and four digits, in a text.
fn find_code(text: &str) -> Option<String> {
    let good = |word: &&str| {
        let (letters, digits) = word.split_once('-').unwrap_or_default();
        letters.len() == 4
            && digits.len() == 4
            && letters.bytes().all(|c| c.is_ascii_uppercase())
            && digits.bytes().all(|c| c.is_ascii_digit())
    };
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '-')).find(good).map(str::to_owned)
}

impl Node {
    /// Starts the agent in the foreground of a background process, and waits until it answers.
    ///
    /// # Errors
    /// Fails with its log.
    pub fn start(&self) -> Result<()> {
        *lock(&self.agent) = Some(self.command().arg("run").spawn()?);
        let what = format!("the agent on {} does not answer", self.host.name());
        // `status` says no until the machine has joined, but it says so on standard output.
        let answers = || (!self.command().arg("status").run().ok()?.stdout.is_empty()).then_some(());
        eventually(PATIENCE, &what, answers).with_context(|| self.log())
    }

    /// Ends the agent with a signal and waits until it is gone.
    ///
    /// # Errors
    /// Fails when it does not end.
    pub fn stop(&self, signal: Signal) -> Result<()> {
        if let Some(mut agent) = lock(&self.agent).take() {
            agent.signal(signal)?;
            agent.wait(PATIENCE)?;
        }
        Ok(())
    }

    /// Sends the agent a signal that does not end it.
    ///
    /// # Errors
    /// Fails when the agent does not run.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        lock(&self.agent).as_ref().context("the agent does not run")?.signal(signal)
    }

    /// Returns the agent's process, as this machine's `/proc` names it.
    pub fn pid(&self) -> Option<u32> {
        lock(&self.agent).as_ref().and_then(Background::pid)
    }

    /// Returns what the agent has logged.
    pub fn log(&self) -> String {
        lock(&self.agent).as_ref().map(Background::output).unwrap_or_default()
    }

    /// Prepares `postern`.
    pub fn command(&self) -> HostCommand {
        let command = self.host.command(&self.program).env(WALL_OFFSET_VARIABLE, WALL_OFFSET);
        let command = command.env(POSTURE_ROOT_VARIABLE, POSTURE_ROOT);
        self.environment.iter().fold(command, |command, (name, value)| command.env(name, value))
    }

    /// Runs a command of `postern` and returns what it printed.
    ///
    /// # Errors
    /// Fails with what it said, and with the agent's log, when it fails.
    pub fn postern(&self, arguments: &[&str]) -> Result<String> {
        self.command().args(arguments).run()?.ok().with_context(|| format!("--- the agent's log\n{}", self.log()))
    }

    /// Runs a command of `postern` with `--json`.
    ///
    /// # Errors
    /// Fails with what it said when it fails or prints no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.command().arg("--json").args(arguments).run()?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))
    }

    /// Returns the machine's overlay address of one family.
    ///
    /// # Errors
    /// Fails when there is none after a while.
    pub fn overlay(&self, family: Family) -> Result<IpAddr> {
        let word = match family {
            Family::V4 => "inet",
            Family::V6 => "inet6",
        };
        eventually(PATIENCE, &format!("{} has no overlay address", self.host.name()), || {
            let text = self.host.command("ip").args(["-j", "address", "show", "dev", "postern0"]).run().ok()?;
            let links: Value = serde_json::from_str(&text.stdout).ok()?;
            let addresses = links[0]["addr_info"].as_array()?;
            let found = addresses.iter().find(|a| a["family"] == word && a["scope"] == "global")?;
            found["local"].as_str()?.parse().ok()
        })
        .with_context(|| self.log())
    }
}

/// A family of addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::V4, Self::V6];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_and_nothing_else_is_taken_for_one() {
        assert_eq!(find_code("Sign in:  https://ctl/join   code  KTRM-4821\n").as_deref(), Some("KTRM-4821"));
        assert_eq!(find_code("https://ctl/join?code=KTRM-4821").as_deref(), Some("KTRM-4821"));
        assert_eq!(find_code("2026-11-22 node-1234 abcd-1234"), None);
    }
}
