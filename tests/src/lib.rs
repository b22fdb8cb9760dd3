//! The lab: machines in network namespaces, real programs in them, and what they did and saw.
//!
//! ```text
//! Lab::new("name") -> Network (a bridge in a namespace of its own) <- veth -> Host (namespaces for network, mounts, pids)
//! host.command("curl").arg(..).run()?          one program, its output, a limit on its time
//! host.command("postern").arg("run").spawn()?  a program in the background; signals, log, gone when dropped
//! network.capture()? ... capture.stop()?       what went over the wire
//! eventually(.., || ..)?                       waits on a condition; nothing here sleeps in order to be right
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`lab`] | machines, networks, programs, captures, links that delay and lose |
//! | [`browser`] | a person's browser: links, cookies, forms |
//! | [`corp`] | a controller with an OpenID provider |
//! | [`deployment`] | a controller, servers, laptops, by the real programs |
//! | [`mmdb`] | maps of places |
//! | [`pki`] | an organisation's certificates |
//! | [`programs`] | ready-made programs: an HTTP page, an SSH server, iperf3, nmap |
//! | [`talk`] | conversations that show whether their connection lives |
//!
//! **Always clean.** A host is one process that waits on a pipe from the test. However the test ends, `kill -9`
//! included, the kernel closes the pipe, the process ends, and with it everything in its process namespace, then its
//! network, interfaces and mounts. There are no names in `/run/netns` to collect, and labs never collide: each has its
//! own switch, so that all may use the same addresses at the same time.
//!
//! **The machine stays as it is.** A host has its own `/run`, and writes to `/etc` and `/var/lib` land in a memory file
//! system of its own. Nothing in a lab can reach the machine's network.
//!
//! Needs root, for the namespaces.

pub mod browser;
pub mod corp;
pub mod deployment;
pub mod lab;
pub mod mmdb;
pub mod pki;
pub mod programs;
pub mod talk;

pub use lab::{
    binaries::find as binary,
    capture::Capture,
    host::Host,
    link::LinkQuality,
    network::Network,
    process::{Background, HostCommand, Output, Signal},
    topology::Lab,
    wait::eventually,
};
pub use talk::{Chatter, Echo};
