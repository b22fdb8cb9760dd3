//! A network: a bridge in a namespace of its own, and the machines on it.

use std::{
    net::{Ipv4Addr, Ipv6Addr},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering::Relaxed},
    },
};

use anyhow::{Context, Result, ensure};

use super::{capture::Capture, host::Host};

/// One network segment with IPv4 /24 and IPv6 /64, and a switch between its machines.
#[derive(Debug, Clone)]
pub struct Network {
    switch: Host,
    number: u8,
    next: Arc<AtomicU32>,
}

/// The number that the switch gives to its first machine.
const FIRST_HOST: u32 = 11;

impl Network {
    pub(super) fn start(name: &str, number: u8, lab_directory: &Path) -> Result<Self> {
        let switch = Host::start(&format!("{name}-switch"), lab_directory)?;
        switch.sh("ip link add br0 type bridge forward_delay 0 stp_state 0 mcast_snooping 0 && ip link set br0 up")?;
        Ok(Self { switch, number, next: Arc::new(AtomicU32::new(FIRST_HOST)) })
    }

    /// Returns the machine that is the switch, to run programs at the wire.
    pub fn switch(&self) -> &Host {
        &self.switch
    }

    /// Returns the IPv4 address that a machine of this number has here. (TEST-NET-1 to 3 are too few: RFC 2544's range.)
    pub fn ipv4(&self, host: u8) -> Ipv4Addr {
        Ipv4Addr::new(198, 18, self.number, host)
    }

    /// Returns the IPv6 address that a machine of this number has here (RFC 3849).
    pub fn ipv6(&self, host: u8) -> Ipv6Addr {
        Ipv6Addr::new(0x2001, 0xdb8, 0, u16::from(self.number), 0, 0, 0, u16::from(host))
    }

    /// Connects a machine by a cable to a new port, with the next free addresses. `interface` is its name in there.
    ///
    /// # Errors
    /// Fails when the network is full or the interface name is taken.
    pub fn connect(&self, host: &Host, interface: &str) -> Result<()> {
        let number = self.next.fetch_add(1, Relaxed);
        let number = u8::try_from(number).ok().filter(|n| *n < 255).context("the network is full")?;
        let port = format!("p{number}");
        let (v4, v6) = (self.ipv4(number), self.ipv6(number));
        // Only the network namespace is entered: the kernel looks the other end's process up where the test runs.
        let added = std::process::Command::new("nsenter")
            .arg(format!("--target={}", self.switch.holder_pid()))
            .args(["--net", "ip", "link", "add", &port, "type", "veth", "peer", "name", interface])
            .args(["netns", &host.holder_pid().to_string()])
            .output()
            .context("cannot start nsenter")?;
        ensure!(added.status.success(), "cannot lay a cable: {}", String::from_utf8_lossy(&added.stderr).trim());
        self.switch.sh(&format!("ip link set {port} master br0 up"))?;
        host.sh(&format!(
            "ip addr add {v4}/24 dev {interface}; ip -6 addr add {v6}/64 dev {interface} nodad; ip link set {interface} up"
        ))?;
        host.set_addresses(v4, v6);
        Ok(())
    }

    /// Moves a machine to other addresses on the same network, as a laptop that changes its place.
    ///
    /// # Errors
    /// Fails when the network is full or the machine has no such interface.
    pub fn roam(&self, host: &Host, interface: &str) -> Result<()> {
        let number = self.next.fetch_add(1, Relaxed);
        let number = u8::try_from(number).ok().filter(|n| *n < 255).context("the network is full")?;
        let (v4, v6) = (self.ipv4(number), self.ipv6(number));
        host.sh(&format!(
            "routes=$(ip route show default dev {interface}; true)
             ip addr flush dev {interface} scope global
             ip addr add {v4}/24 dev {interface}; ip -6 addr add {v6}/64 dev {interface} nodad
             [ -z \"$routes\" ] || ip route add $routes dev {interface}"
        ))?;
        host.set_addresses(v4, v6);
        Ok(())
    }

    /// Pulls the cable of a machine out of the switch, or puts it back.
    ///
    /// # Errors
    /// Fails when the machine has no such interface.
    pub fn set_connected(&self, host: &Host, interface: &str, connected: bool) -> Result<()> {
        host.sh(&format!("ip link set {interface} {}", if connected { "up" } else { "down" })).map(drop)
    }

    /// Begins to record every frame on the network. Returns when recording has begun.
    ///
    /// # Errors
    /// Fails when tcpdump cannot start.
    pub fn capture(&self) -> Result<Capture> {
        Capture::start(&self.switch)
    }
}
