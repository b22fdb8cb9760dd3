//! What a service manager sees of the programs: that they are ready, alive and stopping; and the units in `configs/`.

use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, ensure};
use postern_tests::{Background, Host, Lab, Signal, deployment::PATIENCE, lab::binaries};

/// How often the programs have to show that they are alive, in microseconds.
const WATCHDOG_USEC: &str = "900000";

/// The socket on which systemd would listen.
struct Manager {
    folder: tempfile::TempDir,
    socket: UnixDatagram,
}

impl Manager {
    fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let socket = UnixDatagram::bind(folder.path().join("notify"))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { folder, socket })
    }

    /// Starts a program as systemd does: it is told that it, and nobody that it starts, has to show that it is alive.
    fn start(&self, host: &Host, program: &Path, argument: &str) -> Result<Background> {
        let command = host.command("sh").args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""]).arg(program).arg(argument);
        let path = self.folder.path().join("notify");
        command.env("NOTIFY_SOCKET", path).env("WATCHDOG_USEC", WATCHDOG_USEC).spawn()
    }

    /// Waits until a program says something; what it says before does not matter.
    fn hears(&self, what: &str, program: &Background) -> Result<()> {
        let mut bytes = [0; 4096];
        loop {
            let length = self.socket.recv(&mut bytes).with_context(|| format!("no {what}\n{}", program.output()))?;
            let text = String::from_utf8_lossy(&bytes[..length]);
            if text.lines().any(|line| line == what) {
                return Ok(());
            }
            // Late is as bad as never: the end comes after the last beat.
            ensure!(!text.contains("STOPPING=1"), "it stops without {what}\n{}", program.output());
        }
    }
}

#[test]
fn the_node_is_ready_alive_reloading_and_stopping_in_the_words_of_a_service_manager() -> Result<()> {
    let lab = Lab::new("service-node")?;
    let host = lab.host("server")?;
    let manager = Manager::new()?;
    let mut node = manager.start(&host, &binaries::find("postern")?, "run")?;
    for word in ["READY=1", "WATCHDOG=1", "WATCHDOG=1"] {
        manager.hears(word, &node)?;
    }
    node.signal(Signal::HangUp)?;
    for word in ["RELOADING=1", "READY=1", "WATCHDOG=1"] {
        manager.hears(word, &node)?;
    }
    node.signal(Signal::Terminate)?;
    manager.hears("STOPPING=1", &node)?;
    ensure!(node.wait(PATIENCE)?.success(), "{}", node.output());
    Ok(())
}

#[test]
fn the_controller_is_ready_alive_and_stopping_in_the_words_of_a_service_manager() -> Result<()> {
    let lab = Lab::new("service-controller")?;
    let host = lab.host("ctl")?;
    let program = binaries::find("postern-controller")?;
    host.command(&program).args(["init", "--url", "https://ctl"]).run()?.ok()?;
    let manager = Manager::new()?;
    let mut controller = manager.start(&host, &program, "serve")?;
    for word in ["READY=1", "WATCHDOG=1", "WATCHDOG=1"] {
        manager.hears(word, &controller)?;
    }
    controller.signal(Signal::Terminate)?;
    manager.hears("STOPPING=1", &controller)?;
    ensure!(controller.wait(PATIENCE)?.success(), "{}", controller.output());
    Ok(())
}

fn unit(name: &str) -> Result<String> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../configs").join(name);
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// Tells whether a unit says `key=`, with `word` among what it says.
fn says(unit: &str, key: &str, word: &str) -> bool {
    let values = unit.lines().filter_map(|line| line.split_once('=')).filter(|(name, _)| *name == key);
    values.flat_map(|(_, value)| value.split_whitespace()).any(|found| found == word)
}

#[test]
fn systemd_understands_the_units() -> Result<()> {
    let lab = Lab::new("service-units")?;
    let host = lab.host("any")?;
    for program in ["postern", "postern-controller"] {
        let name = format!("{program}.service");
        let text = unit(&name)?;
        let installed = format!("ExecStart=/usr/local/bin/{program} ");
        ensure!(text.contains(&installed), "{name} starts another program than the one that the guide installs");
        let own = binaries::find(program)?;
        let path = format!("/run/{name}");
        host.write(&path, text.replace(&installed, &format!("ExecStart={} ", own.display())))?;
        let said = host.command("systemd-analyze").args(["verify", &path]).time_limit(PATIENCE).run()?;
        ensure!(said.success() && said.text().trim().is_empty(), "{name}: {}", said.text());
    }
    Ok(())
}

#[test]
fn the_node_starts_before_any_interface_comes_up_and_may_write_resolv_conf() -> Result<()> {
    let text = unit("postern.service")?;
    ensure!(says(&text, "Before", "network-pre.target") && says(&text, "Wants", "network-pre.target"));
    // Units wait for the whole of the system's basic start otherwise, and some of that needs the network.
    ensure!(says(&text, "DefaultDependencies", "no"));
    ensure!(!says(&text, "After", "network-online.target") && !says(&text, "After", "network.target"));
    // systemd takes the stricter of two sayings about one path: `full` would keep /etc read-only.
    ensure!(says(&text, "ProtectSystem", "strict") && says(&text, "ReadWritePaths", "/etc"));
    Ok(())
}

#[test]
fn the_controller_may_give_its_socket_to_the_administrators_group() -> Result<()> {
    let text = unit("postern-controller.service")?;
    ensure!(says(&text, "SystemCallFilter", "@chown"), "with `[admin] group` the kernel would end it");
    Ok(())
}
