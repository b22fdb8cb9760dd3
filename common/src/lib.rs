//! The words and rules that Postern's controller and nodes share.
//!
//! Pure: no I/O, no clock, no randomness of the operating system, no runtime. Everything here takes bytes and
//! times in and gives values out, so that one evaluator, one grant format and one set of words serve the
//! controller, the node, the command lines and the tests.
//!
//! ```text
//! policy.toml --policy--> checked Policy --evaluation--> entitlements          (controller)
//! entitlements + lease ----------------------> grant::PeerGrant                (one node's part of a lease)
//! GrantDocument --grant::sign--> SignedDocument --protocol--> grant::GrantVerifier --> VerifiedGrants  (node)
//! VerifiedGrants --> the data plane's compiled rules --> flow_record::FlowRecord
//! ```
//!
//! | module | holds |
//! | --- | --- |
//! | [`diagnostics`] | mistakes in TOML files, shown with their place; durations and sizes with units |
//! | [`id`] | identifiers of devices, subjects, leases, sessions; names of rules, resources, tags |
//! | [`key`] | WireGuard keys, device keys, the controller's signing key; three types for three secrecies |
//! | [`net`] | protocols, port ranges, services, 5-tuples |
//! | [`time`] | suspend-aware monotonic and wall time as plain numbers, lifetimes |
//! | [`posture`] | facts about a device and requirements on them |
//! | [`policy`] | the authored TOML document, its checked model, evaluation and explanation |
//! | [`limit`] | limits on behaviour and how they are counted |
//! | [`reason`] | the closed list of reasons for a refusal |
//! | [`grant`] | what one node is told to enforce: snapshot, delta, signature, verification |
//! | [`protocol`] | the messages between node and controller |
//! | [`probe`] | the datagram by which the controller sees a node's outer address |
//! | [`flow_record`] | what is recorded about a flow |
//! | [`fuzzing`] | bodies of the fuzz targets |

pub mod diagnostics;
pub mod flow_record;
pub mod fuzzing;
pub mod grant;
pub mod id;
pub mod key;
pub mod limit;
pub mod net;
pub mod policy;
pub mod posture;
pub mod probe;
pub mod protocol;
pub mod reason;
pub mod time;
