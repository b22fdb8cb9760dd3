//! What the identity provider says of people after they signed in: refresh tokens that are checked at an interval, and
//! back-channel logout.
//!
//! ```text
//! sign-in --Vouching {sid, refresh token}--> Vouchers (sealed) --watch, at an interval--> provider: still good?
//!     invalid_grant, or away for longer than the grace --------.
//! provider --POST logout_token--> logout::verify, once --------+--> ended: browsers' and machines' login sessions, with reason
//! ```
//!
//! Invariants:
//! - A login session on a machine names the browser's session in which it was confirmed (`vouched`); what ends that one at the
//!   provider ends it too, wherever it is.
//! - Only the provider's own word ends anything: a refusal of *this* refresh token (`invalid_grant`), or a logout token that
//!   holds in every part. A provider that is away, or an operator's mistake (`invalid_client`), ends nothing before the grace.
//! - A refresh token is sealed under the sealing key, bound to its row, and never logged.
//! - **Who had proven who they are before a logout opens nothing after it** ([`doors`]), also after a restart; a logout of one session
//!   shuts out that session alone.
//! - A logout token works once: its `jti` is kept until the token could no longer be fresh.
//!
//! Bounds: one row for each browser's login session and each that a machine's hangs on; a batch of checks at a time; logout
//! tokens of one address are limited, and each is at most [`logout::MAX_TOKEN`] bytes.
//!
//! | module | holds |
//! | --- | --- |
//! | [`doors`] | sign-ins from before an end, which open nothing any more; sans-IO |
//! | [`logout`] | logout tokens, verified; sans-IO |
//! | `store` | the rows |
//! | `watch` | the check at an interval |

pub mod doors;
pub mod logout;
mod store;
mod watch;

pub(crate) use doors::{Door, Doors, SignIn};
pub use doors::{Overtaking, ShutDoor};
pub use store::{Ends, Vouchers, Vouching};
pub(crate) use watch::{Settings, watch};
