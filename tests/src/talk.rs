//! Conversations between machines: servers that send back what they get, and clients whose lines show whether their connection lives.
//!
//! ```text
//! server.echo(&[7000])?                  TCP and UDP, both families
//! let mut talk = laptop.chatter(at, 7000)?   waits until the door is open, then a line every 100 ms
//! talk.goes_on("..")?                    it lives: more lines come back
//! talk.is_cut("..")?                     the connection was reset, within seconds
//! ```

use std::{
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{
    deployment::{Node, PATIENCE},
    lab::{host::Host, process::Background, wait::eventually},
    programs::{can_connect, wait_for_tcp_listener},
};

/// How long a change may take until it is felt on an open connection, on a busy machine.
pub const PROMPTLY: Duration = Duration::from_secs(5);
/// After how long without an answer a conversation without connections counts as over: twenty lines.
const SILENCE: Duration = Duration::from_secs(2);

/// Servers that send back what they get; gone when dropped.
#[derive(Debug)]
pub struct Echo {
    _servers: Vec<Background>,
}

/// Starts a server that sends back what it gets on each of the ports, by TCP and UDP, on every address of both families.
///
/// # Errors
/// Fails when it does not listen soon.
pub fn echo(host: &Host, ports: &[u16]) -> Result<Echo> {
    let mut servers = Vec::new();
    for port in ports {
        for protocol in ["TCP6", "UDP6"] {
            let listen = format!("{protocol}-LISTEN:{port},fork,reuseaddr,ipv6only=0");
            servers.push(host.command("socat").args([&listen, "EXEC:cat"]).spawn()?);
        }
    }
    ports.iter().try_for_each(|port| wait_for_tcp_listener(host, *port, PATIENCE))?;
    Ok(Echo { _servers: servers })
}

impl Node {
    /// Starts a server that sends back what it gets on each of the ports, by TCP and UDP, on every address of both families.
    ///
    /// # Errors
    /// Fails when it does not listen soon.
    pub fn echo(&self, ports: &[u16]) -> Result<Echo> {
        echo(&self.host, ports)
    }

    /// Waits until a TCP port that echoes can be opened, and talks with it until the connection ends.
    ///
    /// # Errors
    /// Fails, with what the node says of it, when the port does not open or nothing comes back.
    pub fn chatter(&self, at: IpAddr, port: u16) -> Result<Chatter> {
        let to = SocketAddr::new(at, port);
        let opened =
            eventually(PATIENCE, &format!("{to} does not open"), || can_connect(&self.host, at, port).then_some(()));
        opened.with_context(|| self.word_on(to))?;
        Chatter::begin(&self.host, "TCP", to).with_context(|| self.word_on(to))
    }

    /// Talks with a UDP port that echoes, until it is dropped.
    ///
    /// # Errors
    /// Fails when nothing comes back.
    pub fn chatter_by_udp(&self, at: IpAddr, port: u16) -> Result<Chatter> {
        let to = SocketAddr::new(at, port);
        Chatter::begin(&self.host, "UDP", to).with_context(|| self.word_on(to))
    }

    /// Returns what `postern explain` says on this machine, whatever the answer is.
    pub fn explain(&self, what: &str) -> String {
        self.command().args(["explain", what]).run().map(|output| output.text()).unwrap_or_default()
    }

    fn word_on(&self, to: SocketAddr) -> String {
        format!("{}--- the log of {}\n{}", self.explain(&to.to_string()), self.host.name(), self.log())
    }
}

/// A client that sends a numbered line every 100 ms and keeps what comes back.
#[derive(Debug)]
pub struct Chatter {
    client: Background,
    to: SocketAddr,
}

impl Chatter {
    fn begin(host: &Host, protocol: &str, to: SocketAddr) -> Result<Self> {
        let script =
            format!("i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done | socat -t5 -T30 - {protocol}:{to}");
        let mut client = host.command("sh").args(["-c", &script]).spawn()?;
        client.wait_for_output("line 5", PATIENCE)?;
        Ok(Self { client, to })
    }

    /// Tells whether its connection has not ended. UDP has none: see [`Chatter::falls_silent`].
    pub fn is_running(&mut self) -> bool {
        self.client.is_running()
    }

    /// Returns how many lines have come back.
    pub fn lines(&self) -> usize {
        self.client.output().lines().filter(|line| line.starts_with("line ")).count()
    }

    /// Waits until its connection is reset, and returns how long after this call the last line came back.
    ///
    /// # Errors
    /// Fails with `what` when that takes longer than [`PROMPTLY`].
    pub fn is_cut(&mut self, what: &str) -> Result<Duration> {
        self.is_cut_within(PROMPTLY, what)
    }

    /// As [`Chatter::is_cut`], within another time.
    ///
    /// # Errors
    /// Fails with `what` when it takes longer.
    pub fn is_cut_within(&mut self, limit: Duration, what: &str) -> Result<Duration> {
        let begun = Instant::now();
        let mut last = (self.lines(), begun);
        eventually(limit, &format!("{what}: the connection to {} lives on", self.to), || {
            let lines = self.lines();
            if lines != last.0 {
                last = (lines, Instant::now());
            }
            (!self.is_running()).then_some(())
        })?;
        Ok(last.1 - begun)
    }

    /// Waits until more lines have come back.
    ///
    /// # Errors
    /// Fails with `what` when the conversation is over.
    pub fn goes_on(&mut self, what: &str) -> Result<()> {
        self.reaches(self.lines() + 5, what)
    }

    /// Waits until so many lines have come back since its begin: ten a second.
    ///
    /// # Errors
    /// Fails with `what` when the conversation is over before.
    pub fn reaches(&mut self, lines: usize, what: &str) -> Result<()> {
        let more = eventually(PATIENCE, "no more lines come back", || {
            let enough = self.lines() >= lines;
            (enough || !self.is_running()).then_some(enough)
        });
        ensure!(more.is_ok_and(|enough| enough), "{what}: the conversation with {} is over", self.to);
        Ok(())
    }

    /// Waits until nothing comes back any more, by whatever protocol.
    ///
    /// # Errors
    /// Fails with `what` when it goes on.
    pub fn falls_silent(&mut self, what: &str) -> Result<()> {
        let mut last = (self.lines(), Instant::now());
        eventually(PATIENCE, &format!("{what}: the conversation with {} goes on", self.to), || {
            let lines = self.lines();
            if lines != last.0 {
                last = (lines, Instant::now());
            }
            (last.1.elapsed() >= SILENCE).then_some(())
        })
    }
}
