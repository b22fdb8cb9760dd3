//! What went over the wire: tcpdump at the switch, and questions about its file.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context, Result, ensure};

use super::{
    host::Host,
    process::{Background, Signal},
    wait::eventually,
};

/// A recording that runs.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Background,
    file: PathBuf,
}

impl Capture {
    pub(super) fn start(host: &Host) -> Result<Self> {
        let file = PathBuf::from("/run").join(format!("capture-{}.pcap", unique()));
        let mut tcpdump = host
            .command("tcpdump")
            // -Z root: it would otherwise give up the right to write its file
            .args(["-i", "any", "-n", "-s", "0", "-U", "--immediate-mode", "-B", "16384", "-Z", "root", "-w"])
            .arg(&file)
            .spawn()?;
        tcpdump.wait_for_output("listening on", Duration::from_secs(20))?;
        Ok(Self { tcpdump, file })
    }

    /// Ends the recording and returns what was recorded.
    ///
    /// # Errors
    /// Fails when tcpdump lost packets (a claim about all packets could then be false) or does not end.
    pub fn stop(self) -> Result<Recording> {
        let Self { mut tcpdump, file } = self;
        // What was sent before this datagram has been written when this datagram has been: tcpdump keeps the order.
        let last = format!("the end of recording {}", file.display());
        let host = tcpdump.host().clone();
        host.command("socat").args(["-u", "-", "UDP-SENDTO:127.0.0.1:9"]).stdin(last.as_bytes()).run()?.ok()?;
        eventually(Duration::from_secs(20), "tcpdump does not come to the end", || {
            let recorded = std::fs::read(host.path(&file)).ok()?;
            recorded.windows(last.len()).any(|window| window == last.as_bytes()).then_some(())
        })?;
        tcpdump.signal(Signal::Interrupt)?;
        tcpdump.wait(Duration::from_secs(20))?;
        let said = tcpdump.output();
        let lost = said.lines().any(|line| line.contains("dropped by kernel") && !line.trim_start().starts_with("0 "));
        ensure!(!lost, "the recording is incomplete:\n{said}");
        Ok(Recording { host, file })
    }
}

fn unique() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}

/// What was recorded.
#[derive(Debug)]
pub struct Recording {
    host: Host,
    file: PathBuf,
}

impl Recording {
    /// Lists the packets that fit a pcap filter, one a line. Each packet shows at two ports of the switch.
    ///
    /// # Errors
    /// Fails when the filter is none.
    pub fn packets(&self, filter: &str) -> Result<Vec<String>> {
        let filter = format!("not host 127.0.0.1 and ({filter})"); // the last datagram of the recording itself
        let output =
            self.host.command("tcpdump").args(["-n", "-tt", "-Z", "root", "-r"]).arg(&self.file).arg(filter).run()?;
        Ok(output.ok()?.lines().map(str::to_owned).collect())
    }

    /// Fails if any packet fits the filter.
    ///
    /// # Errors
    /// Shows the first of the packets that were not to be there.
    pub fn expect_none(&self, filter: &str) -> Result<()> {
        let packets = self.packets(filter)?;
        ensure!(packets.is_empty(), "{} packets fit `{filter}`, the first is\n{}", packets.len(), packets[0]);
        Ok(())
    }

    /// Tells whether these bytes were on the wire within one packet, in the clear.
    ///
    /// # Errors
    /// Fails when the file cannot be read.
    pub fn contains(&self, bytes: &[u8]) -> Result<bool> {
        let recorded = std::fs::read(self.host.path(&self.file)).context("cannot read the recording")?;
        Ok(!bytes.is_empty() && recorded.windows(bytes.len()).any(|window| window == bytes))
    }

    /// Reads the recorded file itself, in pcap format.
    ///
    /// # Errors
    /// Fails when the file cannot be read.
    pub fn pcap(&self) -> Result<Vec<u8>> {
        std::fs::read(self.host.path(&self.file)).context("cannot read the recording")
    }
}
