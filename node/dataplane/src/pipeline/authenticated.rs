//! Whose packet it is.

use postern_common::{net::FiveTuple, reason::DenyReason};

use crate::{
    enforce::{Enforcer, PeerSlot},
    packet::view::{PacketView, ParseError, packet_length},
    wireguard::links::Opened,
};

/// A packet that a session of this peer opened, whose source address this peer owns, and that is meant for this node.
/// The verdict on inbound packets takes this type and nothing else.
#[derive(Debug)]
pub(crate) struct Authenticated<'a> {
    peer: PeerSlot,
    view: PacketView<'a>,
}

/// Why a packet is not [`Authenticated`].
#[derive(Debug)]
pub(crate) enum Suspect {
    /// It cannot be classified.
    Unparsable(ParseError),
    /// It uses an address that is not the peer's, or is meant for somebody else.
    Misaddressed(Option<FiveTuple>, DenyReason),
}

impl<'a> Authenticated<'a> {
    /// Checks what a session opened; `plaintext` may be padded.
    pub(crate) fn check(opened: Opened, plaintext: &'a [u8], enforcer: &Enforcer) -> Result<Self, Suspect> {
        let length = packet_length(plaintext).map_err(Suspect::Unparsable)?;
        let view = PacketView::parse(&plaintext[..length]).map_err(Suspect::Unparsable)?;
        // Cryptokey routing, inwards (whitepaper §2).
        if enforcer.owner(view.source()) != Some(opened.peer()) {
            return Err(Suspect::Misaddressed(view.five_tuple(), DenyReason::SourceNotOwned));
        }
        if !enforcer.is_own(view.destination()) {
            return Err(Suspect::Misaddressed(view.five_tuple(), DenyReason::NoRule));
        }
        Ok(Self { peer: opened.peer(), view })
    }

    pub(crate) fn peer(&self) -> PeerSlot {
        self.peer
    }

    pub(crate) fn view(&self) -> &PacketView<'a> {
        &self.view
    }
}
