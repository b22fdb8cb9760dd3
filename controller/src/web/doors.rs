//! What the pages need from the rest of the controller, as one trait: joins that wait, what a person may reach, their
//! machines, and configurations for stock WireGuard clients.
//!
//! The pages decide nothing about access. They prove who is asking ([`SignedIn`]), show what the implementation
//! answers, and pass on what the person chose. Every method takes the person, so that an implementation can only
//! answer about *their* machines; an identifier that is somebody else's is [`DoorsError::NotFound`].

use std::{
    future::Future,
    net::{IpAddr, SocketAddr},
    pin::Pin,
};

use ipnet::IpNet;
use postern_common::{
    id::{DeviceId, MachineName, RequestId, ResourceName, RuleName, SessionId},
    key::{DevicePublicKey, PresharedKey, WireGuardPublicKey},
    net::Service,
    policy::Demand,
    time::WallTime,
};

use super::event::IdentityEvent;
use crate::{
    identity::{SignedIn, local::CopiedPasskey, random::Token, user_code::UserCode},
    signals::provider::{Ends, Overtaking, logout::LogoutToken},
    stream::{Decision, RequestView},
};

/// An answer that is being worked out.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, DoorsError>> + Send + 'a>>;

/// Tells why a request of a signed-in person was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DoorsError {
    /// There is no such thing, or it belongs to somebody else.
    #[error("there is no such thing for this person")]
    NotFound,
    /// The join's code has expired or was used.
    #[error("the code has expired or was used")]
    Expired,
    /// Another machine waits under this code than the one that was shown.
    #[error("another machine waits under this code")]
    Changed,
    /// The policy or a limit does not permit it. The text is for the person: what, and what to do.
    #[error("not permitted: {0}")]
    NotPermitted(String),
    /// The controller cannot do it now. The text is for the log, never for the page.
    #[error("unavailable: {0}")]
    Unavailable(String),
}

/// Why a person who signed in is turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TurnedAway {
    /// Their provider does not provision them, or no more. The text is for the person.
    NotProvisioned(String),
    /// The sign-in comes from before something that ended it.
    Overtaken(Overtaking),
    /// An administrator has stopped them, or the machine that this sign-in let in. The text is for the person.
    Stopped(String),
}

impl TurnedAway {
    /// Returns the constant word for the audit log.
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotProvisioned(_) => "not_provisioned",
            Self::Overtaken(why) => why.word(),
            Self::Stopped(_) => "stopped",
        }
    }
}

/// What the pages ask of the controller.
pub trait Doors: Send + Sync + 'static {
    /// Looks up the machine that waits under a code. [`DoorsError::NotFound`] if none does, [`DoorsError::Expired`]
    /// if one did.
    fn pending_join<'a>(&'a self, code: UserCode, who: &'a SignedIn) -> Answer<'a, PendingJoin>;

    /// Lets the machine in as a device of this person and opens a login session on it. The code is spent.
    ///
    /// `shown` is the key of the machine that the person saw; if another one waits, [`DoorsError::Changed`].
    fn confirm_join<'a>(
        &'a self,
        code: UserCode,
        shown: DevicePublicKey,
        who: &'a SignedIn,
    ) -> Answer<'a, JoinedMachine>;

    /// Turns the machine away. The code is spent.
    fn refuse_join<'a>(&'a self, code: UserCode, who: &'a SignedIn) -> Answer<'a, ()>;

    /// Shows what this person may reach and which machines are theirs.
    fn portal<'a>(&'a self, who: &'a SignedIn) -> Answer<'a, Portal>;

    /// Ends a login session on one of this person's machines; its flows are cut.
    fn end_session<'a>(&'a self, session: SessionId, who: &'a SignedIn) -> Answer<'a, ()>;

    /// Removes one of this person's machines for good.
    fn remove_device<'a>(&'a self, device: DeviceId, who: &'a SignedIn) -> Answer<'a, ()>;

    /// Lets a stock WireGuard client in, for the resources whose rules permit it, and tells its configuration.
    /// Its lease lives no longer than [`SignedIn::session_until`] and ends at [`Doors::signed_out`].
    fn stock_client<'a>(&'a self, asked: StockRequest, who: &'a SignedIn) -> Answer<'a, StockConfiguration>;

    /// Lists the requests for access about which this person may decide.
    fn requests<'a>(&'a self, who: &'a SignedIn) -> Answer<'a, Vec<RequestView>>;

    /// Decides about a request for access. [`DoorsError::NotFound`] if this person may not.
    fn decide_request<'a>(
        &'a self,
        request: RequestId,
        decision: Decision,
        reason: String,
        who: &'a SignedIn,
    ) -> Answer<'a, ()>;

    /// Tells that the browser's login session ended; stock clients that it let in end with it.
    fn signed_out<'a>(&'a self, who: &'a SignedIn) -> Answer<'a, ()>;

    /// Tells that the credentials of a local account are new ones: every login session of the person on machines and stock
    /// clients ends, and what was proven before opens nothing more. Tells how many ended.
    fn credentials_set<'a>(&'a self, issuer: &'a str, subject: &'a str) -> Answer<'a, usize>;

    /// Tells of a passkey that was not known to be copied: somebody should look at it.
    fn passkey_copied<'a>(&'a self, issuer: &'a str, copied: &'a CopiedPasskey, from: IpAddr) -> Answer<'a, ()>;

    /// Shows the page on which this person proves their sign-in anew; [`DoorsError::Expired`] if there is none.
    fn step_up<'a>(&'a self, token: &'a Token, who: &'a SignedIn) -> Answer<'a, StepUpPage>;

    /// Takes this person's fresh proof over into the login session of the page. The page is spent, unless it is refused.
    fn confirm_step_up<'a>(&'a self, token: &'a Token, who: &'a SignedIn) -> Answer<'a, SteppedUp>;

    /// Ends what the provider has ended, on machines; tells how many login sessions that were.
    fn provider_ended<'a>(&'a self, ends: &'a Ends) -> Answer<'a, usize>;

    /// Counts a logout token that is not of now, and raises an alert: a clock is wrong, and logouts are lost.
    fn logout_not_of_now(&self, from: IpAddr) -> Answer<'_, ()>;

    /// Counts a signal of another system that was refused; the audit log gets the first of a kind, and how many more there were.
    fn signal_refused(&self, source: &'static str, reason: &'static str, from: IpAddr) -> Answer<'_, ()>;
    /// Shuts the doors to sign-ins from before a logout at the provider. Ask for it before what it ends is looked for.
    fn signed_out_at_provider<'a>(&'a self, token: &'a LogoutToken) -> Answer<'a, ()>;
    /// Lets in a person who signed in, and keeps that they were there; says why they are turned away, if they are.
    fn admit<'a>(&'a self, who: &'a SignedIn) -> Answer<'a, Option<TurnedAway>>;

    /// Writes an event into the audit log, durably. If that fails, what it would record is refused.
    fn audit(&self, event: IdentityEvent) -> Answer<'_, ()>;
}

/// A machine that waits for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingJoin {
    /// The name that the machine claims.
    pub machine: MachineName,
    /// The machine's device key; people compare its fingerprint.
    pub device_key: DevicePublicKey,
    /// The address from which it asked.
    pub address: IpAddr,
    /// When it asked.
    pub asked_at: WallTime,
    /// When the code expires.
    pub expires: WallTime,
    /// Whether the controller knows the machine.
    pub acquaintance: Acquaintance,
}

/// Whether the controller knows a machine that wants to join.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquaintance {
    /// It asks for the first time.
    New,
    /// It is this person's already, and wants a new login session.
    Yours,
    /// It is enrolled for somebody else; confirming makes this person its subject.
    SomebodyElses,
}

/// A machine that was let in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinedMachine {
    /// The device.
    pub device: DeviceId,
    /// The name that the controller keeps for it.
    pub machine: MachineName,
    /// When its login session ends.
    pub until: WallTime,
}

/// A login session that wants stronger or fresher proof for a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepUpPage {
    /// The machine.
    pub machine: MachineName,
    /// The address from which it speaks, if it is connected.
    pub address: Option<IpAddr>,
    /// The resource.
    pub resource: ResourceName,
    /// What opens on it.
    pub services: Vec<Service>,
    /// The rule that asks.
    pub rule: RuleName,
    /// What it asks.
    pub demand: Demand,
    /// When the machine asked.
    pub asked_at: WallTime,
    /// When the page works no more.
    pub expires: WallTime,
    /// Whether the sign-in of this browser is enough as it is.
    pub sufficient: Sufficient,
}

/// Whether a sign-in is enough for what is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sufficient {
    /// It is.
    Yes,
    /// It has to be proven anew.
    No,
}

/// A resource that a step-up has opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SteppedUp {
    /// The machine.
    pub machine: MachineName,
    /// The resource.
    pub resource: ResourceName,
}

/// What a person may reach and which machines are theirs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Portal {
    /// Resources that rules name for this person, whether open now or not.
    pub resources: Vec<PortalResource>,
    /// This person's machines.
    pub devices: Vec<PortalDevice>,
    /// Whether any rule for this person permits stock WireGuard clients.
    pub stock_clients: StockClients,
    /// Whether it is known in which groups this person is.
    pub groups: GroupsKnown,
}

/// Whether it is known in which groups a person is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GroupsKnown {
    /// It is, or no rule asks.
    #[default]
    Enough,
    /// It is not, and rules name groups: they give this person nothing.
    Missing,
}

/// Whether a person may take a configuration for a stock WireGuard client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StockClients {
    /// Some rule permits it.
    Permitted,
    /// No rule does.
    #[default]
    NotPermitted,
}

/// One resource of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalResource {
    /// The resource.
    pub name: ResourceName,
    /// The name under which the agent's resolver answers, such as `payroll-app.internal`.
    pub host: String,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// What is open on it for this person.
    pub services: Vec<Service>,
    /// The rule that names it for this person.
    pub rule: RuleName,
    /// Whether it is open.
    pub reach: Reach,
}

/// Whether a resource is open for a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reach {
    /// Open from these machines, each until its lease ends.
    Open(Vec<OpenFrom>),
    /// A rule names it, but something is missing.
    Closed {
        /// Why, for the person.
        reason: String,
        /// What to do, if the person can do something.
        fix: Option<String>,
    },
}

/// A machine from which a resource is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenFrom {
    /// The machine.
    pub machine: MachineName,
    /// When the lease ends; it is renewed while the login session holds.
    pub until: WallTime,
}

/// One machine of a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortalDevice {
    /// The device.
    pub device: DeviceId,
    /// Its name.
    pub machine: MachineName,
    /// What runs there.
    pub kind: DeviceKind,
    /// The fingerprint of its device key, or of its WireGuard key for a stock client.
    pub fingerprint: String,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Whether it is connected, or when it was heard last.
    pub presence: Presence,
    /// Its login session, if one is open.
    pub session: Option<PortalSession>,
}

/// What runs on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Postern's own agent.
    Agent,
    /// A stock WireGuard client.
    StockClient,
}

/// Whether a machine is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Presence {
    /// Its stream is up.
    Connected,
    /// It was last heard then; `None` if never, or if a stock client's node has not said.
    LastHeard(Option<WallTime>),
}

/// A login session on a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortalSession {
    /// The login session.
    pub session: SessionId,
    /// When it began.
    pub began: WallTime,
    /// When it ends.
    pub until: WallTime,
}

/// What a person asks for a stock WireGuard client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockRequest {
    /// What the person calls the machine.
    pub name: MachineName,
    /// The client's public key.
    pub public_key: WireGuardPublicKey,
}

/// What a stock WireGuard client is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockConfiguration {
    /// The device that the client became.
    pub device: DeviceId,
    /// Its name.
    pub machine: MachineName,
    /// The client's own public key.
    pub public_key: WireGuardPublicKey,
    /// Its overlay addresses.
    pub addresses: Vec<IpAddr>,
    /// The largest inner packet, bytes.
    pub mtu: u16,
    /// The nodes that it may reach.
    pub peers: Vec<StockPeer>,
    /// When all of it ends at the latest.
    pub until: WallTime,
}

/// A node that a stock WireGuard client may reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StockPeer {
    /// The node's name.
    pub machine: MachineName,
    /// The node's WireGuard key; it stays valid for this client until [`StockConfiguration::until`].
    pub public_key: WireGuardPublicKey,
    /// The pair's pre-shared key.
    pub preshared_key: PresharedKey,
    /// Where the node listens; `None` if no outer address is known.
    pub endpoint: Option<SocketAddr>,
    /// The node's overlay addresses.
    pub allowed_ips: Vec<IpNet>,
    /// What is open there, for the comment in the file.
    pub resources: Vec<ResourceName>,
}
