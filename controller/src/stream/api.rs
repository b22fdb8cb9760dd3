//! The words in which the core is configured, asked and answered.

mod error;
mod settings;

use std::{collections::BTreeSet, fmt, net::SocketAddr, time::Duration};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use postern_common::{
    grant::Position,
    id::{BootId, DeviceId, MachineName, ResourceName, RuleName, ServiceName, Tag},
    net::Service,
    posture::Report,
    protocol::{PlatformToken, Refusal, ToNode, UnmetPosture},
    time::WallTime,
};
use serde::{Deserialize, Serialize};

use super::speed::SpeedView;
use crate::records::{
    AuditEvent, BreakGlassRecord, DeviceRecord, LeaseRecord, QuarantineRecord, RequestRecord, RestraintRecord,
    RevokeTarget, SessionRecord, StoreChange, SubjectRecord, TokenRecord,
};
use crate::signals::scim::settings::ScimSettings;

pub use error::CoreError;
pub use settings::{CoreConfig, KeyOverdue};

/// Names one stream of a node; never used twice in one life of the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct StreamId(pub u64);

/// What the shell has to do, in order. Every store change and audit event must be durable before any message behind it
/// is sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Change what is durable. The changes up to the next `Send` or `Close` make one transaction.
    Store(StoreChange),
    /// Append to the audit log.
    Audit(AuditEvent),
    /// Send a message to a node.
    Send {
        /// On which stream.
        stream: StreamId,
        /// What.
        message: ToNode,
    },
    /// Check a token of a platform; answer with [`super::Core::token_verified`].
    VerifyToken {
        /// On which stream it came.
        stream: StreamId,
        /// The token.
        token: PlatformToken,
    },
    /// Send [`ToNode::Refused`] and close the stream. The core has forgotten it already.
    Close {
        /// Which stream.
        stream: StreamId,
        /// What kind of refusal.
        refusal: Refusal,
        /// What happened and what to do, for the person at the machine.
        message: String,
    },
}

/// Draws random bytes: the operating system's in the shell, a seeded sequence in simulations.
pub type Random = Box<dyn FnMut(&mut [u8]) + Send>;

/// What an administrator asks of a new enrolment token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewToken {
    /// The service identity that a machine gets; a private one of its own if absent.
    pub service: Option<ServiceName>,
    /// The tags that it approves.
    pub tags: BTreeSet<Tag>,
    /// The machine name that it is for: no other name can use it, and the name may stand for a resource.
    pub machine: Option<MachineName>,
    /// From where machines may use it; empty means from anywhere.
    pub networks: Vec<IpNet>,
    /// How many machines may use it; 1 unless there is a reason.
    pub uses: u32,
    /// How long it works.
    pub life: Duration,
}

/// A device and what is known of it at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct DeviceView {
    /// What is durable.
    pub record: DeviceRecord,
    /// Its owner's name for people.
    pub owner_name: String,
    /// Its login session, if one is open.
    pub session: Option<SessionRecord>,
    /// Its lease, if it holds one.
    pub lease: Option<LeaseRecord>,
    /// Its stream, if it is connected.
    pub stream: Option<StreamView>,
    /// Policy names its machine name as a place, and nobody has vouched for the name yet.
    pub name_waits_for_approval: bool,
    /// Why it is in quarantine, by itself or with its subject, if it is.
    pub quarantine: Option<String>,
    /// What restraints take from whoever is signed in on it, with the reason of each, for people.
    pub restraints: Vec<String>,
}

/// What is known of a device's state, and what of it is not as rules ask.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PostureView {
    /// What it says of itself, with when that was so.
    pub own: Option<Report>,
    /// What a device-management system says of it, with when that was so.
    pub attested: Option<Report>,
    /// The serial number that is bound to it.
    pub serial: Option<String>,
    /// What rules ask of its subject that it does not meet.
    pub unmet: Vec<UnmetPosture>,
}

/// What became of an import of postures.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PostureImport {
    /// Lines that were taken.
    pub taken: usize,
    /// Of those, devices of which facts are others than before.
    pub changed: Vec<MachineName>,
    /// Lines that count for nothing, each with its number from 1 and why; at most 100 of them.
    pub refused: Vec<(usize, String)>,
    /// How many lines count for nothing.
    pub refused_count: usize,
}

/// A node's stream at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StreamView {
    /// From where it comes.
    pub from: SocketAddr,
    /// Since when.
    pub since: WallTime,
    /// What the node last said that it enforces.
    pub enforcing: Option<Position>,
    /// What it was last sent.
    pub sent: Option<Position>,
    /// Whether it enforces everything that it should.
    pub current: bool,
    /// Its outer addresses, best first.
    pub endpoints: Vec<SocketAddr>,
    /// How many peers it has been told of.
    pub peers: usize,
}

/// A login session with the names of its subject and device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SessionView {
    /// The login session.
    pub record: SessionRecord,
    /// Who.
    pub subject_name: String,
    /// On which machine.
    pub machine: Option<MachineName>,
    /// Since when it has to be proven anew, if it has to be.
    pub challenged_at: Option<WallTime>,
}

/// A lease with the names of what it opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseView {
    /// The lease.
    pub record: LeaseRecord,
    /// Who.
    pub subject_name: String,
    /// On which machine.
    pub machine: MachineName,
    /// What it opens.
    pub access: Vec<LeaseAccess>,
}

/// One thing that a lease opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LeaseAccess {
    /// By which rule.
    pub rule: RuleName,
    /// The resource.
    pub resource: ResourceName,
    /// What may be opened.
    pub services: Vec<Service>,
    /// The machines that carry it.
    pub nodes: Vec<MachineName>,
    /// Until when, as the node enforces it.
    pub until: WallTime,
    /// Why it would be refused if its rule were not only watched.
    pub would_deny: Option<String>,
}

/// A subject and what it holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SubjectView {
    /// The subject.
    pub record: SubjectRecord,
    /// How many devices it has.
    pub devices: usize,
    /// How many login sessions are open.
    pub sessions: usize,
    /// The groups that rules go by, of the latest open login session or of provisioning; absent if nobody has said them.
    pub groups: Option<BTreeSet<String>>,
    /// How it stands with provisioning (SCIM), for people; absent if that is not about it.
    pub provisioned: Option<String>,
}

/// A token, as it can be listed: without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TokenView {
    /// The token.
    pub record: TokenRecord,
    /// Its short name.
    pub short: String,
}

/// A restraint and whom it concerns now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RestraintView {
    /// The restraint.
    pub record: RestraintRecord,
    /// The name of the subject or device.
    pub name: String,
    /// The machines on which it takes something away now.
    pub machines: Vec<MachineName>,
}

/// A quarantine and whom it concerns now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QuarantineView {
    /// The quarantine.
    pub record: QuarantineRecord,
    /// The name for people of whom or what it holds.
    pub name: String,
    /// The machines that are held; none for a resource.
    pub machines: Vec<MachineName>,
}

/// What kind of thing nobody uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StaleKind {
    /// A person.
    Person,
    /// A service identity.
    Service,
    /// A machine.
    Device,
    /// An enrolment token.
    Token,
    /// The token of a provider's SCIM client.
    ScimToken,
}

/// Something that nobody uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct StaleView {
    /// What it is.
    pub kind: StaleKind,
    /// Its name.
    pub name: String,
    /// When it was used last, or made if never.
    pub last_used: WallTime,
    /// Further facts, for people.
    pub detail: String,
}

/// What is open past the rules, with the names of who may pass and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BreakGlassView {
    /// The opening.
    pub record: BreakGlassRecord,
    /// Who may pass.
    pub subject_name: String,
    /// On which machine.
    pub machine: MachineName,
}

/// A request for access with the names of who asks and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RequestView {
    /// The request.
    pub record: RequestRecord,
    /// Who asks.
    pub subject_name: String,
    /// On which machine.
    pub machine: MachineName,
}

/// Names a revocation within one life of the core.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct RevocationId(pub u64);

impl fmt::Display for RevocationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How far a revocation has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevocationView {
    /// The revocation.
    pub id: RevocationId,
    /// What was revoked.
    pub target: RevokeTarget,
    /// Every node that has to cut something.
    pub nodes: Vec<RevocationNode>,
    /// How many of them have acknowledged.
    pub acknowledged: usize,
    /// Milliseconds from the command to the last acknowledgement so far.
    pub elapsed_ms: u64,
    /// The same in microseconds.
    pub elapsed_us: u64,
    /// How many live flows the nodes that acknowledged have cut, each counted at its destination alone. What a node cut for
    /// another change in the same document counts too.
    pub flows_cut: u64,
    /// Whether nothing is left to wait for: each node has acknowledged, or its deadline has passed.
    pub done: bool,
}

/// One node's part in a revocation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RevocationNode {
    /// The node.
    pub node: DeviceId,
    /// Its name.
    pub name: MachineName,
    /// How far it has come.
    pub progress: RevocationProgress,
}

/// How far one node has come with a revocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum RevocationProgress {
    /// It was told, and has not answered yet.
    Told,
    /// It is not connected; its own deadlines close what is revoked then at the latest.
    Away {
        /// When the last of them passes.
        closes_by: WallTime,
    },
    /// It has cut what was revoked.
    Acknowledged {
        /// Milliseconds after the command.
        after_ms: u64,
        /// How many live flows to this node it cut.
        cut: u64,
    },
    /// It was away until its own deadlines had passed.
    Expired,
}

/// What would change if another policy were applied, for everybody whom the controller knows at this moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct PolicyPlan {
    /// The changes.
    pub lines: Vec<PlanLine>,
    /// Machines that would wait for an approval, rules that are only watched, for people.
    pub warnings: Vec<String>,
    /// Limits that are new, gone, or others.
    pub limits: Vec<PlanLimit>,
    /// What is known of the live flows that the change would cut, besides those at their lines.
    pub live: LiveCount,
}

/// What a line of a plan says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PlanKind {
    /// They may reach what they could not.
    Gains,
    /// They may no longer reach what they could.
    Loses,
    /// They may reach it by a rule that is only watched, and did by right.
    OnlyWatched,
    /// They may reach it by right, and did by a rule that was only watched.
    Earned,
    /// They keep it, but less long.
    Until,
}

/// The same change for everybody whom one selector names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PlanLine {
    /// What changes.
    pub kind: PlanKind,
    /// The selector by which the rule names them: `group:contractors`.
    pub via: String,
    /// The resource.
    pub resource: ResourceName,
    /// What of it.
    pub services: Vec<Service>,
    /// Who, on which machine: `alice@corp.example on alice-laptop`.
    pub subjects: Vec<String>,
    /// How many people these are, on however many machines.
    pub people: usize,
    /// How many machines of service identities these are.
    pub machines: usize,
    /// The live flows that the change would cut, as the nodes that they lead to count them.
    pub flows: Vec<PlanFlows>,
    /// Whether it takes effect at once for somebody: flows begin or are cut.
    pub at_once: bool,
    /// Until when it is kept, with [`PlanKind::Until`].
    pub until: Option<WallTime>,
}

/// A limit that is another under the next policy, and whom that concerns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PlanLimit {
    /// The rule, or the `[[limit]]`.
    pub rule: RuleName,
    /// Of each of which resources; empty for a `[[limit]]`.
    pub resources: Vec<ResourceName>,
    /// What it says now: `2GiB down within 1 h, then a fresh sign-in is asked for`; absent if it is new.
    pub before: Option<String>,
    /// What it would say; absent if it is gone.
    pub after: Option<String>,
    /// Who, on which machine.
    pub subjects: Vec<String>,
    /// How many people these are, on however many machines.
    pub people: usize,
    /// How many machines of service identities these are.
    pub machines: usize,
}

/// Live flows from one machine to one service of a node, which a change of policy would cut.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct PlanFlows {
    /// The machine that opened them.
    pub from: MachineName,
    /// The node.
    pub to: MachineName,
    /// Protocol and port.
    pub service: Service,
    /// How many there are.
    pub flows: u64,
    /// How long ago the oldest began, milliseconds.
    pub oldest_ms: u64,
    /// Bytes that they have carried, both ways.
    pub bytes: u64,
}

/// How complete the count of live flows in a plan is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct LiveCount {
    /// Nodes concerned that have answered.
    pub answered: usize,
    /// Nodes concerned that did not answer in time: their flows are not in the count.
    pub silent: Vec<MachineName>,
    /// Nodes concerned that are not connected: their flows are not in the count.
    pub away: Vec<MachineName>,
    /// Flows of which the nodes did not say enough to tell whether they would be cut.
    pub unlisted: u64,
}

/// Names a plan for which nodes were asked for their live flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PlanId(pub u64);

/// The controller at a glance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CoreStatus {
    /// This life of the controller.
    pub epoch: u64,
    /// The policy in force.
    pub policy_revision: u64,
    /// Nodes that are connected.
    pub connected: usize,
    /// Of those, nodes that enforce everything that they should.
    pub current: usize,
    /// Devices.
    pub devices: usize,
    /// Devices with a tag or a name that waits for approval.
    pub awaiting_approval: Vec<MachineName>,
    /// Open login sessions.
    pub sessions: usize,
    /// Live leases.
    pub leases: usize,
    /// Joins that wait for a person.
    pub pending_joins: usize,
    /// Revoked rules.
    pub revoked_rules: Vec<RuleName>,
    /// What is in quarantine.
    pub quarantines: Vec<String>,
    /// From whom something is taken until they sign in anew, or an administrator releases it.
    pub restrained: Vec<String>,
    /// How fast what is closed is closed.
    pub closing: SpeedView,
    /// What was counted since the core began.
    pub counters: Counters,
}

/// What the core counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Counters {
    /// Evaluations of policy for one subject on one device.
    pub decisions: u64,
    /// Snapshots sent.
    pub snapshots: u64,
    /// Deltas sent.
    pub deltas: u64,
    /// Peers within sent deltas.
    pub delta_peers: u64,
    /// Streams refused.
    pub streams_refused: u64,
    /// Messages dropped because they made no sense or came too often.
    pub messages_refused: u64,
    /// Attempts turned away by a rate limit.
    pub rate_limited: u64,
    /// Probes with a code that did not fit, for no stream, or out of order.
    pub probes_refused: u64,
    /// Keys that a node wanted to add while it had as many as a node may have.
    pub keys_refused: u64,
    /// Reports of posture that were forged, shown again, too large, or came too often.
    pub postures_refused: u64,
    /// Signals of other systems that were refused, or had no effect.
    pub signals_refused: u64,
    /// Doors to sign-ins from before a logout or revocation that were forgotten for want of room.
    pub doors_forgotten: u64,
    /// Reports of behaviour about somebody who has no such limit there now, or with a budget that is over.
    pub behaviour_refused: u64,
    /// Platform tokens that were refused.
    pub tokens_refused: u64,
    /// First uses that a node told of and that no lease of the peer's opens there.
    pub uses_refused: u64,
    /// How often all machines were gone through for those that policy can name.
    pub places_listed: u64,
}

/// What a person's account says now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PersonNow {
    /// Their groups.
    pub groups: BTreeSet<String>,
    /// Whether the account may not sign in.
    pub disabled: bool,
    /// When its credentials were set anew, if they were.
    pub secured: Option<WallTime>,
}

/// What identity has learned of a person after they signed in.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SubjectUpdate {
    /// Their groups, if those changed: every open login session is decided anew.
    pub groups: Option<BTreeSet<String>>,
    /// Whether they may take part, if that changed: `Some(Some(reason))` disables, `Some(None)` enables.
    pub disabled: Option<Option<String>>,
}
