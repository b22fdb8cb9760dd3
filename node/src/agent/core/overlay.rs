//! Which addresses a controller may call the overlay: what is routed into the tunnel, and what the guard drops elsewhere.
//!
//! ```text
//! document, or what was saved --own.overlay within the owner's bound; own and peers' addresses within own.overlay--> enforced
//! ```
//!
//! Threat: a controller that lies, or was set up by mistake, names public prefixes, and so draws the traffic to other
//! people's addresses into the tunnel, or cuts it off. The bound is the private space, or what the owner of the machine
//! wrote into `node.toml`. A document beyond it is refused whole: a part of it could still be a map that misleads.

use std::net::IpAddr;

use ipnet::IpNet;
use postern_common::grant::{Change, OwnGrant, PeerGrant};

use super::Core;

/// Why a document's addresses are not this machine's overlay.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Beyond {
    /// A prefix that the owner of the machine does not let be an overlay.
    #[error(
        "the controller calls {0} its overlay, which is not private address space: nothing of it is enforced. If that is meant, name the prefix in `overlay` under [ceiling] in node.toml"
    )]
    Prefix(IpNet),
    /// An address of a machine beside the overlay.
    #[error("the controller gives a machine the address {0}, which is not in its overlay: nothing of it is enforced")]
    Address(IpAddr),
}

impl Core {
    /// Keeps the overlay's prefixes for the next start of the machine. Tells whether they are others than before.
    pub(super) fn keep_overlay(&mut self) -> bool {
        let (Some(stand), Some(enrolment)) = (self.book.stand(), &mut self.identity.enrolment) else { return false };
        let changed = enrolment.overlay != stand.own.overlay;
        enrolment.overlay.clone_from(&stand.own.overlay);
        changed
    }
}

/// Checks a document against `bound`; `held` is what the node was told of itself before.
///
/// # Errors
/// [`Beyond`] with the first address that is outside.
pub(super) fn check<T>(bound: &[IpNet], change: &Change<T>, held: Option<&[IpNet]>) -> Result<(), Beyond> {
    match change {
        Change::Snapshot { own, peers } => places(bound, Some(own), &own.overlay, peers),
        Change::Delta { previous: _, own, upsert, remove: _ } => {
            let overlay = own.as_ref().map_or(held.unwrap_or_default(), |own| &own.overlay);
            places(bound, own.as_ref(), overlay, upsert)
        }
    }
}

/// Checks what stands in a whole: a saved one too, because the owner may have narrowed the bound since.
pub(super) fn places<T>(
    bound: &[IpNet],
    own: Option<&OwnGrant<T>>,
    overlay: &[IpNet],
    peers: &[PeerGrant<T>],
) -> Result<(), Beyond> {
    let within = |prefix: &&IpNet| bound.iter().any(|bound| bound.contains(*prefix));
    if let Some(prefix) = overlay.iter().find(|prefix| !within(prefix)) {
        return Err(Beyond::Prefix(*prefix));
    }
    let of_peers = peers.iter().flat_map(|peer| &peer.addresses);
    let offered = own.into_iter().flat_map(|own| &own.step_up).flat_map(|offer| &offer.addresses);
    let mut addresses = own.into_iter().flat_map(|own| &own.addresses).chain(of_peers).chain(offered);
    match addresses.find(|address| !overlay.iter().any(|prefix| prefix.contains(*address))) {
        Some(address) => Err(Beyond::Address(*address)),
        None => Ok(()),
    }
}
