//! What the machine can say of its own state: the facts that `[posture.NAME]` in a policy asks for.
//!
//! ```text
//! files below a root, nftables' ruleset --collectors--> Facts --.
//! checks by command (a thread of their own) -> results --------|--> Watch (thread) --Seen--> agent --> core: signed, sent
//! inotify, mount table, nftables notices, ends of processes ---'       slow poll with jitter
//! ```
//!
//! | file | fact | what it looks at |
//! | --- | --- | --- |
//! | [`disk`] | `disk_encrypted` | `/proc/1/mountinfo`, `/proc/swaps`, `/sys/dev/block`: dm-crypt behind every disk with data |
//! | [`firewall`] | `firewall` | nftables' input chains but our own; legacy iptables under ufw or firewalld |
//! | [`system`] | `os.linux` | `/proc/sys/kernel/osrelease`, `/etc/os-release`, the firmware's serial number |
//! | [`updates`] | `security_updates` | what apt last fetched, against what dpkg has installed |
//! | [`boot`] | `secure_boot` | the firmware's variables `SecureBoot` and `SetupMode` |
//! | [`lock`] | `screen_lock` | logind's sessions, dconf's locks, KDE's settings, lockers that run |
//! | [`homes`] | | files of people's homes, which may hang |
//! | [`agents`] | `agents` | processes by their executable and their systemd unit |
//! | [`marker`] | `managed_by` | a file that device management signed for this device |
//! | [`checks`] | `checks` | commands that the machine's administrator named |
//!
//! Invariants:
//! - Every collector reads below [`Root`], reads a bounded amount, and never fails: what it cannot see for certain is absent, and
//!   what is absent meets no requirement.
//! - Nothing is sent from here. The core sends what the controller asked for; `[posture] report = false` keeps all of it at home.
//! - Commands run without privileges unless `node.toml` says otherwise, with a time limit, bounded output, and an empty
//!   environment; a command that others than root could have replaced is not run.
//!
//! Threat: root on this machine can make every one of these files say anything. What must hold against a hostile owner is attested by
//! a device-management system instead (`attested` in the policy).
//!
//! Rejected: osquery or a library of system facts. It would be the largest part of the node, and most of what it reads no policy
//! asks for.

pub mod agents;
pub mod boot;
pub mod checks;
pub mod collect;
pub mod config;
pub mod disk;
pub mod firewall;
pub mod homes;
pub mod lock;
pub mod marker;
pub mod root;
pub mod system;
pub mod updates;
pub mod watch;

pub use collect::Collector;
pub use config::PostureConfig;
pub use root::Root;
pub use watch::{Seen, Watch};
