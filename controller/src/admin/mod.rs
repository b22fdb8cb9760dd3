//! Administration on the controller's own host.
//!
//! ```text
//! postern-controller COMMAND --cli--> Request (one JSON line) --Unix socket--> server: peer credentials --answer--> core,
//!     accounts --> Response (one JSON line) --print--> terminal, or --json
//! ```
//!
//! The socket lies in a folder for its owner alone, or for one group. Whoever connects is asked for nothing: the kernel says who
//! they are (`SO_PEERCRED`), root, the controller's own user and the configured group may, and everything that they do is
//! recorded under that user's name. There is no network interface for administration, so there is no password, token or cookie
//! that could be stolen, and no page that another site could drive.
//!
//! | module | holds |
//! | --- | --- |
//! | [`request`] | what can be asked, and the answer's shape |
//! | [`server`] | the socket and who may use it |
//! | [`answer`] | what each request does |
//! | [`client`] | the command's end of the socket |
//! | [`cli`] | the commands |
//! | [`scim`] | what is asked about provisioning |
//! | [`print`] | terminals and machines |

pub mod answer;
pub mod cli;
pub mod client;
pub mod print;
pub mod request;
pub mod scim;
pub mod server;
