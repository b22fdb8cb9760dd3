//! Packets as bytes: parsing, refusing, answering, splitting and joining. Sans-IO, without allocation per packet.
//!
//! ```text
//! TUN frame --offload::VirtioHeader--> view::PacketView --(verdict)--> split::Segmenter --> batch::UdpBatch
//! opened datagram --> view::PacketView --(verdict)--> batch::TunBatch (joins consecutive segments) --> TUN
//! refused packet --> replies (TCP RST, ICMP 'administratively prohibited')
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`view`] | one strict view of an IPv4 or IPv6 packet: addresses, transport, quoted packets |
//! | [`extension`] | the bounded walk over IPv6 extension headers and IPv4 options |
//! | [`fragments`] | which later fragments may follow an admitted first fragment |
//! | [`replies`] | TCP RST, ICMP errors |
//! | [`checksum`] | the internet checksum, whole and partial |
//! | [`offload`] | the virtio-net header that stands before each TUN frame |
//! | [`split`] | one TUN super-packet into segments that fit the tunnel |
//! | [`batch`] | bounded, reused buffers between the pipeline and the I/O shell |
//! | [`join`] | consecutive segments into one super-packet for the TUN |
//!
//! Threats: everything here reads bytes that a hostile peer or a hostile local program wrote. A packet whose
//! transport header cannot be found with certainty is an error, never a guess: what cannot be classified cannot be
//! judged. The rule is checked in one place, [`view::PacketView::parse`], for both families.
//!
//! Rejected: `etherparse` and `smoltcp` views. They accept packets whose lengths contradict each other, because a
//! host stack or a sniffer may; an enforcement point that guesses differently from the host behind it is bypassed.

pub mod batch;
#[cfg(test)]
pub(crate) mod build;
pub mod checksum;
pub mod extension;
pub mod fragments;
#[doc(hidden)]
pub mod fuzzing;
pub mod join;
pub mod offload;
pub mod replies;
#[doc(hidden)]
pub mod slow;
pub mod split;
pub mod view;
