//! What the core audits: who did what, from where, with which device, and why it was allowed or refused. Sign-ins at
//! the pages are audited by the pages ([`crate::web::event`]), into the same log.

mod parts;

use std::net::IpAddr;

use ipnet::IpNet;
use postern_common::{
    id::{
        BreakGlassId, DeviceId, LeaseId, MachineName, RequestId, ResourceName, RuleName, ServiceName, SessionId,
        SubjectId, Tag,
    },
    time::WallTime,
};
use serde::{Deserialize, Serialize};

pub use parts::{DecidedAccess, LeaseEnd, RevokeTarget};

use super::{BreakGlassRecord, Quarantined, Restrained, RestraintRecord};

/// One event of the audit log. `subject_name` and `machine` are as people knew them at that time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "event")]
pub enum AuditEvent {
    /// The controller began to serve.
    Started {
        /// This life of the controller.
        epoch: u64,
        /// The policy in force.
        policy_revision: u64,
    },
    /// The controller was restored from a backup: every login session is over.
    Restored {
        /// The new life of the controller.
        epoch: u64,
        /// How many login sessions were ended.
        sessions_ended: usize,
    },
    /// A machine asks a person to sign in for it.
    JoinAsked {
        /// The name that it would like.
        machine: MachineName,
        /// Its device key's fingerprint.
        fingerprint: String,
        /// From which address.
        from: IpAddr,
    },
    /// A person confirmed a machine.
    JoinConfirmed {
        /// Who.
        subject: SubjectId,
        /// Their name.
        subject_name: String,
        /// The device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// The login session.
        session: SessionId,
        /// From which address the person confirmed.
        from: IpAddr,
        /// From which address the machine asked.
        asked_from: IpAddr,
    },
    /// A join was refused: by the person, by a limit, or by its content.
    JoinRefused {
        /// The name that the machine would have liked.
        machine: MachineName,
        /// From which address the machine asked.
        from: IpAddr,
        /// Why.
        reason: String,
    },
    /// A machine joined with an enrolment token.
    Enrolled {
        /// The service identity.
        subject: SubjectId,
        /// Its name.
        subject_name: String,
        /// The device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// The token's short name.
        token: String,
        /// The tags that count.
        tags: Vec<Tag>,
        /// From which address.
        from: IpAddr,
    },
    /// A machine tried a token in vain.
    EnrolRefused {
        /// The name that the machine would have liked.
        machine: MachineName,
        /// From which address.
        from: IpAddr,
        /// Why.
        reason: String,
    },
    /// A machine signed in with a token of its platform.
    PlatformSignedIn {
        /// The service identity.
        subject: SubjectId,
        /// Its name.
        subject_name: String,
        /// The device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// The login session.
        session: SessionId,
        /// The issuer's name in `controller.toml`.
        issuer: String,
        /// What the platform calls the workload.
        workload: String,
        /// The token's short name.
        token: String,
        /// The tags that count.
        tags: Vec<Tag>,
        /// From which address.
        from: IpAddr,
        /// Until when, at the latest.
        until: WallTime,
    },
    /// A machine showed a fresh token of its platform in time.
    PlatformRenewed {
        /// The device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// The login session.
        session: SessionId,
        /// The token's short name.
        token: String,
        /// From which address.
        from: IpAddr,
        /// Until when, at the latest.
        until: WallTime,
    },
    /// A platform's token was refused.
    PlatformRefused {
        /// The name that the machine has or would have liked.
        machine: MachineName,
        /// Its device key's fingerprint.
        fingerprint: String,
        /// From which address.
        from: IpAddr,
        /// Why.
        reason: String,
        /// How many others were refused and are not recorded, because too many came from one address.
        unrecorded: u64,
    },
    /// A machine that signed in with tokens of its platform has been away for long and is forgotten.
    PlatformMachineForgotten {
        /// The device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// When it was last there.
        last_seen: WallTime,
    },
    /// A machine has not changed its WireGuard key in time.
    KeyOverdue {
        /// The device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// Since when it has the key.
        since: WallTime,
        /// Whether it reaches nothing until it has changed it.
        denied: bool,
    },
    /// A node's stream began.
    StreamOpened {
        /// The node.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// From which address.
        from: IpAddr,
        /// The version of its software.
        version: String,
    },
    /// A node's stream ended.
    StreamClosed {
        /// The node.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// Why.
        reason: String,
    },
    /// A stream was refused before it named a known node.
    StreamRefused {
        /// The device that it claimed to be.
        device: Option<DeviceId>,
        /// From which address.
        from: IpAddr,
        /// Why.
        reason: String,
    },
    /// A decision whose outcome differs from the one before it.
    Decided {
        /// About whom.
        subject: SubjectId,
        /// Their name.
        subject_name: String,
        /// On which device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// The lease that carries it.
        lease: LeaseId,
        /// Under which policy.
        policy_revision: u64,
        /// What may be reached, by which rule.
        allowed: Vec<DecidedAccess>,
    },
    /// A lease began.
    LeaseIssued {
        /// The lease.
        lease: LeaseId,
        /// The subject.
        subject: SubjectId,
        /// Its name.
        subject_name: String,
        /// The device.
        device: DeviceId,
        /// The login session; absent for a service.
        session: Option<SessionId>,
        /// Until when.
        until: WallTime,
    },
    /// A lease got more time.
    LeaseRenewed {
        /// The lease.
        lease: LeaseId,
        /// The device.
        device: DeviceId,
        /// Until when.
        until: WallTime,
    },
    /// A lease ended.
    LeaseEnded {
        /// The lease.
        lease: LeaseId,
        /// The subject.
        subject: SubjectId,
        /// The device.
        device: DeviceId,
        /// Why.
        why: LeaseEnd,
    },
    /// A login session ended.
    SessionEnded {
        /// The login session.
        session: SessionId,
        /// Whose.
        subject: SubjectId,
        /// Their name.
        subject_name: String,
        /// On which device.
        device: DeviceId,
        /// Why.
        reason: String,
    },
    /// A node asked for a page on which its person proves their sign-in anew.
    StepUpAsked {
        /// The login session.
        session: SessionId,
        /// Whose.
        subject: SubjectId,
        /// Their name.
        subject_name: String,
        /// On which device.
        device: DeviceId,
        /// The resource that asks for it.
        resource: ResourceName,
        /// What is asked of the proof.
        demand: String,
    },
    /// A person proved their sign-in anew.
    SteppedUp {
        /// The login session.
        session: SessionId,
        /// Whose.
        subject: SubjectId,
        /// Their name.
        subject_name: String,
        /// On which device.
        device: DeviceId,
        /// The resource that asked for it.
        resource: ResourceName,
        /// The authentication context class.
        acr: Option<String>,
        /// The authentication methods.
        amr: Vec<String>,
        /// When it was proven.
        auth_time: Option<WallTime>,
        /// From which address.
        from: IpAddr,
    },
    /// A step-up was refused, and nothing changed.
    StepUpRefused {
        /// The login session.
        session: SessionId,
        /// Whose.
        subject: SubjectId,
        /// Their name.
        subject_name: String,
        /// On which device.
        device: DeviceId,
        /// The resource that asks for it.
        resource: ResourceName,
        /// Why.
        reason: String,
        /// From which address.
        from: IpAddr,
    },
    /// Something was revoked.
    Revoked {
        /// The revocation's number.
        revocation: u64,
        /// What.
        target: RevokeTarget,
        /// By which operating system's user, or by whom else.
        by: String,
        /// Why.
        reason: String,
        /// How many nodes have to cut something.
        nodes: usize,
    },
    /// Every node has cut what was revoked.
    RevocationDone {
        /// The revocation's number.
        revocation: u64,
        /// How many nodes acknowledged.
        acknowledged: usize,
        /// At how many nodes, away from the controller, the deadline has passed instead.
        expired: usize,
        /// Milliseconds from the command to the last of them.
        elapsed_ms: u64,
        /// How many live flows the nodes cut, counted where they led to.
        flows_cut: u64,
    },
    /// A revocation was lifted.
    RevocationLifted {
        /// What.
        target: RevokeTarget,
        /// By which operating system's user.
        by: String,
    },
    /// Somebody or something came into quarantine.
    Quarantined {
        /// Whom or what.
        target: Quarantined,
        /// Its name.
        name: String,
        /// Why.
        reason: String,
        /// By which operating system's user, or by which signal.
        by: String,
        /// Since when.
        since: WallTime,
    },
    /// Somebody or something was released from quarantine.
    QuarantineReleased {
        /// Whom or what.
        target: Quarantined,
        /// Its name.
        name: String,
        /// By which operating system's user.
        by: String,
    },
    /// Something is taken from a subject or device until it proves its sign-in anew, or an administrator releases it.
    Restrained {
        /// The name of the subject or device.
        name: String,
        /// Whom, what, why, by whom or what.
        record: RestraintRecord,
    },
    /// An administrator released a subject or device from every restraint.
    RestraintsReleased {
        /// Whom.
        whom: Restrained,
        /// The name of the subject or device.
        name: String,
        /// By which operating system's user.
        by: String,
    },
    /// An administrator opened something past the rules.
    BreakGlassOpened {
        /// What, to whom, until when, and why.
        record: BreakGlassRecord,
        /// The subject's name.
        subject_name: String,
        /// The machine's name.
        machine: MachineName,
    },
    /// An administrator closed what was open past the rules.
    BreakGlassClosed {
        /// Which.
        id: BreakGlassId,
        /// By which operating system's user.
        by: String,
    },
    /// A subject asks for access for a time.
    AccessRequested {
        /// The request.
        request: RequestId,
        /// Who.
        subject: SubjectId,
        /// Their name.
        subject_name: String,
        /// On which device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// What for.
        resource: ResourceName,
        /// Under which rule.
        rule: RuleName,
        /// For how long, seconds.
        length_s: u64,
        /// Why.
        reason: String,
    },
    /// Somebody decided about a request for access.
    AccessDecided {
        /// The request.
        request: RequestId,
        /// Who asked.
        subject: SubjectId,
        /// Their name.
        subject_name: String,
        /// On which device.
        device: DeviceId,
        /// What for.
        resource: ResourceName,
        /// Under which rule.
        rule: RuleName,
        /// Until when it holds; absent if it was refused.
        until: Option<WallTime>,
        /// Who decided.
        by: String,
        /// Why.
        reason: String,
    },
    /// A node has a new WireGuard key.
    KeyAdded {
        /// The node.
        device: DeviceId,
        /// The key's fingerprint.
        fingerprint: String,
    },
    /// A WireGuard key is used no longer.
    KeyRetired {
        /// The node.
        device: DeviceId,
        /// The key's fingerprint.
        fingerprint: String,
    },
    /// A policy took effect.
    PolicyApplied {
        /// Its number.
        revision: u64,
        /// The SHA-256 of its text, in hexadecimal.
        sha256: String,
        /// By which operating system's user.
        by: String,
    },
    /// An enrolment token was made.
    TokenCreated {
        /// Its short name.
        token: String,
        /// The tags that it approves.
        tags: Vec<Tag>,
        /// The service identity that machines get; one of their own if absent.
        service: Option<ServiceName>,
        /// The machine name that it vouches for.
        machine: Option<MachineName>,
        /// From where machines may use it; empty means from anywhere.
        #[serde(default)]
        networks: Vec<IpNet>,
        /// How many machines may use it.
        uses: u32,
        /// Until when.
        expires: WallTime,
        /// By which operating system's user.
        by: String,
    },
    /// An enrolment token was taken back.
    TokenDeleted {
        /// Its short name.
        token: String,
        /// By which operating system's user.
        by: String,
    },
    /// Tags of a device, or its name as a destination, were approved or refused.
    ClaimsDecided {
        /// The device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// Tags that count from now on.
        approved: Vec<Tag>,
        /// Tags that were refused or taken away.
        refused: Vec<Tag>,
        /// Whether the machine's name may stand for a resource.
        name_approved: bool,
        /// By which operating system's user.
        by: String,
    },
    /// Facts about a device are others than before.
    PostureChanged {
        /// The device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// Who said so: `device`, or the operating system's user who imported it.
        by: String,
        /// What changed, one fact each: `firewall: on -> off`.
        changes: Vec<String>,
    },
    /// A device's report was refused: forged, shown again, or of another device. What was known stays.
    PostureRefused {
        /// The device on whose stream it came.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// Why.
        reason: String,
    },
    /// What a device-management system said of devices was imported.
    PostureImported {
        /// By which operating system's user.
        by: String,
        /// Lines that were taken.
        taken: usize,
        /// Lines that were not.
        refused: usize,
    },
    /// A serial number was bound to a device.
    SerialBound {
        /// The device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// The serial number.
        serial: String,
        /// By which operating system's user.
        by: String,
    },
    /// A device was removed.
    DeviceRemoved {
        /// The device.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// By whom.
        by: String,
    },
    /// A subject was disabled or enabled, or its groups were changed.
    SubjectChanged {
        /// The subject.
        subject: SubjectId,
        /// Its name.
        subject_name: String,
        /// What changed, for people.
        what: String,
        /// By whom.
        by: String,
    },
    /// A security event of another system was taken.
    SignalTaken {
        /// The stream.
        stream: String,
        /// What kind of event.
        kind: String,
        /// About whom.
        subject: Option<SubjectId>,
        /// Their name.
        subject_name: Option<String>,
        /// About which device.
        device: Option<DeviceId>,
        /// What it did.
        effect: String,
        /// How many login sessions on machines it concerned.
        sessions: usize,
        /// Why, as the other system says.
        reason: Option<String>,
        /// When it happened there.
        at: WallTime,
    },
    /// Signals were refused, or had no effect: the first of its kind, or how many more there were in a minute.
    SignalRefused {
        /// Whose.
        source: String,
        /// Why.
        reason: String,
        /// From where the last of them came; absent for what the controller fetched itself.
        from: Option<IpAddr>,
        /// How many.
        times: u64,
    },
    /// A stream of security events fell silent, or speaks again.
    SignalStream {
        /// The stream.
        stream: String,
        /// What happened.
        what: String,
    },
    /// A provider has provisioned something: people or groups are others than before.
    Provisioned {
        /// The provider's issuer.
        issuer: String,
        /// The short name of the client's token.
        token: String,
        /// From which address.
        from: IpAddr,
        /// What changed, for people.
        what: String,
    },
    /// A configuration for a stock WireGuard client was exported.
    StockExported {
        /// For whom.
        subject: SubjectId,
        /// Their name.
        subject_name: String,
        /// The device that was made for it.
        device: DeviceId,
        /// Its name.
        machine: MachineName,
        /// Until when it can be renewed.
        until: WallTime,
        /// From which address it was asked for.
        from: IpAddr,
    },
    /// The wall clock was found set, or agrees again with the time that has passed.
    ClockSet {
        /// What it shows.
        shows: WallTime,
        /// What time it would be if nobody had set it.
        steady: WallTime,
    },
    /// Something else that an administrator did: accounts, backups.
    Administration {
        /// By which operating system's user.
        by: String,
        /// What.
        action: String,
        /// Further facts.
        detail: String,
    },
}
