//! What the controller keeps: durable records, the changes to them, and what is audited.
//!
//! ```text
//! store --Loaded--> stream::Core --Effect::{Store, Audit}--> store, audit log    (one transaction per batch)
//! ```
//!
//! The core ([`crate::stream::Core`]) holds every record in memory and decides from memory alone; the shell makes its
//! [`StoreChange`]s and [`AuditEvent`]s durable, in order, before it sends anything that the core queued behind them.
//! So a crash can lose an answer to a node, never the record of what the node was told.
//!
//! No private key of a node or device is ever in here. What is secret: [`PairRecord::preshared`]. Tokens are kept as
//! hashes alone.

mod audit;
mod break_glass;
mod clock;
mod identity;
mod machine;
mod posture;
mod quarantine;
mod request;
mod restraint;
mod scim;
mod token;

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::signals::{
    alerts::Alert,
    events::memory::{SeenRecord, StreamRecord},
    habits::HabitsRecord,
    provider::ShutDoor,
};
pub use audit::{AuditEvent, DecidedAccess, LeaseEnd, RevokeTarget};
pub use break_glass::BreakGlassRecord;
pub use clock::ClockRecord;
pub use identity::{Assurance, Person, Proven, ProvisionedName, SubjectKind, SubjectRecord};
pub use machine::{PlatformBinding, Reuse, TokenUseRecord, Workload};
use postern_common::{
    id::{BreakGlassId, DeviceId, LeaseId, MachineName, RequestId, ResourceName, RuleName, SessionId, SubjectId, Tag},
    key::{DevicePublicKey, PresharedKey, WireGuardPublicKey},
    policy::Place,
    time::WallTime,
};
pub use posture::{ComplianceRecord, PostureRecord};
pub use quarantine::{Covered, QuarantineRecord, Quarantined};
pub use request::RequestRecord;
pub use restraint::{Begun, Restrained, RestraintRecord, Takes, budget_of};
pub use scim::{NotAnId, ScimGone, ScimGroup, ScimId, ScimKey, ScimMembership, ScimToken, ScimUser};
use serde::{Deserialize, Serialize};
pub use token::{TokenHash, TokenRecord};

/// What a device runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DeviceKind {
    /// Our agent: it has a stream and enforces.
    Agent,
    /// An ordinary WireGuard client with an exported configuration: no stream, never a destination.
    StockClient,
}

/// Whether the machine's name may stand for a resource. A name is a claim of the machine's until somebody vouches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NameClaim {
    /// The machine chose it; `node = "NAME"` in the policy does not mean this machine yet.
    #[default]
    Claimed,
    /// An administrator approved it, or the enrolment token was made for this name.
    Approved,
}

/// Whether a device may take part.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Standing {
    /// Nothing is held against it.
    #[default]
    Good,
    /// Its device key is refused until an administrator lifts this.
    Revoked {
        /// Since when.
        since: WallTime,
        /// Why, for people.
        reason: String,
    },
}

/// The overlay addresses of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Addresses {
    /// From the controller's ULA /48.
    pub v6: Ipv6Addr,
    /// From the configured pool.
    pub v4: Ipv4Addr,
}

impl Addresses {
    /// Returns both, IPv6 first.
    pub fn to_vec(self) -> Vec<IpAddr> {
        vec![self.v6.into(), self.v4.into()]
    }
}

/// One machine of a subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// The device, and the node if it runs our agent.
    pub id: DeviceId,
    /// What it runs.
    pub kind: DeviceKind,
    /// The key that names it; absent for stock clients.
    pub key: Option<DevicePublicKey>,
    /// The machine's name; unique.
    pub name: MachineName,
    /// Whether the name may stand for a resource.
    pub name_claim: NameClaim,
    /// The person or service to whom it belongs.
    pub owner: SubjectId,
    /// Tags that count.
    pub tags: BTreeSet<Tag>,
    /// Tags that wait for an administrator.
    pub tags_pending: BTreeSet<Tag>,
    /// Its overlay addresses.
    pub addresses: Addresses,
    /// WireGuard public keys in use, newest first; empty when nobody is signed in.
    pub wireguard_keys: Vec<WireGuardPublicKey>,
    /// Whether it may take part.
    pub standing: Standing,
    /// When it was enrolled.
    pub created: WallTime,
    /// When its stream last began or ended.
    pub last_seen: WallTime,
    /// The outer address from which its stream last came.
    pub last_address: Option<IpAddr>,
    /// Where its login session spoke from last, as far as maps knew; a service has one session for ever. It stands here, so that a restart
    /// and a way by addresses that no map knows do not hide that the place is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoke_from: Option<Place>,
    /// Outer addresses at which it was last known, best first.
    pub endpoints: Vec<SocketAddr>,
    /// The version of its software, as it told.
    pub version: String,
    /// The platform whose tokens it signs in with: it takes part only while a login session lasts. Absent for machines that were
    /// enrolled once and for all, and for people's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Box<PlatformBinding>>,
    /// When its newest WireGuard key was added; absent if that was before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_since: Option<WallTime>,
    /// When a person last signed in on it; absent for machines of services, and if that was before this was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_session: Option<WallTime>,
}

/// Why a login session ended before or at its time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEnd {
    /// When.
    pub at: WallTime,
    /// Why, for people.
    pub reason: String,
}

/// One sign-in of a person on one device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRecord {
    /// The login session.
    pub id: SessionId,
    /// Who signed in.
    pub subject: SubjectId,
    /// On which device.
    pub device: DeviceId,
    /// What the identity provider vouched for.
    pub assurance: Assurance,
    /// When it began.
    pub started: WallTime,
    /// From which address the person confirmed it.
    pub from: IpAddr,
    /// The browser's login session with which it ends: for stock clients, which have no other way to end it.
    pub web_session: Option<SessionId>,
    /// The browser's login session in which it was confirmed: what the identity provider later says of that one goes for
    /// this one too. It does not end with it.
    #[serde(default)]
    pub vouched: Option<SessionId>,
    /// What was verified, where an event of the provider's made it count for less since.
    #[serde(default)]
    pub proven: Option<Box<Proven>>,
    /// When the groups had the values that an event of the provider's told.
    #[serde(default)]
    pub claims_told: Option<WallTime>,
    /// When it ends at the latest.
    pub expires: WallTime,
    /// Set once it has ended.
    pub ended: Option<SessionEnd>,
}

/// What one login session or service on one device is entitled to, until it expires. Only its times are durable: what
/// it opens is decided anew from policy, so that a restart can never bring back what a change took away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeaseRecord {
    /// The lease.
    pub id: LeaseId,
    /// The device.
    pub device: DeviceId,
    /// The subject.
    pub subject: SubjectId,
    /// The login session; absent for a service.
    pub session: Option<SessionId>,
    /// When it was first issued.
    pub issued: WallTime,
    /// When it was last renewed.
    pub renewed: WallTime,
    /// When it ends unless it is renewed.
    pub until: WallTime,
    /// Parts that began after that, with a new policy or another signal: each has its time from its own beginning.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub later: Vec<LaterPart>,
}

impl LeaseRecord {
    /// Returns since when a part has had its time.
    pub fn since(&self, rule: &RuleName, resource: &ResourceName) -> WallTime {
        let later = self.later.iter().find(|part| part.rule == *rule && part.resource == *resource);
        later.map_or(self.renewed, |part| part.since)
    }
}

/// A part of a lease that began after the lease's last renewal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaterPart {
    /// The rule that gives it.
    pub rule: RuleName,
    /// The resource.
    pub resource: ResourceName,
    /// When it began.
    pub since: WallTime,
}

/// One end of a pair of WireGuard keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PairEnd {
    /// Whose key it is.
    pub device: DeviceId,
    /// The key.
    pub key: WireGuardPublicKey,
}

/// Names a pair: its two WireGuard keys, the smaller first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PairName(WireGuardPublicKey, WireGuardPublicKey);

impl PairName {
    /// Names the pair of two keys, in either order.
    pub fn of(one: WireGuardPublicKey, other: WireGuardPublicKey) -> Self {
        if one <= other { Self(one, other) } else { Self(other, one) }
    }
}

impl fmt::Display for PairName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0, self.1)
    }
}

/// Two WireGuard keys that may make sessions, their pre-shared key, and who of the two knows.
///
/// `first` is told at once and `second` only after `first` has acknowledged, so that the first handshake succeeds.
/// Durable, so that a restart of the controller neither changes the pre-shared key under a running session nor
/// forgets what had been opened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PairRecord {
    /// The end that learns first: the destination, or the peer of a node that changes its key.
    pub first: PairEnd,
    /// The end that learns second.
    pub second: PairEnd,
    /// The pre-shared key: 32 random bytes, for this pair alone.
    pub preshared: PresharedKey,
    /// Whether `first` has acknowledged it.
    pub first_knows: bool,
    /// Whether `second` has acknowledged it.
    pub second_knows: bool,
    /// Whether `first` has acknowledged that `second` may open something on it, and nothing took that away since. Who
    /// knows the pair may know it for the other direction alone.
    #[serde(default)]
    pub first_lets_in: bool,
    /// Whether `second` has acknowledged that `first` may open something on it, and nothing took that away since.
    #[serde(default)]
    pub second_lets_in: bool,
}

impl PairRecord {
    /// Returns the pair's name.
    pub fn name(&self) -> PairName {
        PairName::of(self.first.key, self.second.key)
    }
}

/// Addresses that nobody may have for a while after their device was removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HoldRecord {
    /// The addresses.
    pub addresses: Addresses,
    /// When they may be given out again.
    pub until: WallTime,
}

/// A rule that an administrator revoked. It gives nothing until the revocation is lifted, whatever the policy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokedRule {
    /// The rule.
    pub rule: RuleName,
    /// The operating system's user who revoked it.
    pub by: String,
    /// Why.
    pub reason: String,
    /// When.
    pub at: WallTime,
}

/// What there is once.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Meta {
    /// Milliseconds since the Unix epoch at which this life of the controller began (`init` or `restore`).
    pub epoch: u64,
    /// The number of the policy in force; `policy apply` adds one.
    pub policy_revision: u64,
    /// The text of the policy in force.
    pub policy_text: String,
    /// When it was applied.
    pub policy_applied: WallTime,
    /// By which operating system's user.
    pub policy_applied_by: String,
    /// When this life began, if that was with a restored backup: which tokens of platforms were shown or taken back since the
    /// backup was made is not known any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restored: Option<WallTime>,
}

/// Everything durable, as the store loads it at start.
#[derive(Debug, Clone, Default)]
pub struct Loaded {
    /// What there is once.
    pub meta: Meta,
    /// What time it was when that was last written.
    pub clock: Option<ClockRecord>,
    /// Subjects.
    pub subjects: Vec<SubjectRecord>,
    /// Devices.
    pub devices: Vec<DeviceRecord>,
    /// Login sessions; those that ended may be left out.
    pub sessions: Vec<SessionRecord>,
    /// Leases.
    pub leases: Vec<LeaseRecord>,
    /// Enrolment tokens.
    pub tokens: Vec<TokenRecord>,
    /// Pairs of keys.
    pub pairs: Vec<PairRecord>,
    /// Addresses on hold.
    pub holds: Vec<HoldRecord>,
    /// Revoked rules.
    pub revoked_rules: Vec<RevokedRule>,
    /// Whom and what is in quarantine.
    pub quarantines: Vec<QuarantineRecord>,
    /// What is known of devices' postures.
    pub postures: Vec<PostureRecord>,
    /// Requests for access for a time.
    pub requests: Vec<RequestRecord>,
    /// What an administrator opened past the rules.
    pub break_glass: Vec<BreakGlassRecord>,
    /// Streams of security events.
    pub event_streams: Vec<StreamRecord>,
    /// Tokens of security events that were taken.
    pub seen_events: Vec<SeenRecord>,
    /// Doors that are shut to sign-ins from before.
    pub shut_doors: Vec<ShutDoor>,
    /// What is taken from subjects and devices for a time.
    pub restraints: Vec<RestraintRecord>,
    /// Bearer tokens of SCIM clients.
    pub scim_tokens: Vec<ScimToken>,
    /// People whom providers have provisioned.
    pub scim_users: Vec<ScimUser>,
    /// Groups that providers have provisioned.
    pub scim_groups: Vec<ScimGroup>,
    /// Who is in which of them.
    pub scim_members: Vec<ScimMembership>,
    /// Names of people whom providers took away.
    pub scim_gone: Vec<ScimGone>,
    /// Platform tokens that machines have shown.
    pub token_uses: Vec<TokenUseRecord>,
    /// What services are known to do.
    pub habits: Vec<HabitsRecord>,
}

/// One change to what is durable. `Put` replaces the record of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreChange {
    /// Writes what there is once.
    PutMeta(Meta),
    /// Writes what time it is.
    PutClock(ClockRecord),
    /// Writes a subject, named by its id.
    PutSubject(SubjectRecord),
    /// Writes a device, named by its id.
    PutDevice(DeviceRecord),
    /// Forgets a device; its sessions and leases were ended before.
    DeleteDevice(DeviceId),
    /// Writes a login session, named by its id.
    PutSession(SessionRecord),
    /// Forgets a login session that ended long ago.
    DeleteSession(SessionId),
    /// Writes a lease, named by its id.
    PutLease(LeaseRecord),
    /// Forgets a lease that ended.
    DeleteLease(LeaseId),
    /// Writes a token, named by its hash.
    PutToken(TokenRecord),
    /// Forgets a token that was used up, expired or taken back.
    DeleteToken(TokenHash),
    /// Writes a pair of keys, named by [`PairRecord::name`].
    PutPair(PairRecord),
    /// Forgets a pair and its pre-shared key.
    DeletePair(PairName),
    /// Writes addresses on hold, named by their IPv6 address.
    PutHold(HoldRecord),
    /// Forgets a hold.
    DeleteHold(Addresses),
    /// Writes a revoked rule, named by the rule.
    PutRevokedRule(RevokedRule),
    /// Forgets that a rule was revoked.
    DeleteRevokedRule(RuleName),
    /// Writes a quarantine, named by whom or what it holds.
    PutQuarantine(QuarantineRecord),
    /// Forgets a quarantine that was released.
    DeleteQuarantine(Quarantined),
    /// Writes what is known of a device's posture, named by the device.
    PutPosture(PostureRecord),
    /// Forgets a device's posture.
    DeletePosture(DeviceId),
    /// Writes a request for access, named by its id.
    PutRequest(RequestRecord),
    /// Forgets a request that is over.
    DeleteRequest(RequestId),
    /// Writes an opening past the rules, named by its id.
    PutBreakGlass(BreakGlassRecord),
    /// Forgets an opening past the rules that is over.
    DeleteBreakGlass(BreakGlassId),
    /// Writes a restraint, named by [`RestraintRecord::name`].
    PutRestraint(RestraintRecord),
    /// Forgets a restraint that was released.
    DeleteRestraint(RestraintRecord),
    /// Writes that a platform token was shown, named by its hash.
    PutTokenUse(TokenUseRecord),
    /// Forgets a platform token that nobody could use any more.
    DeleteTokenUse(TokenHash),
    /// Writes what a service is known to do, named by the service.
    PutHabits(HabitsRecord),
    /// Spools an alert.
    PutAlert(Alert),
    /// Writes what is known of a stream of security events, named by its name.
    PutEventStream(StreamRecord),
    /// Remembers that a token was taken, named by its hash.
    PutSeenEvent(SeenRecord),
    /// Forgets a token that is too old to be taken.
    DeleteSeenEvent(String),
    /// Shuts a door to sign-ins from before, named by the hash of whose it is.
    PutShutDoor(ShutDoor),
    /// Forgets a door that was shut long ago.
    DeleteShutDoor(String),
    /// Writes a SCIM client's token, named by its hash.
    PutScimToken(ScimToken),
    /// Forgets a SCIM client's token.
    DeleteScimToken(TokenHash),
    /// Writes a person of SCIM's, named by its id.
    PutScimUser(ScimUser),
    /// Forgets a person of SCIM's; it was taken out of its groups before.
    DeleteScimUser(ScimId),
    /// Writes a group of SCIM's, named by its id.
    PutScimGroup(ScimGroup),
    /// Forgets a group of SCIM's and who was in it.
    DeleteScimGroup(ScimId),
    /// Changes who is in a group of SCIM's.
    ScimMembers {
        /// The group.
        group: ScimId,
        /// Who comes.
        added: Vec<ScimId>,
        /// Who goes.
        removed: Vec<ScimId>,
    },
    /// Writes the name of somebody who was taken away, named by its id.
    PutScimGone(ScimGone),
    /// Forgets that somebody of that name was taken away.
    DeleteScimGone(ScimGone),
}
