//! What is known when somebody asks: who, on which device, how well proven, from where, and when.
//!
//! The controller fills a [`RequestContext`] from what it has checked itself: a verified ID token, a local sign-in, a
//! device key. What it could not learn stays absent, and absent means *unknown*: it satisfies every deny and no access.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use super::{condition::State, place::Place, request::Approval, restraint::Restraint};
use crate::{
    id::{DeviceId, MachineName, ServiceName, Tag},
    posture::Report,
    time::WallTime,
};

/// A truth of three values (Kleene's strong logic).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Truth {
    /// It holds.
    True,
    /// It does not hold.
    False,
    /// What is known does not tell.
    Unknown,
}

impl Truth {
    /// Returns the conjunction: false if either is false, else unknown if either is unknown.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::False, _) | (_, Self::False) => Self::False,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::True, Self::True) => Self::True,
        }
    }

    /// Returns the disjunction: true if either is true, else unknown if either is unknown.
    #[must_use]
    pub const fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::True, _) | (_, Self::True) => Self::True,
            (Self::Unknown, _) | (_, Self::Unknown) => Self::Unknown,
            (Self::False, Self::False) => Self::False,
        }
    }

    /// Returns the negation; the unknown stays unknown.
    #[must_use]
    pub const fn negated(self) -> Self {
        match self {
            Self::True => Self::False,
            Self::False => Self::True,
            Self::Unknown => Self::Unknown,
        }
    }

    /// Makes a truth of what is known for certain.
    pub const fn known(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// How a person is identified. Never by e-mail.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum UserIdentity {
    /// A local account of the controller; `from = ["user:NAME"]` names it.
    Local {
        /// The login name.
        name: String,
    },
    /// A person of the OpenID provider that the controller is configured with; `from = ["user:oidc/SUB"]` names it.
    /// The caller has checked that the token was issued by that provider.
    Oidc {
        /// The issuer's URL, `iss`.
        issuer: String,
        /// The subject at the issuer, `sub`.
        sub: String,
    },
}

/// How well a sign-in was proven. Absent parts are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Assurance {
    /// When the person last proved who they are, `auth_time`.
    pub auth_time: Option<WallTime>,
    /// The authentication context class, `acr`.
    pub acr: Option<String>,
    /// The methods used, `amr` (RFC 8176); for local accounts `pwd`, and `otp` with a second factor.
    pub amr: Option<BTreeSet<String>>,
}

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    /// A signed-in person.
    User {
        /// How the person is identified.
        identity: UserIdentity,
        /// The name for people, as it is printed; nothing is matched against it.
        display_name: String,
        /// The person's groups; absent if the token did not carry them.
        groups: Option<BTreeSet<String>>,
        /// How the sign-in was proven.
        assurance: Assurance,
    },
    /// A service identity.
    Service {
        /// Its name, without `service:`.
        name: ServiceName,
    },
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::User { display_name, .. } => f.write_str(display_name),
            Self::Service { name } => write!(f, "service:{name}"),
        }
    }
}

/// Everything that one decision is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestContext {
    /// Who asks.
    pub subject: Subject,
    /// The device that asks; it is never its own target. Absent in tests and simulation.
    pub device: Option<DeviceId>,
    /// The device's machine name, for people.
    pub machine: Option<MachineName>,
    /// The device's approved tags.
    pub tags: BTreeSet<Tag>,
    /// What the device last reported of itself.
    pub posture: Option<Report>,
    /// What a device-management system last said of the device.
    pub attested: Option<Report>,
    /// The outer address from which the device speaks.
    pub address: Option<IpAddr>,
    /// Whether an administrator approved the machine's name. Whoever joins chooses a name that is free.
    pub machine_approved: bool,
    /// What was approved for this subject on this device.
    pub approved: Vec<Approval>,
    /// What is taken from this subject for a time, here or everywhere.
    pub restraints: Vec<Restraint>,
    /// Where that address is.
    pub place: Place,
    /// Other addresses from which the device is seen to speak, and where those are. A condition on the place that is not the same from
    /// everywhere is unknown.
    pub also: Vec<(IpAddr, Place)>,
    /// The time of the decision.
    pub now: WallTime,
    /// What the time may be instead, if somebody has set the clock that `now` was read from. A condition on time that is not the
    /// same at both is unknown.
    pub instead: Option<WallTime>,
}

impl RequestContext {
    /// Returns who asks on which machine: `alice@corp.example on alice-laptop`.
    pub fn who(&self) -> String {
        match &self.machine {
            Some(machine) => format!("{} on {machine}", self.subject),
            None => self.subject.to_string(),
        }
    }

    /// Returns the later of the times that it may be.
    pub(super) fn latest(&self) -> WallTime {
        self.instead.map_or(self.now, |instead| instead.max(self.now))
    }

    /// Returns the earlier of the times that it may be.
    pub(super) fn earliest(&self) -> WallTime {
        self.instead.map_or(self.now, |instead| instead.min(self.now))
    }

    /// Evaluates what depends on the time at every time that it may be. Where the answers differ it is unknown, which opens nothing.
    /// It stays so, in terms of `now`, until the first of them may change: both clocks go on at the same pace.
    pub(super) fn at_every_time(&self, state: impl Fn(WallTime) -> State) -> State {
        let here = state(self.now);
        let Some(instead) = self.instead else { return here };
        let there = state(instead);
        let left = |until: WallTime| until.as_millis().saturating_sub(instead.as_millis());
        let there_until = match there.until {
            WallTime::NEVER => WallTime::NEVER,
            until => WallTime::from_millis(self.now.as_millis().saturating_add(left(until))),
        };
        let truth = if here.truth == there.truth { here.truth } else { Truth::Unknown };
        State { truth, until: here.until.min(there_until) }
    }

    /// Says that the time is in doubt, if it is.
    pub(super) fn doubt(&self) -> Option<String> {
        let instead = self.instead?;
        Some(format!(
            "the controller's clock was set: it says {}, and it is {instead} if nobody had set it; conditions on time hold only at both",
            self.now
        ))
    }
}

/// A node that resources may name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TargetNode {
    /// The node's device.
    pub device: DeviceId,
    /// Its machine name, as the controller approved it.
    pub name: MachineName,
    /// Its approved tags. A tag that waits for approval must not stand here.
    pub tags: BTreeSet<Tag>,
}

/// Every node, indexed by name and tag. Build it once after each change, not for each question.
#[derive(Debug, Clone, Default)]
pub struct Targets {
    nodes: Vec<TargetNode>,
    by_name: BTreeMap<MachineName, Vec<usize>>,
    by_tag: BTreeMap<Tag, Vec<usize>>,
    by_device: BTreeMap<DeviceId, usize>,
}

impl Targets {
    /// Indexes nodes. Of two with the same device the later one counts.
    pub fn new(nodes: impl IntoIterator<Item = TargetNode>) -> Self {
        let unique: BTreeMap<DeviceId, TargetNode> = nodes.into_iter().map(|node| (node.device, node)).collect();
        let mut targets = Self { nodes: unique.into_values().collect(), ..Self::default() };
        for (index, node) in targets.nodes.iter().enumerate() {
            targets.by_name.entry(node.name.clone()).or_default().push(index);
            targets.by_device.insert(node.device, index);
            for tag in &node.tags {
                targets.by_tag.entry(tag.clone()).or_default().push(index);
            }
        }
        targets
    }

    /// Returns every node, in the order of their devices.
    pub fn nodes(&self) -> &[TargetNode] {
        &self.nodes
    }

    /// Returns the node of a device.
    pub fn node(&self, device: DeviceId) -> Option<&TargetNode> {
        self.by_device.get(&device).map(|index| &self.nodes[*index])
    }

    /// Returns the nodes of a machine name; more than one only if the controller allows equal names.
    pub fn named(&self, name: &str) -> impl Iterator<Item = &TargetNode> {
        let found = name.parse::<MachineName>().ok().and_then(|name| self.by_name.get(&name));
        found.into_iter().flatten().map(|index| &self.nodes[*index])
    }

    pub(super) fn indexes_named(&self, name: &MachineName) -> &[usize] {
        self.by_name.get(name).map_or(&[], Vec::as_slice)
    }

    pub(super) fn indexes_tagged(&self, tag: &Tag) -> &[usize] {
        self.by_tag.get(tag).map_or(&[], Vec::as_slice)
    }

    pub(super) fn index_of(&self, device: DeviceId) -> Option<usize> {
        self.by_device.get(&device).copied()
    }
}
