//! The messages between node and controller: JSON texts over one WebSocket (RFC 6455) over TLS 1.3.
//!
//! ```text
//! node                                    controller
//!   |  <------------------------- Challenge {nonce}     always first
//!   |  Join {..} or Enrol {..}  ---------->             a machine that is not enrolled, or needs a new sign-in
//!   |  <---------- JoinPending {code, url}              people only; the stream stays open while they sign in
//!   |  <---------- Joined {device, ..} | Refused        then the node closes and comes back with Hello
//!   |
//!   |  Hello {device, signature, nonce, keys, ..} ->    an enrolled node
//!   |  <---------- Grants (snapshot)
//!   |  Enforced {position} ---------------->            written durably and compiled
//!   |  <---------- Grants (delta) ...                   Freshen {nonce} renews the node's nonce in between
//!   |  <---------- CountFlows {peers}                   what a change of policy would cut, before it is made
//!   |  LiveFlows {groups} --------------->
//!   |  <---------- Posture {report_within} how fresh the node's posture has to be; what of it is not as rules ask
//!   |  Posture {signed} ----------------->
//!   |
//!   |  Platform {join, token} ------------>             a service with a token of the platform that it runs on
//!   |  <---------- Joined | Refused
//!   |  PlatformToken {token} ------------->             on its live stream, before the login session ends
//!   |  <---------- PlatformRenewed {until} | PlatformRefused
//! ```
//!
//! The node's side of the stream authenticates itself by [`Hello::signature`] over the controller's challenge; the
//! controller's side by its certificate (pinned by the join link, or by the system's roots) and, for everything that
//! is enforced, by the signature of the document. Unknown messages close the stream with [`ToNode::Refused`], so both ends
//! must speak the same version: every change of a message is a new [`PROTOCOL_VERSION`].

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use crate::{
    grant::{Position, SignedDocument},
    id::{BootId, DeviceId, MachineName, Nonce, RequestId, ResourceName, SessionId},
    key::{ControllerPublicKey, DevicePublicKey, Signature, WireGuardPublicKey},
    limit::{Scan, Usage},
    net::Service,
    posture::SignedPosture,
    time::WallTime,
};

mod machine;

pub use machine::{FirstUse, MAX_FIRST_USES, MAX_PLATFORM_TOKEN_BYTES, MachineKind, PlatformJoin, PlatformToken};

/// The version of this protocol.
pub const PROTOCOL_VERSION: u16 = 3;
/// The path of the WebSocket at the controller.
pub const STREAM_PATH: &str = "/v1/node";
/// The most bytes that the controller accepts in one message of a node.
pub const MAX_NODE_MESSAGE_BYTES: usize = 64 << 10;
/// The most outer addresses that a node may report.
pub const MAX_ENDPOINTS: usize = 16;
/// The most requests in one [`ToNode::Requests`].
pub const MAX_OWN_REQUESTS: usize = 16;
/// The most peers that one [`ToNode::CountFlows`] may name.
pub const MAX_COUNTED_PEERS: usize = 512;
/// The most groups in one [`FromNode::LiveFlows`]: the largest fit into [`MAX_NODE_MESSAGE_BYTES`].
pub const MAX_FLOW_GROUPS: usize = 128;
/// The most usages in one [`FromNode::Behaviour`]: the largest fit into [`MAX_NODE_MESSAGE_BYTES`].
pub const MAX_USAGES: usize = 64;
/// The most scans in one [`FromNode::Behaviour`].
pub const MAX_SCANS: usize = 16;
/// The most peers in one [`FromNode::Seen`].
pub const MAX_SEEN: usize = 64;
/// The most entries of [`ToNode::Posture`]: who mends these sees the rest.
pub const MAX_UNMET_POSTURES: usize = 32;

/// What a node says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum FromNode {
    /// A machine asks a person to sign in for it.
    Join(Join),
    /// A machine joins with an enrolment token.
    Enrol(Enrol),
    /// A machine of a service joins, or signs in again, with a token of the platform that it runs on.
    Platform(PlatformJoin),
    /// A fresh token of the platform, before the login session that hangs on the last one ends.
    PlatformToken {
        /// The token.
        token: PlatformToken,
    },
    /// Services that peers used here for the first time since this node began, as far as it remembers.
    FirstUses {
        /// At most [`MAX_FIRST_USES`].
        uses: Vec<FirstUse>,
    },
    /// An enrolled node begins its stream.
    Hello(Hello),
    /// Everything up to `position` is durable and enforced.
    Enforced {
        /// The position.
        position: Position,
        /// How many live flows that peers had opened to this node were cut by enforcing what this acknowledges. Flows
        /// that this node had opened are counted where they lead to, so that a flow between two nodes counts once.
        cut: u64,
    },
    /// The answer to [`ToNode::CountFlows`].
    LiveFlows {
        /// The question's number.
        id: u64,
        /// At most [`MAX_FLOW_GROUPS`]: those that carried most.
        groups: Vec<FlowGroup>,
        /// How many flows were left out.
        unlisted: u64,
    },
    /// A delta did not continue what the node has: a snapshot, please.
    SnapshotWanted,
    /// A new nonce, from which later documents count.
    Freshen {
        /// The nonce.
        nonce: Nonce,
    },
    /// A new WireGuard public key, to be used beside the present ones and then instead of them.
    RotateKey {
        /// The new key.
        key: WireGuardPublicKey,
    },
    /// Outer addresses at which the node may be found, best first.
    Endpoints {
        /// At most [`MAX_ENDPOINTS`].
        endpoints: Vec<SocketAddr>,
    },
    /// What the node sees of its own posture: when it is asked for, when that changes, and again before it is too old.
    Posture {
        /// The report, for this stream.
        signed: SignedPosture,
    },
    /// The person signs out on this machine.
    Logout,
    /// Why may, or may not, this node's subject reach something?
    Explain {
        /// Chosen by the node; comes back with the answer.
        id: u64,
        /// A resource name, machine name, or overlay address.
        to: String,
        /// What is asked about; every service of the resource if absent.
        service: Option<Service>,
    },
    /// The person wants a resource that asks for stronger or fresher proof of sign-in: where can they give it?
    StepUp {
        /// The resource, as an offer of [`crate::grant::OwnGrant::step_up`] names it.
        resource: ResourceName,
    },
    /// What peers, and this machine, did lately: every few seconds if there is anything, and at once when a limit is passed.
    Behaviour {
        /// Names the start of the data plane that counted: another one has begun at nothing, and what was told before still happened.
        process: u64,
        /// How much of limits was used here; at most [`MAX_USAGES`].
        usages: Vec<Usage>,
        /// Who was refused too many destinations; at most [`MAX_SCANS`].
        scans: Vec<Scan>,
    },
    /// From which outer addresses peers speak that may open something here: when it changes, and once in a while.
    Seen {
        /// Each; at most [`MAX_SEEN`].
        peers: Vec<SeenPeer>,
    },
    /// The node has refused many packets within the last minute. Said once in a while, however many there are.
    Refusals {
        /// How many.
        refused: u64,
    },
    /// May this node's subject have access to something for a time?
    RequestAccess {
        /// Chosen by the node; comes back with the answer.
        id: u64,
        /// The resource.
        resource: String,
        /// For how long, milliseconds.
        length_ms: u64,
        /// Why, for whoever decides and for the record.
        reason: String,
    },
}

/// From where a peer speaks, by the packets that WireGuard authenticated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SeenPeer {
    /// The peer's device.
    pub device: DeviceId,
    /// Its outer address.
    pub address: IpAddr,
    /// How long ago its last packet came, milliseconds.
    pub age_ms: u64,
}

/// What the controller says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "type")]
pub enum ToNode {
    /// The first message of every stream.
    Challenge {
        /// What [`Hello::signature`] and [`Join::signature`] sign.
        nonce: Nonce,
        /// [`PROTOCOL_VERSION`].
        protocol: u16,
    },
    /// A person has to confirm the join.
    JoinPending {
        /// The short code that the page asks for, as it is shown: `KTRM-4821`.
        code: String,
        /// The page's URL, without the code.
        url: String,
        /// The page's URL with the code in it, for a QR code and a local browser.
        url_with_code: String,
        /// When the code expires.
        expires: WallTime,
    },
    /// The machine is enrolled, or its person signed in again.
    Joined {
        /// The machine's device.
        device: DeviceId,
        /// The machine's name as the controller keeps it.
        name: MachineName,
        /// The login session; absent for a service.
        session: Option<SessionId>,
        /// The subject's name for people.
        subject_name: String,
        /// The key that signs this node's documents.
        controller: ControllerPublicKey,
        /// When the login session ends.
        session_until: Option<WallTime>,
    },
    /// What to enforce.
    Grants {
        /// The signed document.
        signed: SignedDocument,
    },
    /// Where to send probes from the WireGuard socket, so that the controller sees its outer address.
    Probe {
        /// The controller's UDP port at the address of the stream.
        port: u16,
        /// Names this stream to the receiver of probes.
        id: Nonce,
        /// The key of the probes' HMAC-SHA-256, base 64, 32 bytes; for this stream alone.
        key: String,
    },
    /// Where the newest probe came from: the node's outer address as others see it. A node that does not have this address
    /// is behind a NAT.
    Observed {
        /// The address and port.
        endpoint: SocketAddr,
    },
    /// The answer to [`FromNode::Explain`].
    Explained {
        /// The question's number.
        id: u64,
        /// The answer.
        explanation: Explanation,
    },
    /// The answer to [`FromNode::StepUp`]: where the person proves their sign-in anew. What that opens comes by a document.
    StepUpPending {
        /// The resource.
        resource: ResourceName,
        /// What is asked of the proof: `MFA within 15 min`.
        demand: String,
        /// The page, with a secret in it; it works once.
        url: String,
        /// When it works no more.
        expires: WallTime,
    },
    /// The answer to [`FromNode::StepUp`] where there is no page.
    StepUpRefused {
        /// The resource.
        resource: ResourceName,
        /// Why, and what to do.
        message: String,
    },
    /// How many live flows have these peers opened to this node, and under what? Answered at once.
    CountFlows {
        /// Chosen by the controller; comes back with the answer.
        id: u64,
        /// At most [`MAX_COUNTED_PEERS`].
        peers: Vec<DeviceId>,
    },
    /// Whether the node shall report its posture, and what of it does not meet what rules ask of this node's subject. The
    /// newest takes the place of the one before.
    Posture {
        /// No report may be older than so many milliseconds; absent if none is wanted.
        report_within_ms: Option<u64>,
        /// At most [`MAX_UNMET_POSTURES`].
        unmet: Vec<UnmetPosture>,
    },
    /// The answer to [`FromNode::RequestAccess`].
    AccessRequested {
        /// The question's number.
        id: u64,
        /// The request that waits now, or why there is none.
        answer: Result<AccessRequest, String>,
    },
    /// What this machine's subject has asked for here, at the beginning of a stream and after each change: what waits, and what
    /// was decided lately. At most [`MAX_OWN_REQUESTS`].
    Requests {
        /// The newest first.
        requests: Vec<AccessRequest>,
    },
    /// The login session of this machine has ended; the doors close by the next document.
    SessionEnded {
        /// Why, for the person.
        reason: String,
    },
    /// The login session of this service lives longer: the token was good.
    PlatformRenewed {
        /// Until when.
        until: WallTime,
    },
    /// The token was not taken; the login session ends when it would have ended.
    PlatformRefused {
        /// Why, and what to do.
        message: String,
    },
    /// No WireGuard key of this node may get older than this: it rotates well before.
    KeyDeadline {
        /// Milliseconds from the moment at which a key was made.
        within_ms: u64,
    },
    /// The controller will not go on with this stream.
    Refused {
        /// What kind of refusal.
        refusal: Refusal,
        /// What happened and what to do, for the person at the machine.
        message: String,
    },
}

/// A machine asks a person to sign in for it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// [`PROTOCOL_VERSION`].
    pub protocol: u16,
    /// The machine's device key.
    pub device_key: DevicePublicKey,
    /// The WireGuard key for the coming login session.
    pub wireguard_key: WireGuardPublicKey,
    /// The name that the machine would like.
    pub name: MachineName,
    /// Over [`join_payload`], for [`crate::key::SigningPurpose::Join`].
    pub signature: Signature,
}

/// A machine joins with an enrolment token.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct Enrol {
    /// The join that the token confirms.
    pub join: Join,
    /// The token, as the administrator was given it: `pst_join_...`.
    pub token: String,
}

impl std::fmt::Debug for Enrol {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Enrol").field("join", &self.join).field("token", &"[redacted]").finish()
    }
}

/// An enrolled node begins its stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL_VERSION`].
    pub protocol: u16,
    /// The node's device.
    pub device: DeviceId,
    /// Over [`hello_payload`], for [`crate::key::SigningPurpose::StreamHello`].
    pub signature: Signature,
    /// The nonce from which the first documents count.
    pub nonce: Nonce,
    /// The node's boot.
    pub boot: BootId,
    /// The newest document that the node has verified, if any, whether or not it is enforced yet or still: only newer ones
    /// will be taken.
    pub enforced: Option<Position>,
    /// The node's WireGuard public keys, newest first.
    pub keys: Vec<WireGuardPublicKey>,
    /// The UDP port of the WireGuard socket.
    pub listen_port: u16,
    /// Outer addresses at which the node may be found, best first; at most [`MAX_ENDPOINTS`].
    pub endpoints: Vec<SocketAddr>,
    /// The version of the node's software.
    pub version: String,
    /// What kind of machine it runs on.
    #[serde(default)]
    pub machine: MachineKind,
}

/// Returns the bytes that [`Join::signature`] signs: the challenge and every field of the join that counts.
pub fn join_payload(
    challenge: Nonce,
    device_key: &DevicePublicKey,
    wireguard_key: &WireGuardPublicKey,
    name: &MachineName,
) -> Vec<u8> {
    [challenge.as_bytes().as_slice(), device_key.as_bytes(), wireguard_key.as_bytes(), name.as_str().as_bytes()]
        .concat()
}

/// Returns the bytes that [`Hello::signature`] signs: the challenge, the device, the boot and the nonce.
pub fn hello_payload(challenge: Nonce, device: DeviceId, boot: BootId, nonce: Nonce) -> Vec<u8> {
    [challenge.as_bytes().as_slice(), device.as_bytes(), boot.as_bytes(), nonce.as_bytes()].concat()
}

/// What kind of refusal ends a stream, so that a node knows whether to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The controller does not know the device, or an administrator removed it: join again.
    UnknownDevice,
    /// The signature does not fit.
    BadSignature,
    /// The enrolment token is wrong, expired or used.
    BadToken,
    /// The join was refused by the person, or its code expired.
    JoinRefused,
    /// The software is too old or too new for the controller.
    Version,
    /// Too many attempts: try again later.
    Busy,
    /// The message makes no sense here.
    Protocol,
    /// The controller is going down, or another stream of the same device took over.
    Closing,
}

/// The live flows that one peer has opened to one service of a node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowGroup {
    /// The peer's device.
    pub peer: DeviceId,
    /// The resource whose rule lets them pass.
    pub resource: ResourceName,
    /// The protocol and the one port that they go to.
    pub service: Service,
    /// How many there are.
    pub flows: u64,
    /// How long ago the oldest of them began, milliseconds.
    pub oldest_ms: u64,
    /// Bytes of inner packets that they have carried, both ways.
    pub bytes: u64,
}

/// A fact about the device that is not as rules which name its subject ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnmetPosture {
    /// `[posture.NAME]`.
    pub posture: String,
    /// What is so: `the firewall is off, and must be on`.
    pub what: String,
    /// What the person at the machine can do.
    pub fix: String,
}

/// A request for access for a time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRequest {
    /// The request.
    pub id: RequestId,
    /// What was asked for.
    pub resource: ResourceName,
    /// For how long, milliseconds.
    pub length_ms: u64,
    /// Why.
    pub reason: String,
    /// When it was asked.
    pub asked: WallTime,
    /// Who may decide, as the policy names them.
    pub approvers: Vec<String>,
    /// What became of it.
    pub state: AccessRequestState,
}

/// What became of a request for access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum AccessRequestState {
    /// Nobody has decided.
    Waiting {
        /// When it is forgotten.
        until: WallTime,
    },
    /// It holds, or held, until then.
    Approved {
        /// By whom.
        by: String,
        /// Why.
        reason: String,
        /// When.
        at: WallTime,
        /// Until when.
        until: WallTime,
    },
    /// It was refused.
    Refused {
        /// By whom.
        by: String,
        /// Why.
        reason: String,
        /// When.
        at: WallTime,
    },
}

/// Why something may or may not be reached, in the shape in which it is printed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// Whether it is allowed now.
    pub allowed: bool,
    /// Who asks, on which machine: `alice@corp.example on alice-laptop`.
    pub who: String,
    /// What is asked for: `git tcp/22`.
    pub what: String,
    /// The reason, with the rule that decided.
    pub reason: String,
    /// The rule that decided, if one did.
    pub rule: Option<String>,
    /// Where the rule stands: `policy.toml:41`.
    pub location: Option<String>,
    /// Further facts, one a line.
    pub because: Vec<String>,
    /// What would change the answer, if the person can do something.
    pub fix: Option<String>,
    /// Until when the answer holds, if it is an allowance.
    pub valid_until: Option<WallTime>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        id::{RuleName, SubjectId},
        limit::Measure,
        net::{FiveTuple, Protocol},
    };

    #[test]
    fn the_largest_answer_about_flows_fits_into_a_message() {
        let group = FlowGroup {
            peer: DeviceId::from_bytes([0xff; 16]),
            resource: "r".repeat(ResourceName::MAX).parse().expect("a name"),
            service: "tcp/65535".parse().expect("a service"),
            flows: u64::MAX,
            oldest_ms: u64::MAX,
            bytes: u64::MAX,
        };
        let groups = vec![group; MAX_FLOW_GROUPS];
        let answer = FromNode::LiveFlows { id: u64::MAX, groups, unlisted: u64::MAX };
        let text = serde_json::to_string(&answer).expect("a message has a JSON form");
        assert!(text.len() <= MAX_NODE_MESSAGE_BYTES, "{} bytes", text.len());
    }

    #[test]
    fn the_largest_report_of_behaviour_fits_into_a_message() {
        let rule: RuleName = "\u{1f512}".repeat(RuleName::MAX_CHARS).parse().expect("a name");
        let usage = Usage {
            subject: SubjectId::from_bytes([0xff; 16]),
            rule: rule.clone(),
            resource: "r".repeat(ResourceName::MAX).parse().expect("a name"),
            budget: u64::MAX,
            measure: Measure::Connections,
            within_ms: u64::MAX,
            used: u64::MAX,
        };
        let address = "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().expect("an address");
        let last = FiveTuple {
            protocol: Protocol::Icmp,
            source: address,
            source_port: u16::MAX,
            destination: address,
            destination_port: u16::MAX,
        };
        let device = Some(DeviceId::from_bytes([0xff; 16]));
        let scan = Scan { device, rule, budget: u64::MAX, refused: u32::MAX, last };
        let report =
            FromNode::Behaviour { process: u64::MAX, usages: vec![usage; MAX_USAGES], scans: vec![scan; MAX_SCANS] };
        let text = serde_json::to_string(&report).expect("a message has a JSON form");
        assert!(text.len() <= MAX_NODE_MESSAGE_BYTES, "{} bytes", text.len());
    }
}
