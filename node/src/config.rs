//! `node.toml`: what the owner of a machine decides for it. Every key has a default; a missing file is an empty one.
//!
//! Unknown keys are errors with their likely meaning; what a file cannot mean is refused before anything starts. The
//! ceiling lives here and not at the controller: it is what the owner never lets in, whatever a grant says.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;
use postern_common::{
    diagnostics::{ByteSize, Diagnostics, HumanDuration, from_toml},
    id::Tag,
    net::{Service, private_space},
};
use serde::Deserialize;

mod platform;

pub use platform::PlatformConfig;

use crate::{
    host::guard::{PlainAllow, PlainNetwork},
    io::worker::MAX_WORKERS,
    posture::PostureConfig,
};

/// Where the file is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/postern/node.toml";
/// Where the state directory is unless `--state-dir` says otherwise.
pub const DEFAULT_STATE: &str = "/var/lib/postern";
/// Where the runtime directory is unless `--runtime-dir` says otherwise.
pub const DEFAULT_RUNTIME: &str = "/run/postern";
/// The shortest key rotation: handshakes take their time, and each rotation costs one with every peer.
pub const MIN_ROTATION: Duration = Duration::from_secs(5);
/// The shortest keepalive: no NAT forgets sooner.
pub const MIN_KEEPALIVE: Duration = Duration::from_secs(5);

/// Everything that `node.toml` says.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NodeConfig {
    /// The UDP port of the WireGuard socket.
    pub listen_port: u16,
    /// The tunnel's interface.
    pub interface: String,
    /// The tunnel's MTU.
    pub mtu: Mtu,
    /// Keepalives for a NAT or firewall in front of this machine.
    pub keepalive: Keepalive,
    /// How long a WireGuard key is the newest.
    pub key_rotation: HumanDuration,
    /// The group whose members may do what root may over the local socket.
    pub group: Option<String>,
    /// What shows a notice on the person's desktop; empty for nothing, absent for `notify-send` on every session bus.
    pub notify_command: Option<String>,
    /// Whether a notice is also written to the terminals of who is signed in on this machine.
    pub notify_terminals: bool,
    /// How log lines look.
    pub log: LogFormat,
    /// Names for resources.
    pub dns: DnsConfig,
    /// Outer addresses.
    pub endpoints: EndpointsConfig,
    /// The other interfaces.
    pub plain_network: PlainNetworkConfig,
    /// The most that is ever let in.
    pub ceiling: CeilingConfig,
    /// Flow records.
    pub flow_records: FlowRecordsConfig,
    /// How packets are handled.
    pub packets: PacketsConfig,
    /// What the machine says of its own state.
    pub posture: PostureConfig,
    /// The platform whose tokens this machine signs in with.
    pub platform: PlatformConfig,
}

impl Default for NodeConfig {
    fn default() -> Self {
        Self {
            listen_port: 51820,
            interface: crate::io::tun::DEFAULT_NAME.into(),
            mtu: Mtu::Auto,
            keepalive: Keepalive::Auto,
            key_rotation: HumanDuration::new(Duration::from_secs(12 * 3600)),
            group: None,
            notify_command: None,
            notify_terminals: true,
            log: LogFormat::Text,
            dns: DnsConfig::default(),
            endpoints: EndpointsConfig::default(),
            plain_network: PlainNetworkConfig::default(),
            ceiling: CeilingConfig::default(),
            flow_records: FlowRecordsConfig::default(),
            packets: PacketsConfig::default(),
            posture: PostureConfig::default(),
            platform: PlatformConfig::default(),
        }
    }
}

/// The tunnel's MTU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mtu {
    /// What fits the machine's own links.
    Auto,
    /// So many bytes.
    Fixed(u16),
}

impl<'de> Deserialize<'de> for Mtu {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "\"auto\" or a number of bytes")]
        enum Written {
            Bytes(u16),
            Word(Word),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Word {
            Auto,
        }
        Written::deserialize(deserializer).map(|written| match written {
            Written::Bytes(bytes) => Self::Fixed(bytes),
            Written::Word(Word::Auto) => Self::Auto,
        })
    }
}

/// Keepalives for a NAT or firewall in front of this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keepalive {
    /// Where this machine is a person's, or the controller sees it at an address that it does not have.
    Auto,
    /// In any case, this often.
    Every(Duration),
    /// Never: 0.
    Off,
}

impl<'de> Deserialize<'de> for Keepalive {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "\"auto\", 0, or a duration such as \"25s\"")]
        enum Written {
            Number(u64),
            Text(String),
        }
        let duration = match Written::deserialize(deserializer)? {
            Written::Number(0) => return Ok(Self::Off),
            Written::Number(number) => number.to_string(),
            Written::Text(text) if text == "auto" => return Ok(Self::Auto),
            Written::Text(text) => text,
        };
        let duration: HumanDuration = duration.parse().map_err(serde::de::Error::custom)?;
        Ok(if duration.get().is_zero() { Self::Off } else { Self::Every(duration.get()) })
    }
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

/// Names for resources.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DnsConfig {
    /// Whether the node answers for names of resources and tells the machine to ask it.
    pub enabled: bool,
    /// The address on which it answers, port 53.
    pub address: IpAddr,
}

impl Default for DnsConfig {
    fn default() -> Self {
        Self { enabled: true, address: IpAddr::from([127, 0, 53, 53]) }
    }
}

/// Outer addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EndpointsConfig {
    /// Announced before those that are found.
    pub announce: Vec<SocketAddr>,
    /// Interfaces whose addresses are not announced.
    pub ignore_interfaces: Vec<String>,
}

/// The other interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlainNetworkConfig {
    /// Whether they stay as they are.
    pub inbound: PlainInbound,
    /// What stays open when they are closed: `tcp/22 from 10.0.0.0/8`.
    pub allow: Vec<PlainAllow>,
}

/// Whether the other interfaces stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlainInbound {
    /// They do.
    #[default]
    Open,
    /// New connections from them are dropped, but for the list.
    Closed,
}

/// The most that is ever let in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CeilingConfig {
    /// Services; absent means every one that a rule names, an empty list means none.
    pub services: Option<Vec<Service>>,
    /// The peer must have one of these tags; absent means any peer, an empty list means none.
    pub tags: Option<Vec<CeilingTag>>,
    /// The address space in which the overlay may lie; absent means the private one ([`private_space`]).
    pub overlay: Option<Vec<IpNet>>,
}

/// A tag, written `tag:payroll` or `payroll`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CeilingTag(pub Tag);

impl<'de> Deserialize<'de> for CeilingTag {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.strip_prefix("tag:").unwrap_or(&text).parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// Flow records: JSON lines, spooled with a bound.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FlowRecordsConfig {
    /// Whether they are written.
    pub enabled: bool,
    /// The file; `flows.jsonl` in the state directory if absent.
    pub file: Option<PathBuf>,
    /// When a file is full and the next one begins.
    pub max_size: ByteSize,
    /// How many full files are kept.
    pub keep: u8,
}

impl Default for FlowRecordsConfig {
    fn default() -> Self {
        Self { enabled: true, file: None, max_size: ByteSize::new(16 << 20), keep: 3 }
    }
}

/// How packets are handled: speed alone, and ways around a kernel, a network card or a processor with a fault.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PacketsConfig {
    /// How many threads there are.
    pub workers: Workers,
    /// Super-packets of the TUN, GSO and GRO of UDP.
    pub offload: Offload,
    /// How packets are sealed and opened.
    pub cipher: Cipher,
}

/// How many threads handle packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Workers {
    /// One for each two cores, at most eight.
    #[default]
    Auto,
    /// So many.
    Fixed(NonZeroUsize),
}

impl<'de> Deserialize<'de> for Workers {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "\"auto\" or a number of threads, at least 1")]
        enum Written {
            Number(NonZeroUsize),
            Word(Word),
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "lowercase")]
        enum Word {
            Auto,
        }
        Written::deserialize(deserializer).map(|written| match written {
            Written::Number(number) => Self::Fixed(number),
            Written::Word(Word::Auto) => Self::Auto,
        })
    }
}

/// Whether the kernel joins and cuts packets for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Offload {
    /// As far as it can.
    #[default]
    Auto,
    /// Packet by packet.
    Off,
}

/// How packets are sealed and opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cipher {
    /// Several at once, where the processor can.
    #[default]
    Auto,
    /// One after another, by `ring` alone.
    OneByOne,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It has mistakes.
    #[error(transparent)]
    Mistakes(#[from] Diagnostics),
    /// Its values do not go together.
    #[error("error: {message}\n   --> {}", path.display())]
    Meaning {
        /// The file.
        path: PathBuf,
        /// What and why.
        message: String,
    },
}

impl NodeConfig {
    /// Reads the file. The default file may be missing; one that was named may not.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn load(named: Option<&Path>) -> Result<Self, ConfigError> {
        let path = named.unwrap_or(Path::new(DEFAULT_PATH));
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && named.is_none() => Ok(Self::default()),
            Err(source) => Err(ConfigError::Read { path: path.to_owned(), source }),
        }
    }

    /// Reads the text of a file.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let config: Self = from_toml(&path.display().to_string(), text)?;
        config.check().map_err(|message| ConfigError::Meaning { path: path.to_owned(), message })?;
        Ok(config)
    }

    fn check(&self) -> Result<(), String> {
        let name = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        if self.interface.is_empty() || self.interface.len() > 15 || !self.interface.bytes().all(name) {
            return Err(format!("interface `{}` is not 1 to 15 letters, digits, `-`, `_` or `.`", self.interface));
        }
        if self.listen_port == 0 {
            return Err("listen_port 0 is no port: peers must be able to find it".into());
        }
        if let Mtu::Fixed(mtu) = self.mtu
            && !(1280..=9000).contains(&mtu)
        {
            return Err(format!("mtu {mtu} is not \"auto\", or from 1280 (the least that IPv6 takes) to 9000"));
        }
        if let Keepalive::Every(every) = self.keepalive
            && every < MIN_KEEPALIVE
        {
            return Err(format!("keepalive is shorter than {} s; 0 turns it off", MIN_KEEPALIVE.as_secs()));
        }
        if self.key_rotation.get() < MIN_ROTATION {
            return Err(format!("key_rotation is shorter than {} s", MIN_ROTATION.as_secs()));
        }
        if !self.dns.address.is_loopback() {
            return Err(format!("dns.address {} is not a loopback address: others could ask it", self.dns.address));
        }
        if self.plain_network.inbound == PlainInbound::Open && !self.plain_network.allow.is_empty() {
            return Err("plain_network.allow says what stays open, but plain_network.inbound is \"open\": did you mean inbound = \"closed\"?".into());
        }
        if let Some(wide) = self.ceiling.overlay.iter().flatten().find(|prefix| prefix.prefix_len() < 4) {
            return Err(format!(
                "ceiling.overlay: {wide} is too wide to be an overlay: use a prefix of at least 4 bits"
            ));
        }
        if let Workers::Fixed(workers) = self.packets.workers
            && workers.get() > MAX_WORKERS
        {
            return Err(format!("packets.workers {workers} is more than {MAX_WORKERS}"));
        }
        if self.flow_records.enabled && self.flow_records.max_size.get() < 4096 {
            return Err("flow_records.max_size is smaller than 4KiB".into());
        }
        self.platform.check()?;
        self.posture.check()
    }

    /// Returns what the guard does with the other interfaces.
    pub fn plain(&self) -> PlainNetwork {
        match self.plain_network.inbound {
            PlainInbound::Open => PlainNetwork::Open,
            PlainInbound::Closed => {
                PlainNetwork::Closed { wireguard_port: self.listen_port, allow: self.plain_network.allow.clone() }
            }
        }
    }

    /// Returns the ceiling for the data plane.
    pub fn ceiling(&self) -> postern_dataplane::Ceiling {
        postern_dataplane::Ceiling {
            services: self.ceiling.services.clone(),
            tags: self.ceiling.tags.as_ref().map(|tags| tags.iter().map(|tag| tag.0.clone()).collect()),
        }
    }

    /// Returns the address space in which the overlay may lie.
    pub fn overlay_within(&self) -> Vec<IpNet> {
        self.ceiling.overlay.clone().unwrap_or_else(|| private_space().to_vec())
    }

    /// Names what a running node cannot take over without a restart, for the answer to a reload.
    pub fn needs_restart(&self, new: &Self) -> Vec<&'static str> {
        [
            (self.listen_port != new.listen_port, "listen_port"),
            (self.interface != new.interface, "interface"),
            (self.mtu != new.mtu, "mtu"),
            (self.log != new.log, "log"),
            (self.dns != new.dns, "dns"),
            (self.flow_records != new.flow_records, "flow_records"),
            (self.packets != new.packets, "packets"),
        ]
        .into_iter()
        .filter_map(|(changed, key)| changed.then_some(key))
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<NodeConfig, String> {
        NodeConfig::parse(Path::new("node.toml"), text).map_err(|error| error.to_string())
    }

    #[test]
    fn the_annotated_example_says_what_the_defaults_are() {
        let text = include_str!("../../configs/node.toml");
        assert_eq!(parse(text), Ok(NodeConfig::default()));
        // Every commented-out setting is valid too.
        let all: String =
            text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line)).map(|line| format!("{line}\n")).collect();
        let config = parse(&all).expect("the example's alternatives are valid");
        assert!(config.ceiling.services.is_some() && config.ceiling.overlay.is_some() && config.group.is_some());
        assert_eq!(config.plain_network.inbound, PlainInbound::Closed);
    }

    #[test]
    fn what_the_guide_says_of_a_posture_is_a_good_file() {
        let guide = include_str!("../../docs/posture.md");
        let block = guide.split("```toml\n").filter_map(|rest| rest.split("```").next());
        let block = block.into_iter().find(|block| block.starts_with("[posture.agents.")).expect("an example");
        let posture = parse(block).expect("the example is valid").posture;
        assert!(posture.report && posture.marker.is_some() && posture.agents.len() == 1 && posture.checks.len() == 1);
    }

    #[test]
    fn an_empty_file_is_the_default() {
        assert_eq!(parse(""), Ok(NodeConfig::default()));
    }

    #[test]
    fn mtu_and_keepalive_say_by_themselves_or_so_many() {
        let read = |text: &str| parse(text).map(|config| (config.mtu, config.keepalive));
        let every = Keepalive::Every(Duration::from_secs(40));
        assert_eq!(read("mtu = 1380\nkeepalive = \"40s\""), Ok((Mtu::Fixed(1380), every)));
        assert_eq!(read("mtu = \"auto\"\nkeepalive = \"auto\""), Ok((Mtu::Auto, Keepalive::Auto)));
        assert_eq!(read("keepalive = 0"), Ok((Mtu::Auto, Keepalive::Off)));
        assert_eq!(read("keepalive = \"0s\""), Ok((Mtu::Auto, Keepalive::Off)));
    }

    #[test]
    fn mistakes_are_named_with_what_to_do() {
        for (text, expected) in [
            ("lisen_port = 1", "did you mean `listen_port`"),
            ("[plain_network]\ninbound = \"shut\"", "closed"),
            ("[ceiling]\nservices = [\"tcp/9-7\"]", "upside down"),
            ("key_rotation = \"1s\"", "shorter than 5 s"),
            ("key_rotation = 30", "30"),
            ("mtu = 100", "1280"),
            ("mtu = \"automatic\"", "auto"),
            ("keepalive = \"1s\"", "shorter than 5 s"),
            ("keepalive = 25", "25s"),
            ("interface = \"a/b\"", "interface"),
            ("[dns]\naddress = \"10.0.0.1\"", "loopback"),
            ("[plain_network]\nallow = [\"tcp/22\"]", "did you mean inbound"),
            ("listen_port = 0", "no port"),
            ("listen_port = 70000", "listen_port"),
            ("[ceiling]\noverlay = [\"0.0.0.0/0\"]", "too wide"),
            ("[posture.agents.edr]", "neither `exe` nor `unit`"),
            ("[posture.agents.edr]\nunit = \"../edr\"", "not a unit's name"),
            ("[posture.checks.c]\ncommand = [\"check\"]", "begin with an absolute path"),
            ("[posture.checks.c]\ncommand = []", "begin with an absolute path"),
            ("[posture.checks.c]\ncommand = [\"/c\"]\nevery = \"1s\"", "shorter than 5 s"),
            ("[posture.checks.c]\ncommand = [\"/c\"]\ntimeout = \"1h\"", "posture.checks.c.timeout"),
            ("[posture.checks.\"a b\"]\ncommand = [\"/c\"]", "a b"),
            ("[posture.marker]\nfile = \"/m\"\nkey = \"x\"", "32 bytes in base 64"),
            ("[posture.marker]\nfile = \"m\"\nkey = \"O2onvM62pC1io6jQKm8Nc2UyFXcd4kOmOsBIoYtZ2ik=\"", "absolute path"),
            ("[platform]\njoin = \"https://ctl\"", "no source of tokens"),
            ("[platform]\ntoken_file = \"token\"", "absolute path"),
            ("[platform]\ntoken_file = \"/t\"\ngithub_audience = \"a\"", "two sources"),
            ("x = ", "node.toml:1"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
