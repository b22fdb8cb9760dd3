//! The host guard: one nftables table that leaves overlay packets no way around the tunnel.
//!
//! ```text
//! GuardPlan --ruleset::render--> text --one `nft -f -` transaction--> table `inet postern`
//! ensure(): `nft list table` again, compare with what was installed, install again if somebody changed it
//! ```
//!
//! Invariants: a packet with an overlay source or destination arrives and leaves by the tunnel's interface alone (and by
//! `lo`, if one of its ends is this node itself); nothing is forwarded into or out of the overlay. The table is replaced
//! as a whole in one transaction, so there is no moment without it; it lives in the kernel, so `kill -9` of the node
//! leaves it; only [`Guard::remove`] takes it out.
//!
//! Threats: a neighbour on the plain network that sends packets with overlay addresses (the weak host model would let
//! them in); a route that leads overlay traffic out in the clear when the tunnel is gone; a port that a container engine
//! publishes by destination NAT behind the operator's back (the plain network is closed before destination NAT).
//! Root on this machine can take the table out: the guard protects a machine from its neighbours and its mistakes, and
//! the peers' guards protect them from this machine.
//!
//! Rejected: rules in the tables of other programs (ufw, docker and firewalld rewrite theirs), and netlink messages of
//! our own making (nft's text is what an operator sees in `nft list ruleset`).

mod nft;
pub mod plain;
mod ruleset;

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;
use sha2::{Digest, Sha256};

pub use self::plain::{PlainAllow, PlainNetwork};

/// The table's name, in the family `inet`.
pub const TABLE: &str = "postern";
/// The longest interface name that Linux takes, in bytes (`IFNAMSIZ` less the final zero).
const MAX_INTERFACE_BYTES: usize = 15;

/// What the guard protects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardPlan {
    tunnel: String,
    overlay: Vec<IpNet>,
    own: Vec<IpAddr>,
    plain: PlainNetwork,
}

impl GuardPlan {
    /// Makes a plan: the tunnel's interface, the overlay's prefixes, this node's own overlay addresses, and what is
    /// done with the plain network.
    ///
    /// # Errors
    /// Fails when the interface name is none, or when there is no overlay prefix or one that covers half of the
    /// address space or more: such a guard would protect nothing, or cut the machine off.
    pub fn new(tunnel: &str, overlay: Vec<IpNet>, own: Vec<IpAddr>, plain: PlainNetwork) -> Result<Self, GuardError> {
        let good = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
        if tunnel.is_empty() || tunnel.len() > MAX_INTERFACE_BYTES || !tunnel.bytes().all(good) {
            return Err(GuardError::Interface(tunnel.chars().take(40).collect()));
        }
        if overlay.is_empty() {
            return Err(GuardError::NoOverlay);
        }
        if let Some(wide) = overlay.iter().find(|prefix| prefix.prefix_len() < 4) {
            return Err(GuardError::TooWide(*wide));
        }
        let mut overlay: Vec<IpNet> = overlay.iter().map(IpNet::trunc).collect();
        overlay = IpNet::aggregate(&overlay); // nft refuses intervals that overlap
        let mut own = own;
        own.sort_unstable();
        own.dedup();
        Ok(Self { tunnel: tunnel.to_owned(), overlay, own, plain })
    }

    /// Returns the ruleset as nft reads it, for people who want to see it before it is there.
    pub fn ruleset(&self) -> String {
        ruleset::render(self)
    }
}

/// What keeps the guard from being there.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// The interface's name is none.
    #[error("`{0}` is not the name of a network interface")]
    Interface(String),
    /// No prefix to protect.
    #[error("the overlay has no prefix to guard")]
    NoOverlay,
    /// A prefix that would cut the machine off.
    #[error("{0} is too wide to be an overlay: the guard would cut this machine off its network")]
    TooWide(IpNet),
    /// nft is not installed, or cannot be started.
    #[error("cannot start nft: install the package nftables")]
    Start(#[source] std::io::Error),
    /// nft said no.
    #[error("nft refuses the guard: {0}")]
    Refused(String),
    /// nft did not come back in time.
    #[error("nft did not answer within {0:?}")]
    TimedOut(std::time::Duration),
    /// nft says more than is read.
    #[error("nft's answer is longer than {0} MiB")]
    TooLong(u64),
    /// nft's answer makes no sense.
    #[error("nft's answer cannot be read")]
    Unreadable,
    /// nft took the rules, but they are not there.
    #[error("nft took the guard, but the table `inet {TABLE}` is not there: another program removes it at once")]
    Vanished,
}

/// Whether the guard was found in place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ensured {
    /// It was there, unchanged.
    InPlace,
    /// Somebody had removed or changed it; it is there again.
    Reinstalled,
}

/// How many packets the guard has dropped since the node started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct GuardCounters {
    /// Packets with an overlay address that arrived by another interface.
    pub arrived: u64,
    /// Packets with an overlay address that were about to leave by another interface.
    pub leaving: u64,
    /// Packets that would have been forwarded into or out of the overlay.
    pub forwarded: u64,
    /// Packets from the plain network to a closed port.
    pub plain: u64,
}

impl GuardCounters {
    fn add(self, other: Self) -> Self {
        Self {
            arrived: self.arrived.saturating_add(other.arrived),
            leaving: self.leaving.saturating_add(other.leaving),
            forwarded: self.forwarded.saturating_add(other.forwarded),
            plain: self.plain.saturating_add(other.plain),
        }
    }
}

/// The guard in the kernel, as this process installed it. Dropping it leaves the table where it is.
///
/// Its functions start `nft` and wait for it, some milliseconds: call them off the packet workers.
#[derive(Debug)]
pub struct Guard {
    plan: GuardPlan,
    fingerprint: [u8; 32],
    carried: GuardCounters,
}

impl Guard {
    /// Puts the guard in place, instead of any former one, in one transaction, and looks whether it is there.
    ///
    /// # Errors
    /// Fails when nft is missing or refuses; what was there before is then still there.
    pub fn install(plan: GuardPlan) -> Result<Self, GuardError> {
        let fingerprint = put(&plan)?;
        Ok(Self { plan, fingerprint, carried: GuardCounters::default() })
    }

    /// Changes what is protected, in one transaction; does nothing when `plan` is the present one.
    ///
    /// # Errors
    /// As [`Guard::install`].
    pub fn replace(&mut self, plan: GuardPlan) -> Result<(), GuardError> {
        if plan != self.plan {
            let counted = read_counters().unwrap_or_default();
            self.fingerprint = put(&plan)?;
            self.carried = self.carried.add(counted);
            self.plan = plan;
        }
        Ok(())
    }

    /// Looks whether the guard is there as it was installed, and installs it again where it is not.
    ///
    /// # Errors
    /// As [`Guard::install`].
    pub fn ensure(&mut self) -> Result<Ensured, GuardError> {
        if listing()?.is_some_and(|text| fingerprint(&text) == self.fingerprint) {
            return Ok(Ensured::InPlace);
        }
        let counted = read_counters().unwrap_or_default();
        self.fingerprint = put(&self.plan)?;
        self.carried = self.carried.add(counted);
        Ok(Ensured::Reinstalled)
    }

    /// Returns how much was dropped since this value was made, over replacements of the table.
    ///
    /// # Errors
    /// Fails when nft cannot list the counters.
    pub fn counters(&self) -> Result<GuardCounters, GuardError> {
        Ok(self.carried.add(read_counters()?))
    }

    /// Takes the guard out, whoever installed it; does nothing when there is none. Only `down` calls this.
    ///
    /// # Errors
    /// Fails when nft is missing or refuses.
    pub fn remove() -> Result<(), GuardError> {
        nft::run(&["-f", "-"], &format!("table inet {TABLE}\ndelete table inet {TABLE}\n")).map(drop)
    }

    /// Tells whether a table of this name is there, whoever installed it.
    ///
    /// # Errors
    /// Fails when nft is missing or refuses.
    pub fn is_present() -> Result<bool, GuardError> {
        Ok(listing()?.is_some())
    }
}

fn put(plan: &GuardPlan) -> Result<[u8; 32], GuardError> {
    nft::run(&["-f", "-"], &plan.ruleset())?;
    listing()?.map(|text| fingerprint(&text)).ok_or(GuardError::Vanished)
}

/// Returns the table's rules without its counters, or nothing if there is no table.
fn listing() -> Result<Option<String>, GuardError> {
    match nft::run(&["--stateless", "list", "table", "inet", TABLE], "") {
        Ok(text) => Ok(Some(text)),
        Err(GuardError::Refused(message)) if message.contains("No such file") => Ok(None),
        Err(error) => Err(error),
    }
}

fn fingerprint(listing: &str) -> [u8; 32] {
    Sha256::digest(listing.as_bytes()).into()
}

fn read_counters() -> Result<GuardCounters, GuardError> {
    match nft::run(&["--json", "list", "counters", "table", "inet", TABLE], "") {
        Ok(json) => Ok(ruleset::parse_counters(&json)),
        Err(GuardError::Refused(message)) if message.contains("No such file") => Ok(GuardCounters::default()),
        Err(error) => Err(error),
    }
}

/// Lists the chains of packet filters at the hook `input`, of the network namespace that the calling thread is in, with their rules: as
/// `nft --json` says it, one object that holds all of them. The rest of a ruleset, which may be long, is not asked for.
///
/// # Errors
/// If nft is missing, refuses, says too much, or there are more than [`MAX_INPUT_CHAINS`].
pub(crate) fn list_input_chains() -> Result<Value, GuardError> {
    let parse = |text: String| serde_json::from_str::<Value>(&text).map_err(|_| GuardError::Unreadable);
    let all = parse(nft::run(&["--json", "list", "chains"], "")?)?;
    let chains = all["nftables"].as_array().into_iter().flatten().map(|object| &object["chain"]);
    let inputs: Vec<&Value> = chains.filter(|chain| chain["hook"] == "input" && chain["type"] == "filter").collect();
    if inputs.len() > MAX_INPUT_CHAINS {
        return Err(GuardError::Unreadable);
    }
    let mut objects = Vec::new();
    for chain in inputs {
        let word = |key: &str| chain[key].as_str().filter(|word| is_plain(word)).ok_or(GuardError::Unreadable);
        let (family, table, name) = (word("family")?, word("table")?, word("name")?);
        match nft::run(&["--json", "--terse", "list", "chain", family, table, name], "") {
            Ok(text) => match parse(text)?["nftables"].take() {
                Value::Array(listed) => objects.extend(listed),
                _ => return Err(GuardError::Unreadable),
            },
            Err(GuardError::Refused(message)) if message.contains("No such file") => {} // it has just gone
            Err(error) => return Err(error),
        }
    }
    Ok(serde_json::json!({ "nftables": objects }))
}

/// The most chains at the input whose rules are listed.
const MAX_INPUT_CHAINS: usize = 64;

/// Tells whether a name is one word for nft.
fn is_plain(name: &str) -> bool {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/');
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && name.chars().all(good)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nets(texts: &[&str]) -> Vec<IpNet> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn a_plan_that_protects_nothing_or_everything_is_refused() {
        let make = |tunnel: &str, overlay: &[&str]| GuardPlan::new(tunnel, nets(overlay), vec![], PlainNetwork::Open);
        assert!(matches!(make("postern0", &[]), Err(GuardError::NoOverlay)));
        assert!(matches!(make("postern0", &["0.0.0.0/0"]), Err(GuardError::TooWide(_))));
        assert!(matches!(make("a\" accept; #", &["fd00::/48"]), Err(GuardError::Interface(_))));
        assert!(matches!(make("sixteen-bytes-aa", &["fd00::/48"]), Err(GuardError::Interface(_))));
        assert!(make("postern0", &["fd00::/48", "100.64.0.0/16"]).is_ok());
    }

    #[test]
    fn overlapping_prefixes_become_one() {
        let plan =
            GuardPlan::new("postern0", nets(&["100.64.0.0/16", "100.64.3.0/24"]), vec![], PlainNetwork::Open).unwrap();
        assert_eq!(plan.overlay, nets(&["100.64.0.0/16"]));
    }
}
