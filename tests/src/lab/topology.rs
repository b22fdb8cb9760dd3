//! The lab itself: networks, machines, and what is between them.

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result, ensure};

use super::{
    capture::Capture,
    host::Host,
    link::{self, LinkQuality},
    network::Network,
};

/// Begins the name of every folder of a lab; the process identifier of its test follows.
const FOLDER_PREFIX: &str = "postern-lab-";

/// Machines on networks that nobody else sees.
#[derive(Debug)]
pub struct Lab {
    directory: tempfile::TempDir,
    network: Network,
    networks: AtomicU8,
    hosts: Mutex<Vec<Host>>,
}

impl Lab {
    /// Makes a lab with one network and nothing on it.
    ///
    /// # Errors
    /// Fails without root, and when the kernel has no namespaces.
    pub fn new(name: &str) -> Result<Self> {
        sweep(&std::env::temp_dir());
        let directory = tempfile::Builder::new()
            .prefix(&format!("{FOLDER_PREFIX}{}-{name}-", std::process::id()))
            .tempdir()
            .context("cannot make the lab's folder")?;
        let network = Network::start("net", 0, directory.path())?;
        Ok(Self { directory, network, networks: AtomicU8::new(1), hosts: Mutex::default() })
    }

    /// Returns the first network: the one that stands for the outside world.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Returns where logs of programs in the background are, as long as the lab is.
    pub fn logs(&self) -> PathBuf {
        self.directory.path().join("logs")
    }

    /// Makes a machine on the first network, known to all the others by its name.
    ///
    /// # Errors
    /// Fails when the name is taken.
    pub fn host(&self, name: &str) -> Result<Host> {
        self.host_on(name, &self.network)
    }

    /// Makes a machine on another network.
    ///
    /// # Errors
    /// Fails when the name is taken.
    pub fn host_on(&self, name: &str, network: &Network) -> Result<Host> {
        let host = self.unconnected_host(name)?;
        network.connect(&host, "eth0")?;
        self.tell_names()?;
        Ok(host)
    }

    /// Makes a machine on no network, to be connected by [`Network::connect`].
    ///
    /// # Errors
    /// Fails when the name is taken.
    pub fn unconnected_host(&self, name: &str) -> Result<Host> {
        let mut hosts = self.hosts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        ensure!(hosts.iter().all(|host| host.name() != name), "there is a host {name} already");
        let host = Host::start(name, self.directory.path())?;
        hosts.push(host.clone());
        Ok(host)
    }

    /// Makes another network, with nothing between it and the first.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub fn new_network(&self, name: &str) -> Result<Network> {
        Network::start(name, self.networks.fetch_add(1, Relaxed), self.directory.path())
    }

    /// Puts a router that translates addresses (NAT, both families) between `inside` and `outside`, as the box in a
    /// home does. Machines inside need `via_router`.
    ///
    /// # Errors
    /// Fails when the name is taken.
    pub fn nat_router(&self, name: &str, outside: &Network, inside: &Network) -> Result<Host> {
        let router = self.unconnected_host(name)?;
        inside.connect(&router, "inside")?;
        let gateway = (router.ipv4(), router.ipv6());
        outside.connect(&router, "outside")?;
        router.sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")?;
        router
            .command("nft")
            .args(["-f", "-"])
            .stdin(
                "table inet nat {\n chain sources {\n type nat hook postrouting priority 100;\n oifname \"outside\" masquerade\n \
                 }\n chain inward {\n type filter hook forward priority 0;\n ct state established,related accept\n \
                 iifname \"inside\" accept\n drop\n }\n}\n",
            )
            .run()?
            .ok()?;
        router.write("/run/gateway", format!("{} {}", gateway.0, gateway.1))?;
        Ok(router)
    }

    /// Gives a machine behind a router its default routes.
    ///
    /// # Errors
    /// Fails when `router` is none of [`Lab::nat_router`].
    pub fn via_router(&self, host: &Host, router: &Host) -> Result<()> {
        let gateway = router.read("/run/gateway")?;
        let (v4, v6) = gateway.split_once(' ').context("two gateways")?;
        host.sh(&format!("ip route replace default via {v4}; ip -6 route replace default via {v6}")).map(drop)
    }

    /// Makes a machine whose cable to `network` delays and loses, as told.
    ///
    /// # Errors
    /// Fails when the name is taken or the link's program is not built.
    pub fn host_behind(&self, name: &str, network: &Network, quality: LinkQuality) -> Result<(Host, link::Link)> {
        let host = self.unconnected_host(name)?;
        network.connect(&host, "eth0")?;
        let link = link::Link::insert(network, &host, quality)?;
        self.tell_names()?;
        Ok((host, link))
    }

    /// Begins to record the first network.
    ///
    /// # Errors
    /// Fails when tcpdump cannot start.
    pub fn capture(&self) -> Result<Capture> {
        self.network.capture()
    }

    /// Writes the names of all machines into everybody's `/etc/hosts`. Lines that were added there otherwise stay.
    fn tell_names(&self) -> Result<()> {
        let hosts = self.hosts.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut lines = String::new();
        for host in hosts.iter() {
            lines.push_str(&format!("{} {name}\n{} {name}\n", host.ipv4(), host.ipv6(), name = host.name()));
        }
        for host in hosts.iter() {
            let before = host.read("/etc/hosts")?;
            let kept: String = before
                .lines()
                .take_while(|line| !line.starts_with(NAMES))
                .fold(String::new(), |all, line| all + line + "\n");
            host.write("/etc/hosts", format!("{kept}{NAMES}\n{lines}"))?;
        }
        Ok(())
    }
}

/// Begins the lab's own lines in `/etc/hosts`.
const NAMES: &str = "# the machines of this lab";

impl Drop for Lab {
    fn drop(&mut self) {
        if !std::thread::panicking() && std::env::var_os("POSTERN_LAB_LOGS").is_none() {
            return;
        }
        let mut logs: Vec<PathBuf> =
            std::fs::read_dir(self.logs()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        logs.sort();
        for log in logs {
            let text = std::fs::read(&log).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let lines: Vec<&str> = text.lines().collect();
            let shown = &lines[lines.len().saturating_sub(60)..];
            eprintln!("--- {} (last {} of {} lines)", log.display(), shown.len(), lines.len());
            shown.iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

/// Removes empty folders that killed tests left. Their machines ended with them.
fn sweep(temporary: &Path) {
    for entry in std::fs::read_dir(temporary).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(rest) = name.strip_prefix(FOLDER_PREFIX) else { continue };
        let Some(pid) = rest.split('-').next().and_then(|pid| pid.parse::<u32>().ok()) else { continue };
        if !Path::new(&format!("/proc/{pid}")).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
