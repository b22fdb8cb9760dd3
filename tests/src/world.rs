//! Postern in the lab: a controller, servers that joined with a token, laptops whose people sign in at the real pages.
//!
//! ```text
//! let controller = Controller::start(&lab, POLICY)?;
//! let payroll = Node::server(&lab, &controller, "payroll", &["payroll"], Plain::Open)?;
//! controller.add_person("alice@corp.example", PASSWORD, &["payroll"])?;
//! let laptop = Node::laptop(&lab, &controller, "alice-laptop")?;   laptop.sign_in(&controller, "alice@corp.example", PASSWORD)?;
//! laptop.resource_address("payroll-app")? ...
//! ```
//!
//! Everything is done by the commands that an operator and a person would type; nothing reaches into the programs.

use std::{
    net::IpAddr,
    sync::Mutex,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::{
    browser::{Browser, Page},
    lab::{
        binaries,
        host::Host,
        process::{Background, HostCommand, Output, Signal},
        topology::Lab,
        wait::eventually,
    },
    programs,
};

/// How long a program may take to be ready on a loaded machine.
pub const READY: Duration = Duration::from_secs(30);
/// Where the controller's configuration is, in its own machine.
pub const CONTROLLER_FILES: &str = "/etc/postern-controller";
/// Where people's machines keep the controller's authority for their browser.
const AUTHORITY: &str = "/etc/postern-lab-ca.pem";
/// The controller's machine and the name in its URL.
pub const CONTROLLER_NAME: &str = "ctl.corp.example";

/// A controller on a machine of its own.
#[derive(Debug)]
pub struct Controller {
    host: Host,
    serving: Mutex<Option<Background>>,
    join_url: String,
}

impl Controller {
    /// Makes a machine with a controller that enforces `policy` (TOML).
    ///
    /// # Errors
    /// Fails when it does not begin to serve soon.
    pub fn start(lab: &Lab, policy: &str) -> Result<Self> {
        Self::start_with(lab, policy, |toml| toml)
    }

    /// As [`Controller::start`], with a change to the `controller.toml` that `init` wrote.
    ///
    /// # Errors
    /// Fails when it does not begin to serve soon.
    pub fn start_with(lab: &Lab, policy: &str, change: impl FnOnce(String) -> String) -> Result<Self> {
        let host = lab.host(CONTROLLER_NAME)?;
        let program = binaries::find("postern-controller")?;
        let url = format!("https://{CONTROLLER_NAME}");
        let made = host.command(&program).args(["--json", "init", "--url", &url]).run()?.ok()?;
        let made: Value = serde_json::from_str(&made).with_context(|| format!("init said {made}"))?;
        let join_url = made["join_url"].as_str().context("init tells the join URL")?.to_owned();
        let file = format!("{CONTROLLER_FILES}/controller.toml");
        host.write(&file, change(host.read(&file)?))?;
        host.write(format!("{CONTROLLER_FILES}/policy.toml"), policy)?;
        let controller = Self { host, serving: Mutex::new(None), join_url };
        controller.serve()?;
        Ok(controller)
    }

    /// Returns its machine.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns the join URL with the pin.
    pub fn join_url(&self) -> &str {
        &self.join_url
    }

    /// Returns the URL of its pages.
    pub fn url(&self) -> &str {
        self.join_url.split('#').next().unwrap_or(&self.join_url).trim_end_matches('/')
    }

    /// Starts `serve`, after a [`Controller::kill`] or [`Controller::stop`].
    ///
    /// # Errors
    /// Fails when it does not begin to serve soon.
    pub fn serve(&self) -> Result<()> {
        let mut serving = self.host.command(binaries::find("postern-controller")?).arg("serve").spawn()?;
        let ready = eventually(READY, "the controller does not answer", || {
            let answers = self.command(&["status"]).ok()?.run().ok()?.success();
            (answers || !serving.is_running()).then_some(answers)
        });
        if !matches!(ready, Ok(true)) {
            bail!("the controller does not serve:\n{}", serving.output());
        }
        *self.running() = Some(serving);
        Ok(())
    }

    /// Kills it as `kill -9` does.
    pub fn kill(&self) {
        if let Some(serving) = self.running().take() {
            serving.kill();
        }
    }

    /// Ends it in order.
    ///
    /// # Errors
    /// Fails when it does not end soon.
    pub fn stop(&self) -> Result<()> {
        match self.running().take() {
            Some(serving) => serving.stop(READY).map(drop),
            None => Ok(()),
        }
    }

    /// Returns what it has logged since it was last started.
    pub fn log(&self) -> String {
        self.running().as_ref().map(Background::output).unwrap_or_default()
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Background>> {
        self.serving.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Prepares an administrator's command on the controller's machine.
    ///
    /// # Errors
    /// Fails when the program is not built.
    pub fn command(&self, arguments: &[&str]) -> Result<HostCommand> {
        Ok(self.host.command(binaries::find("postern-controller")?).args(arguments))
    }

    /// Runs an administrator's command and returns what it printed.
    ///
    /// # Errors
    /// Fails with its output when it does.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.command(arguments)?.run()?.ok()
    }

    /// Runs an administrator's command with `--json`.
    ///
    /// # Errors
    /// Fails with its output when it does, or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.run(&[&["--json"], arguments].concat())?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed {text}"))
    }

    /// Makes a local account with a password.
    ///
    /// # Errors
    /// Fails when the controller refuses.
    pub fn add_person(&self, login: &str, password: &str, groups: &[&str]) -> Result<()> {
        let mut arguments = vec!["user", "add", login, "--password-file", "-"];
        arguments.extend(groups.iter().flat_map(|group| ["--group", group]));
        self.command(&arguments)?.stdin(format!("{password}\n")).run()?.ok().map(drop)
    }

    /// Makes a single-use enrolment token for these tags and a service identity.
    ///
    /// # Errors
    /// Fails when the controller refuses.
    pub fn token(&self, tags: &[&str], service: &str) -> Result<String> {
        let mut arguments = vec!["token", "create", "--ttl", "1h", "--service", service];
        arguments.extend(tags.iter().flat_map(|tag| ["--tag", tag]));
        let made = self.json(&arguments)?;
        Ok(made["token"].as_str().with_context(|| format!("no token in {made}"))?.to_owned())
    }

    /// Applies a policy document.
    ///
    /// # Errors
    /// Fails with the controller's words when it refuses.
    pub fn apply(&self, policy: &str) -> Result<()> {
        let file = format!("{CONTROLLER_FILES}/policy.toml");
        self.host.write(&file, policy)?;
        self.run(&["policy", "apply", &file]).map(drop)
    }

    /// Revokes and waits until the nodes have acknowledged; returns how long the command took.
    ///
    /// # Errors
    /// Fails when the controller refuses or a connected node does not acknowledge.
    pub fn revoke(&self, what: &str, name: &str) -> Result<Duration> {
        let began = Instant::now();
        self.run(&["revoke", what, name, "--reason", "the lab says so"])?;
        Ok(began.elapsed())
    }
}

/// What a node does with the plain network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plain<'a> {
    /// Nothing.
    Open,
    /// Closes it but for this list: `tcp/22 from 198.18.0.0/24`.
    Closed(&'a [&'a str]),
}

/// A machine that runs the agent.
#[derive(Debug)]
pub struct Node {
    host: Host,
    running: Mutex<Option<Background>>,
}

impl Node {
    /// Makes a server that joins with a token for `tags`; its service identity has the machine's name.
    ///
    /// # Errors
    /// Fails when it does not join soon.
    pub fn server(lab: &Lab, controller: &Controller, name: &str, tags: &[&str], plain: Plain<'_>) -> Result<Self> {
        Self::server_on(lab.host(name)?, controller, tags, plain)
    }

    /// As [`Node::server`], on a machine that is there already.
    ///
    /// # Errors
    /// Fails when it does not join soon.
    pub fn server_on(host: Host, controller: &Controller, tags: &[&str], plain: Plain<'_>) -> Result<Self> {
        let node = Self::new(host, controller, plain)?;
        let token = controller.token(tags, node.host.name())?;
        node.host.write("/run/token", token)?;
        node.run_agent()?;
        let up = node.command(&["up", controller.join_url(), "--token-file", "/run/token"])?.time_limit(READY);
        up.run()?.ok().with_context(|| format!("the agent said:\n{}", node.log()))?;
        node.wait_until_connected()?;
        Ok(node)
    }

    /// Makes a laptop that has not joined yet: see [`Node::sign_in`].
    ///
    /// # Errors
    /// Fails when the agent does not start.
    pub fn laptop(lab: &Lab, controller: &Controller, name: &str) -> Result<Self> {
        let node = Self::new(lab.host(name)?, controller, Plain::Open)?;
        node.run_agent()?;
        Ok(node)
    }

    fn new(host: Host, controller: &Controller, plain: Plain<'_>) -> Result<Self> {
        let authority = controller.host.read(format!("{CONTROLLER_FILES}/keys/ca.crt"))?;
        host.write(AUTHORITY, authority)?;
        if let Plain::Closed(allow) = plain {
            host.write(
                "/etc/postern/node.toml",
                format!("[plain_network]\ninbound = \"closed\"\nallow = {allow:?}\n"),
            )?;
        }
        Ok(Self { host, running: Mutex::new(None) })
    }

    /// Returns its machine.
    pub fn host(&self) -> &Host {
        &self.host
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Background>> {
        self.running.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Starts `postern run`, as a service manager does, and waits until it answers.
    ///
    /// # Errors
    /// Fails when it does not answer soon.
    pub fn run_agent(&self) -> Result<()> {
        let mut agent = self.host.command(binaries::find("postern")?).arg("run").spawn()?;
        let ready = eventually(READY, "the agent does not answer", || {
            let answers = self.command(&["status"]).ok()?.run().ok()?.success();
            (answers || !agent.is_running()).then_some(answers)
        });
        if !matches!(ready, Ok(true)) {
            bail!("the agent on {} does not run:\n{}", self.host.name(), agent.output());
        }
        *self.running() = Some(agent);
        Ok(())
    }

    /// Kills the agent as `kill -9` does.
    pub fn kill(&self) {
        if let Some(agent) = self.running().take() {
            agent.kill();
        }
    }

    /// Ends the agent in order, as a service manager does.
    ///
    /// # Errors
    /// Fails when it does not end soon.
    pub fn stop(&self) -> Result<()> {
        match self.running().take() {
            Some(agent) => agent.stop(READY).map(drop),
            None => Ok(()),
        }
    }

    /// Sends the agent a signal.
    ///
    /// # Errors
    /// Fails when it is not running.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        self.running().as_ref().context("the agent is not running")?.signal(signal)
    }

    /// Returns what the agent has logged since it was last started.
    pub fn log(&self) -> String {
        self.running().as_ref().map(Background::output).unwrap_or_default()
    }

    /// Prepares a `postern` command on this machine.
    ///
    /// # Errors
    /// Fails when the program is not built.
    pub fn command(&self, arguments: &[&str]) -> Result<HostCommand> {
        Ok(self.host.command(binaries::find("postern")?).args(arguments))
    }

    /// Runs a `postern` command and returns its output, however it ended.
    ///
    /// # Errors
    /// Fails when it does not end.
    pub fn postern(&self, arguments: &[&str]) -> Result<Output> {
        self.command(arguments)?.run()
    }

    /// Runs a `postern` command with `--json`.
    ///
    /// # Errors
    /// Fails with its output when it does, or prints something else.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.postern(&[&["--json"], arguments].concat())?.ok()?;
        serde_json::from_str(&text).with_context(|| format!("{arguments:?} printed {text}"))
    }

    /// Waits until the agent has a stream to the controller and enforces what it was told.
    ///
    /// # Errors
    /// Fails, with its status and log, when that takes too long.
    pub fn wait_until_connected(&self) -> Result<()> {
        let connected = eventually(READY, "the node does not connect", || {
            let output = self.postern(&["status"]).ok()?;
            (output.success() && output.stdout.contains("connected") && output.stdout.contains("enforcing"))
                .then_some(())
        });
        connected.with_context(|| {
            let status = self.postern(&["status"]).map(|output| output.text()).unwrap_or_default();
            format!("{}: status\n{status}\nlog\n{}", self.host.name(), self.log())
        })
    }

    /// Opens a browser on this machine that trusts the controller's authority.
    ///
    /// # Errors
    /// Fails when the machine cannot keep cookies.
    pub fn browser(&self) -> Result<Browser> {
        Browser::open(&self.host, AUTHORITY)
    }

    /// Runs `postern up`, opens the page that it shows, signs in there with a local account, and confirms the machine.
    ///
    /// # Errors
    /// Fails with the page or the agent's words where it goes wrong.
    pub fn sign_in(&self, controller: &Controller, login: &str, password: &str) -> Result<()> {
        let mut up = self.command(&["up", controller.join_url()])?.env("NO_COLOR", "1").spawn()?;
        let code = up.wait_for_output("code", READY)?;
        let code = code.split_whitespace().find(|word| word.len() == 9 && word.contains('-'));
        let code = code.with_context(|| format!("no code in {:?}", up.output()))?.to_owned();
        let browser = self.browser()?;
        let page = browser.get(&format!("{}/join?code={code}", controller.url()))?;
        let page = fill_in_sign_in(&browser, page, login, password)?;
        let form = page.form("onfirm")?;
        ensure!(page.text().contains(self.host.name()), "the page does not say which machine asks:\n{}", page.text());
        let page = browser.submit(&form, &[])?;
        ensure!(page.status < 400, "confirming gave {}:\n{}", page.status, page.text());
        let ended = up.wait(READY)?;
        ensure!(ended.success(), "postern up ended with {ended}:\n{}\nagent:\n{}", up.output(), self.log());
        self.wait_until_connected()
    }

    /// Returns this node's overlay addresses, the IPv6 one first.
    ///
    /// # Errors
    /// Fails when it has none yet.
    pub fn overlay(&self) -> Result<(IpAddr, IpAddr)> {
        let shown = self.host.sh("ip -o addr show dev postern0 scope global")?;
        let find = |family: &str| -> Option<IpAddr> {
            let line = shown.lines().find(|line| line.contains(family))?;
            line.split(family).nth(1)?.split_whitespace().next()?.split('/').next()?.parse().ok()
        };
        let addresses = find(" inet6 ").zip(find(" inet "));
        addresses.with_context(|| format!("{} has no overlay addresses:\n{shown}", self.host.name()))
    }

    /// Waits until a URL answers with a page that contains `text`.
    ///
    /// # Errors
    /// Fails, with the last attempt's words and the status, when it does not.
    pub fn wait_for_page(&self, url: &str, text: &str) -> Result<()> {
        let mut last = String::new();
        let reached = eventually(READY, "the page does not come", || {
            match programs::http_get(&self.host, url, Duration::from_secs(5)) {
                Ok(body) if body.contains(text) => Some(()),
                Ok(body) => {
                    last = body;
                    None
                }
                Err(error) => {
                    last = error.to_string();
                    None
                }
            }
        });
        reached.with_context(|| {
            let status = self.postern(&["status"]).map(|output| output.text()).unwrap_or_default();
            format!("{url} from {}: {last}\nstatus\n{status}\nlog\n{}", self.host.name(), self.log())
        })
    }
}

/// Signs in on the controller's sign-in page with a local account.
///
/// # Errors
/// Fails with the page when it is no sign-in page, or the sign-in is refused.
pub fn fill_in_sign_in(browser: &Browser, page: Page, login: &str, password: &str) -> Result<Page> {
    let form = page.form("type=\"password\"")?;
    let page = browser.submit(&form, &[("login", login), ("password", password)])?;
    ensure!(page.status < 400, "sign-in gave {}:\n{}", page.status, page.text());
    Ok(page)
}
