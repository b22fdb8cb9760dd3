//! What an administrator can ask, one JSON line each.

use std::collections::BTreeSet;

use ipnet::IpNet;
use postern_common::{
    id::{MachineName, ServiceName, Tag},
    net::Service,
};
use serde::{Deserialize, Serialize};

use super::scim::ScimRequest;
use crate::stream::Decision;

/// The longest request or answer, in bytes: a policy document of the largest size, as a JSON text, fits.
pub const MAX_LINE: usize = 40 << 20;

/// What is asked.
#[derive(Clone, Serialize, Deserialize)]
#[serde(tag = "ask", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// The controller and every node at a glance.
    Status,
    /// Makes a local account.
    UserAdd {
        /// What the person types.
        login: String,
        /// Its groups.
        groups: BTreeSet<String>,
        /// Whether it also administers.
        admin: bool,
        /// Its password; a one-time link is made if absent.
        password: Option<String>,
    },
    /// Lists local accounts and everybody who signed in through a provider.
    UserList,
    /// Keeps a person out, everywhere.
    UserDisable {
        /// Login or name.
        user: String,
        /// Why.
        reason: String,
    },
    /// Lets a person in again.
    UserEnable {
        /// Login or name.
        user: String,
    },
    /// Removes a local account, for good.
    UserRemove {
        /// Login.
        user: String,
    },
    /// Sets the groups of a local account.
    UserSetGroups {
        /// Login.
        user: String,
        /// All of its groups.
        groups: BTreeSet<String>,
    },
    /// Forgets a local account's second factor.
    UserResetTotp {
        /// Login.
        user: String,
    },
    /// Sets a local account's password, or makes a one-time link.
    UserPasswd {
        /// Login.
        user: String,
        /// The password; a one-time link is made if absent.
        password: Option<String>,
    },
    /// Lists groups and who is in them.
    GroupList,
    /// Makes an enrolment token.
    TokenCreate {
        /// Tags that it approves.
        tags: BTreeSet<Tag>,
        /// The service identity that machines get.
        service: Option<ServiceName>,
        /// The machine name that it is for.
        machine: Option<MachineName>,
        /// From where machines may use it; empty means from anywhere.
        #[serde(default)]
        networks: Vec<IpNet>,
        /// How many machines may use it.
        uses: u32,
        /// How long it works, seconds.
        ttl_s: u64,
    },
    /// Lists enrolment tokens.
    TokenList,
    /// Takes a token back.
    TokenRevoke {
        /// Its short name or hash.
        token: String,
    },
    /// About provisioning (SCIM).
    Scim {
        /// What.
        request: ScimRequest,
    },
    /// Lists devices.
    DeviceList,
    /// Shows one device.
    DeviceShow {
        /// Name or identifier.
        device: String,
    },
    /// Removes a device.
    DeviceRemove {
        /// Name or identifier.
        device: String,
        /// How long to wait for acknowledgements, milliseconds.
        wait_ms: u64,
    },
    /// Renames a device.
    DeviceRename {
        /// Name or identifier.
        device: String,
        /// The new name.
        name: MachineName,
    },
    /// Lists login sessions.
    SessionList,
    /// Lists leases.
    LeaseList,
    /// Approves what a device claims.
    Approve {
        /// Name or identifier.
        device: String,
        /// Tags.
        tags: BTreeSet<Tag>,
        /// Its name, as a destination.
        name: bool,
    },
    /// Refuses or takes away what a device claims.
    Refuse {
        /// Name or identifier.
        device: String,
        /// Tags.
        tags: BTreeSet<Tag>,
        /// Its name, as a destination.
        name: bool,
    },
    /// Cuts something everywhere.
    Revoke {
        /// What.
        what: Revocable,
        /// Which.
        name: String,
        /// Why.
        reason: String,
        /// How long to wait for acknowledgements, milliseconds.
        wait_ms: u64,
    },
    /// Lifts a revocation.
    Lift {
        /// What.
        what: Revocable,
        /// Which.
        name: String,
    },
    /// Puts somebody or something in quarantine.
    Quarantine {
        /// What.
        what: Holdable,
        /// Which.
        name: String,
        /// Why.
        reason: String,
        /// How long to wait for acknowledgements, milliseconds.
        wait_ms: u64,
    },
    /// Releases somebody or something from quarantine.
    QuarantineRelease {
        /// What.
        what: Holdable,
        /// Which.
        name: String,
    },
    /// Lists what is in quarantine.
    QuarantineList,
    /// Takes something from somebody until they sign in anew, or until it is released.
    Restrain {
        /// What.
        what: Restrainable,
        /// Which.
        name: String,
        /// The resources that stay; a fresh sign-in is asked for if absent.
        to: Option<Vec<String>>,
        /// Whether login sessions end.
        terminate: bool,
        /// Why.
        reason: String,
    },
    /// Releases somebody from every restraint.
    RestraintRelease {
        /// What.
        what: Restrainable,
        /// Which.
        name: String,
    },
    /// Lists what is taken from whom.
    RestraintList,
    /// Takes what a device-management system says of devices.
    PostureImport {
        /// JSON lines.
        lines: String,
    },
    /// Binds a serial number to a device.
    PostureBind {
        /// Name or identifier.
        device: String,
        /// The serial number.
        serial: String,
    },
    /// Lists what nobody used for so long.
    Stale {
        /// Milliseconds.
        for_ms: u64,
    },
    /// Opens a resource past the rules.
    BreakGlassOpen {
        /// To whoever is signed in on this machine.
        machine: String,
        /// To whom the machine belongs, where its name is not enough.
        #[serde(default)]
        subject: Option<String>,
        /// The resource.
        resource: String,
        /// For how long, milliseconds.
        length_ms: u64,
        /// Why it is needed.
        reason: String,
        /// Why no rule and no request would do.
        why_past_the_rules: String,
    },
    /// Closes what is open past the rules.
    BreakGlassClose {
        /// Its identifier, or as many of its first letters as name no other.
        id: String,
    },
    /// Lists what is open past the rules.
    BreakGlassList,
    /// Tells what time it is.
    Clock,
    /// Believes the clock as it stands.
    ClockAccept {
        /// Why it is right.
        reason: String,
    },
    /// Lists requests for access.
    RequestList,
    /// Decides about a request for access.
    RequestDecide {
        /// Its identifier, or as many of its first letters as name no other.
        request: String,
        /// What about it.
        decision: Decision,
        /// Why.
        reason: String,
    },
    /// Names the machines at which flows are recorded.
    Places {
        /// A resource, machine or overlay address.
        to: String,
    },
    /// Checks a policy document and tells what it would change.
    PolicyPlan {
        /// The file's name, for messages.
        file: String,
        /// Its text.
        text: String,
    },
    /// Makes a policy document the one in force.
    PolicyApply {
        /// The file's name, for messages.
        file: String,
        /// Its text.
        text: String,
    },
    /// Shows the policy in force.
    PolicyShow,
    /// Tells why somebody may or may not reach something.
    Explain {
        /// Who.
        subject: String,
        /// What.
        to: String,
        /// Which service.
        service: Option<Service>,
    },
    /// Records that a backup was written. The command writes it by itself: the service may be confined to its own folders.
    BackupWritten {
        /// Where.
        file: String,
        /// Whether private keys are in it.
        with_keys: bool,
    },
    /// Gives the join URL.
    JoinUrl,
}

/// Whom or what a revocation cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Revocable {
    /// A login session: the person can sign in again.
    Session,
    /// A device: its key is refused until the revocation is lifted.
    Device,
    /// A person or service: kept out until the revocation is lifted.
    Subject,
    /// A node: stays connected, and nothing passes to it or from it.
    Node,
    /// A rule: gives nothing until the revocation is lifted.
    Rule,
}

impl Revocable {
    /// Returns the word that people type.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Session => "session",
            Self::Device => "device",
            Self::Subject => "subject",
            Self::Node => "node",
            Self::Rule => "rule",
        }
    }
}

/// Whom or what a quarantine holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Holdable {
    /// A person or service: every machine of theirs.
    Subject,
    /// A machine, whoever signs in there.
    Device,
    /// A machine that runs our agent: the same, and it must be one.
    Node,
    /// A resource: nobody may open it.
    Resource,
}

impl Holdable {
    /// Returns the word that people type.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Device => "device",
            Self::Node => "node",
            Self::Resource => "resource",
        }
    }
}

/// From whom a restraint takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Restrainable {
    /// A person or service: on every machine of theirs.
    Subject,
    /// Whoever signs in on a machine.
    Device,
}

impl Restrainable {
    /// Returns the word that people type.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Subject => "subject",
            Self::Device => "device",
        }
    }
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    /// It was done; what there is to say.
    Done {
        /// The facts, in the shape of the request.
        value: serde_json::Value,
    },
    /// It was not done.
    Refused {
        /// What happened and what to do.
        message: String,
    },
}
