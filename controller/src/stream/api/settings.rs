//! What the core is set to.

use super::*;

/// What the core is configured with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CoreConfig {
    /// The controller's URL as people and machines reach it, without a slash at its end: `https://ctl.corp.example`.
    /// It is also the issuer of local accounts.
    pub url: String,
    /// The overlay's IPv6 prefix: a ULA /48 (RFC 4193).
    pub overlay_v6: Ipv6Net,
    /// The pool of overlay IPv4 addresses.
    pub overlay_v4: Ipv4Net,
    /// The domain of resource names: `internal`.
    pub domain: String,
    /// The shortest lease.
    pub lease_min: Duration,
    /// The longest lease. Rules say how long theirs are; ten minutes unless they do.
    pub lease_max: Duration,
    /// How long a login session lasts.
    pub session_length: Duration,
    /// How long a stock client's configuration can be renewed at most.
    pub stock_limit: Duration,
    /// The largest inner packet that stock clients are told, bytes.
    pub stock_mtu: u16,
    /// How long the addresses of a removed device are given to nobody else.
    pub address_hold: Duration,
    /// How long a join code works.
    pub join_code_life: Duration,
    /// The UDP port of the receiver of probes; none if there is no receiver.
    pub probe_port: Option<u16>,
    /// How long a node may take to acknowledge a document before its stream is closed.
    pub acknowledge_within: Duration,
    /// How long the old key of a rotation stays beside the new one after both ends have acknowledged that.
    pub key_overlap: Duration,
    /// After how long without use a device that comes back raises an alert.
    pub dormant_after: Duration,
    /// How people whom the provider provisions meet those who sign in, if it does.
    pub scim: Option<ScimSettings>,
    /// How old a node's newest WireGuard key may get.
    pub key_deadline: Duration,
    /// What comes of a key that is older.
    pub key_overdue: KeyOverdue,
    /// The boot of this machine, if it tells: what time it was, was recorded for a boot.
    pub boot: Option<BootId>,
    /// For how long after its first use by a service everything that it uses is taken as usual.
    pub learn_for: Duration,
}

impl CoreConfig {
    /// Returns the defaults for a controller at `url` with this overlay.
    pub fn new(url: impl Into<String>, overlay_v6: Ipv6Net, overlay_v4: Ipv4Net) -> Self {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        Self {
            url: url.into(),
            overlay_v6,
            overlay_v4,
            domain: "internal".into(),
            lease_min: Duration::from_secs(30),
            lease_max: minutes(60),
            session_length: minutes(12 * 60),
            stock_limit: minutes(8 * 60),
            stock_mtu: 1280,
            address_hold: minutes(7 * 24 * 60),
            join_code_life: minutes(10),
            probe_port: None,
            acknowledge_within: Duration::from_secs(30),
            key_overlap: Duration::from_secs(5),
            dormant_after: Duration::from_secs(30 * 86_400),
            scim: None,
            key_deadline: Duration::from_secs(7 * 86_400),
            key_overdue: KeyOverdue::Alert,
            boot: None,
            learn_for: Duration::from_secs(86_400),
        }
    }

    /// Returns the overlay's prefixes, IPv6 first.
    pub fn overlay(&self) -> Vec<IpNet> {
        vec![self.overlay_v6.into(), self.overlay_v4.into()]
    }
}

/// What comes of a WireGuard key that a node has not changed in time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyOverdue {
    /// An alert.
    Alert,
    /// An alert, and the machine reaches nothing until it has changed it.
    Deny,
}
