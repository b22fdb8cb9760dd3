//! A cable that delays and loses: a program of ours between two TAP interfaces at the switch.
//!
//! The kernel's own `netem` would do this too, but it is a module that not every machine has.

use std::{
    sync::atomic::{AtomicU32, Ordering::Relaxed},
    time::Duration,
};

use anyhow::Result;

use super::{binaries, host::Host, network::Network, process::Background};

/// How bad a cable is, each way.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkQuality {
    /// How long each frame takes more.
    pub delay: Duration,
    /// How many of a hundred frames are lost, at random.
    pub loss_percent: u8,
}

/// A bad cable; it is a good one again when this is dropped.
#[derive(Debug)]
pub struct Link {
    program: Option<Background>,
    switch: Host,
    port: String,
}

impl Link {
    pub(super) fn insert(network: &Network, host: &Host, quality: LinkQuality) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Relaxed);
        let switch = network.switch().clone();
        // The port at the switch whose other end is the machine's cable.
        let peer = host.sh("cat /sys/class/net/eth0/iflink")?;
        let port = switch.sh(&format!("grep -lx {} /sys/class/net/p*/ifindex | cut -d/ -f5", peer.trim()))?;
        let port = port.trim().to_owned();
        let (bridge, near, far) = (format!("bl{number}"), format!("near{number}"), format!("far{number}"));
        let mut program = switch
            .command(binaries::find("postern-lab-link")?)
            .args([&near, &far, &quality.delay.as_millis().to_string(), &quality.loss_percent.to_string()])
            .spawn()?;
        program.wait_for_output("ready", Duration::from_secs(10))?;
        switch.sh(&format!(
            "ip link add {bridge} type bridge forward_delay 0 stp_state 0 mcast_snooping 0; ip link set {bridge} up
             ip link set {port} master {bridge}; ip link set {near} master {bridge} up; ip link set {far} master br0 up"
        ))?;
        Ok(Self { program: Some(program), switch, port })
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        drop(self.program.take());
        let _ = self.switch.sh(&format!("ip link set {} master br0", self.port));
    }
}
