//! What the `postern` command and the agent say to each other over the local socket: one JSON object a line.
//!
//! ```text
//! client: one Request                agent: Reply, Reply, ...  the last is Done or Refused; then the agent closes
//! ```
//!
//! Reading (status, resources, whois, explain) and proving one's own sign-in anew are for every local user, but what was asked for
//! with which reason, and what checks by command print ([`StatusReport::for_everybody`], [`ExplainReport::for_everybody`]). Changing, asking for access, and flows, which
//! show what others do, are for root or the configured group. The agent knows who asks from the kernel (`SO_PEERCRED`), not from the client.
//!
//! Rejected: HTTP on a loopback port, which a web page can reach by DNS rebinding (CVE-2022-41924).

use std::net::{IpAddr, SocketAddr};

use postern_common::{
    flow_record::{FlowRecord, PeerIdentity, PermitRecord},
    grant::QuarantineNotice,
    id::{DeviceId, MachineName},
    net::{FiveTuple, Protocol, Service},
    protocol::{AccessRequest, Explanation, UnmetPosture},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

use super::core::{Notice, Phase};

/// The name of the socket in the runtime directory.
pub const SOCKET: &str = "postern.sock";
/// The most bytes of a request.
pub const MAX_REQUEST_BYTES: usize = 16 << 10;

/// What a client asks.
#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "request")]
pub enum Request {
    /// How is the node?
    Status,
    /// What may be reached from here?
    Resources,
    /// Who is behind this connection?
    Whois {
        /// The remote end, as a local program sees it.
        remote: SocketAddr,
    },
    /// Why may, or may not, something be reached?
    Explain {
        /// A resource, machine or address.
        to: String,
        /// What is asked about.
        service: Option<Service>,
    },
    /// Ask for access for a time.
    RequestAccess {
        /// The resource.
        resource: String,
        /// For how long, milliseconds.
        length_ms: u64,
        /// Why.
        reason: String,
        /// Whether to stay until somebody has decided.
        wait: bool,
    },
    /// Live flows, or records as they come.
    Flows {
        /// Whether to stay and show records.
        follow: bool,
    },
    /// Be up.
    Up {
        /// The join link.
        target: Option<String>,
        /// The enrolment token.
        token: Option<String>,
        /// The name that the machine would like.
        name: Option<String>,
    },
    /// Prove the sign-in anew for a resource, and wait until it is open.
    StepUp {
        /// The resource.
        resource: String,
    },
    /// Be down.
    Down,
    /// Sign out.
    Logout,
}

impl std::fmt::Debug for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Status => "Status",
            Self::Resources => "Resources",
            Self::Whois { .. } => "Whois",
            Self::Explain { .. } => "Explain",
            Self::RequestAccess { .. } => "RequestAccess",
            Self::Flows { .. } => "Flows",
            Self::Up { .. } => "Up", // it may hold a token
            Self::StepUp { .. } => "StepUp",
            Self::Down => "Down",
            Self::Logout => "Logout",
        })
    }
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Right {
    /// Every local user.
    Read,
    /// Root or the configured group.
    Change,
}

impl Request {
    /// Tells whether every local user may ask this, and it is a question to the controller.
    pub const fn asks_controller(&self) -> bool {
        match self {
            Self::Explain { .. } | Self::StepUp { .. } => true,
            Self::Status
            | Self::Resources
            | Self::Whois { .. }
            | Self::RequestAccess { .. }
            | Self::Flows { .. }
            | Self::Up { .. }
            | Self::Down
            | Self::Logout => false,
        }
    }

    /// Returns who may ask this.
    pub const fn right(&self) -> Right {
        match self {
            // A page that only the person who is signed in on this machine can use is no secret from the others there.
            Self::Status | Self::Resources | Self::Whois { .. } | Self::Explain { .. } | Self::StepUp { .. } => {
                Right::Read
            }
            Self::RequestAccess { .. } | Self::Flows { .. } | Self::Up { .. } | Self::Down | Self::Logout => {
                Right::Change
            }
        }
    }
}

/// What the agent answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "reply")]
pub enum Reply {
    /// To [`Request::Status`].
    Status(Box<StatusReport>),
    /// To [`Request::Resources`].
    Resources {
        /// What may be reached.
        resources: Vec<ResourceReport>,
        /// What might be, after stronger or fresher proof of sign-in.
        #[serde(default)]
        step_ups: Vec<StepUpReport>,
    },
    /// To [`Request::Whois`].
    Whois(Box<WhoisReport>),
    /// To [`Request::Explain`].
    Explain(Box<ExplainReport>),
    /// A request for access, to [`Request::RequestAccess`]: when it was taken, and when somebody has decided.
    Access {
        /// The request.
        request: Box<AccessRequest>,
    },
    /// One of the live flows, to [`Request::Flows`].
    Flow(Box<FlowReport>),
    /// A record as it came, to [`Request::Flows`] with `follow`.
    Record {
        /// The record.
        record: Box<FlowRecord>,
    },
    /// Progress of [`Request::Up`].
    Notice {
        /// What happened.
        notice: Notice,
    },
    /// The request is done.
    Done,
    /// It is not, and why.
    Refused {
        /// What happened and what to do.
        message: String,
    },
}

/// How the node is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StatusReport {
    /// What the machine is doing.
    pub phase: Phase,
    /// Who is signed in, and by what.
    #[serde(default)]
    pub sign_in: SignIn,
    /// The machine's name.
    pub machine: Option<MachineName>,
    /// The device.
    pub device: Option<DeviceId>,
    /// The subject's name for people.
    pub subject: Option<String>,
    /// The machine's tags.
    pub tags: Vec<String>,
    /// The overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// The controller, as it stands in a URL.
    pub controller: Option<String>,
    /// The enforced document's number.
    pub generation: Option<u64>,
    /// The policy's number.
    pub policy_revision: Option<u64>,
    /// When the login session ends.
    pub session_until: Option<WallTime>,
    /// When the last of what is permitted now ends, unless it is renewed.
    #[serde(default)]
    pub leases_until: Option<WallTime>,
    /// Why nothing passes to this machine or from it, if it is in quarantine.
    #[serde(default)]
    pub quarantine: Option<QuarantineNotice>,
    /// What was asked for here: what waits, and what was decided lately.
    #[serde(default)]
    pub requests: Vec<AccessRequest>,
    /// Whether requests, and what checks print, are left out: whoever asks is neither root nor of the group.
    #[serde(default)]
    pub withheld: bool,
    /// Peers that may open something here.
    pub peers_in: usize,
    /// Resources that may be reached from here.
    pub resources_out: usize,
    /// What might be reached after stronger or fresher proof of sign-in.
    #[serde(default)]
    pub step_ups: Vec<StepUpReport>,
    /// Live flows.
    pub live_flows: usize,
    /// Packets that policy refused in the last minute.
    pub denied_last_minute: u64,
    /// Drops since the start, by reason; zeros are left out.
    pub drops: Vec<(String, u64)>,
    /// How packets are handled, while the tunnel is up.
    #[serde(default)]
    pub packets: Option<PacketsReport>,
    /// The WireGuard public keys, newest first.
    pub keys: Vec<String>,
    /// Outer addresses that were reported.
    pub endpoints: Vec<SocketAddr>,
    /// What is wrong on this machine, one line each, with what to do.
    pub problems: Vec<String>,
    /// The machine's posture, if the controller asks for it.
    #[serde(default)]
    pub posture: Option<PostureReport>,
    /// Flow records that were dropped because disk or clients were slow.
    pub records_dropped: u64,
    /// Documents that were refused.
    pub documents_refused: u64,
    /// The agent's version.
    pub version: String,
}

impl StatusReport {
    /// Leaves out what is for root and the configured group alone: reasons that people wrote, who decided, and what programs that an
    /// administrator named have printed.
    pub fn for_everybody(mut self) -> Self {
        self.withheld = true;
        self.requests.clear();
        let checks = self.posture.iter_mut().flat_map(|posture| &mut posture.facts);
        for (_, value) in checks.filter(|(name, _)| name.starts_with("check ")) {
            value.truncate(value.find(" (").unwrap_or(value.len()));
        }
        for unmet in self.posture.iter_mut().flat_map(|posture| &mut posture.unmet) {
            withhold_prints(&mut unmet.what);
        }
        self
    }
}

impl ExplainReport {
    /// Leaves out what is for root and the configured group alone: what programs that an administrator named have printed.
    pub fn for_everybody(mut self) -> Self {
        if let Some(explanation) = &mut self.controller {
            let Explanation { reason, because, fix, .. } = explanation;
            [reason].into_iter().chain(because).chain(fix).for_each(withhold_prints);
        }
        self
    }
}

/// Takes out of a line what checks printed: `check edr-ok failed (signatures are old) as of 55 s ago`. A program prints anything,
/// brackets too: it ends with the last one.
fn withhold_prints(line: &mut String) {
    let of_check = |at: &usize| {
        let mut words = line[..*at].rsplit(' ');
        let (result, _name, check) = (words.next(), words.next(), words.next());
        matches!(result, Some("failed" | "passed")) && check.is_some_and(|word| word.ends_with("check"))
    };
    if let Some(begin) = line.match_indices(" (").map(|(at, _)| at).find(of_check) {
        let end = line.rfind(')').filter(|end| *end > begin).map_or(line.len(), |end| end + 1);
        line.replace_range(begin..end, "");
    }
}

/// By what somebody, or some service, is signed in on the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SignIn {
    /// Nobody is.
    #[default]
    Nobody,
    /// A person, on the controller's pages.
    Person,
    /// A service that joined with an enrolment token.
    Enrolment,
    /// A service, by tokens of its platform.
    Platform,
}

/// What `[packets]` in `node.toml` came to on this machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PacketsReport {
    /// How many threads there are.
    pub workers: usize,
    /// What the kernel joins and cuts for us: `tcp and udp`, `tcp`, or `off`.
    pub offload: String,
    /// How packets are sealed and opened: `several at once` or `one by one`.
    pub cipher: String,
}

/// The machine's posture: what it reports, and what of it is not as rules ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PostureReport {
    /// What the machine sees: the fact's name and its value, for people.
    pub facts: Vec<(String, String)>,
    /// How long ago it was seen, seconds; absent if it was not.
    pub seen_seconds_ago: Option<u64>,
    /// What is not as rules ask, as the controller last said.
    pub unmet: Vec<UnmetPosture>,
}

/// Something that may be reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceReport {
    /// The resource.
    pub name: String,
    /// Its host name.
    pub host: String,
    /// The machine that serves it.
    pub machine: MachineName,
    /// The machine's overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// What may be opened.
    pub services: Vec<Service>,
    /// The rule that gives it.
    pub rule: String,
    /// Until when, unless it is renewed.
    pub until: WallTime,
    /// Why its rule would refuse this, if it is only watched.
    pub would_deny: Option<String>,
}

/// Something that might be reached after stronger or fresher proof of sign-in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepUpReport {
    /// The resource.
    pub name: String,
    /// Its host name.
    pub host: String,
    /// What would open.
    pub services: Vec<Service>,
    /// What is asked: `MFA within 15 min`.
    pub demand: String,
    /// The page on which the person gives it, if one waits for them.
    pub url: Option<String>,
    /// When the page works no more.
    pub url_until: Option<WallTime>,
}

/// Who is behind a connection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WhoisReport {
    /// What was asked.
    pub remote: SocketAddr,
    /// The peer that owns the address.
    pub peer: PeerIdentity,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its outer address.
    pub outer: Option<SocketAddr>,
    /// The live flow at that port.
    pub flow: Option<FiveTuple>,
    /// Under what that flow passes.
    pub permit: Option<PermitRecord>,
}

/// Why something may, or may not, be reached: as this machine enforces it and as the controller decides it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExplainReport {
    /// What the data plane does with it, one entry for each machine and service that the question meant.
    pub local: Vec<LocalReport>,
    /// The controller's answer.
    pub controller: Option<Explanation>,
    /// Why there is none.
    pub controller_error: Option<String>,
    /// Who asks: `alice@corp.example on alice-laptop`.
    pub who: String,
    /// Why nothing passes to this machine or from it, if it is in quarantine: known here without the controller.
    #[serde(default)]
    pub quarantine: Option<QuarantineNotice>,
}

/// What the data plane does with a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalReport {
    /// The address.
    pub address: IpAddr,
    /// The machine, if the address is a peer's.
    pub machine: Option<MachineName>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
    /// Whether it passes.
    pub allowed: bool,
    /// The reason or the rule.
    pub reason: String,
    /// Until when it passes.
    pub until: Option<WallTime>,
}

/// A live flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowReport {
    /// `in` if the peer opened it, `out` if this machine did.
    pub direction: String,
    /// The flow.
    pub flow: FiveTuple,
    /// The peer.
    pub peer: PeerIdentity,
    /// Under what it passes.
    pub permit: PermitRecord,
    /// How long it has lived, in seconds.
    pub age_seconds: u64,
    /// How long it has been silent, in seconds.
    pub silent_seconds: u64,
    /// Until when it may go on, unless it is renewed.
    pub until: WallTime,
    /// Bytes from the originator.
    pub bytes_out: u64,
    /// Bytes to the originator.
    pub bytes_back: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everybody_sees_neither_who_asked_for_what_nor_what_checks_print() {
        let json = serde_json::json!({
            "phase": {"phase": "down"}, "tags": [], "addresses": [], "peers_in": 0, "resources_out": 0, "live_flows": 0,
            "denied_last_minute": 0, "drops": [], "keys": [], "endpoints": [], "problems": [], "records_dropped": 0,
            "documents_refused": 0, "version": "x",
            "posture": {
                "facts": [["firewall", "on"], ["check edr-ok", "failed (licence 4711 of anna)"], ["check quiet", "passed"]],
                "unmet": [{"posture": "laptop", "what": "check edr-ok failed (licence 4711 of anna) 20 s ago", "fix": "mend it"}],
            },
        });
        let report: StatusReport = serde_json::from_value(json).expect("a report");
        let shown = report.clone().for_everybody();
        assert!(shown.withheld && !report.withheld);
        let text = serde_json::to_string(&shown).expect("JSON");
        assert!(!text.contains("4711"), "{text}");
        assert!(text.contains("check edr-ok failed 20 s ago") && text.contains("\"failed\""), "{text}");
    }
    #[test]
    fn an_explanation_tells_everybody_which_check_failed_and_not_what_it_printed() {
        let because = [
            "posture laptop: check edr-ok failed (licence 4711 (of anna), check a failed (x) as of 5 s ago",
            "posture laptop: the disk is not encrypted; check edr-ok failed (4711) as of 55 s ago; check b failed (4711)",
            "check edr-ok failed (4711 cut",
            "git is reached from office (10.0.0.0/8)",
        ];
        let json = serde_json::json!({
            "local": [], "controller_error": null, "who": "alice on laptop",
            "controller": {
                "allowed": false, "who": "alice on laptop", "what": "git tcp/22", "rule": "r", "location": "policy.toml:41",
                "reason": "check edr-ok failed (4711)", "because": because, "fix": "have check edr-ok passed (4711) again",
                "valid_until": null,
            },
        });
        let report: ExplainReport = serde_json::from_value(json).expect("a report");
        let shown = report.clone().for_everybody().controller.expect("the controller's");
        assert_eq!(shown.reason, "check edr-ok failed");
        assert_eq!(
            shown.because,
            [
                "posture laptop: check edr-ok failed as of 5 s ago",
                "posture laptop: the disk is not encrypted; check edr-ok failed",
                "check edr-ok failed",
                because[3],
            ]
        );
        assert_eq!(shown.fix.as_deref(), Some("have check edr-ok passed again"));
        assert_eq!(report.controller.expect("the controller's").because, because, "root sees all of it");
    }
}
