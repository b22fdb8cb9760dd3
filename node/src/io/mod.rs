//! The thin I/O shell around the data plane.
//!
//! ```text
//! kernel --tun--> worker --pipeline--> UdpBatch --udp--> network
//! network --udp--> worker --pipeline--> TunBatch --tun--> kernel
//! agent --WorkerHandle (channel + eventfd)--> worker --events--> agent
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`bench`] | the node that `scripts/bench` measures |
//! | [`tun`] | the persistent TUN interface with its offloads |
//! | [`udp`] | the WireGuard sockets with GSO and GRO |
//! | [`path`] | the seam for choosing a path; source addresses, MTU |
//! | [`clock`] | the seam for time |
//! | [`worker`] | the thread that owns the data plane, and the agent's handle on it |
//! | `sys` | the few system calls with `unsafe` |

pub mod bench;
pub mod clock;
pub mod path;
pub(crate) mod sys;
pub mod tun;
pub mod udp;
pub mod worker;
