//! Why the core did not do what was asked, in words for the one who asked.

/// Why something that a person or an administrator asked for was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CoreError {
    /// There is no such thing, or none that may be told of.
    #[error("there is no {what} `{name}`{}", listed_by(.what))]
    NotFound {
        /// What was looked for.
        what: &'static str,
        /// By which name, cut to 80 characters.
        name: String,
    },
    /// More than one thing has that name.
    #[error("`{name}` names {count} {what}s, use the identifier: {}", .matches.join(", "))]
    Ambiguous {
        /// What was looked for.
        what: &'static str,
        /// By which name.
        name: String,
        /// How many there are.
        count: usize,
        /// The first of them: each identifier, and what tells it from the others.
        matches: Vec<String>,
    },
    /// It is not revoked, restrained or in quarantine: there is nothing to end.
    #[error("{name} is not {held}")]
    NotHeld {
        /// The name for people of whom or what.
        name: String,
        /// As what it is not held: `revoked`.
        held: &'static str,
    },
    /// The code has expired or was used.
    #[error("the code has expired or was used: run `postern up` again for a new one")]
    Expired,
    /// Another machine waits under this code than the one that was shown.
    #[error("another machine waits under this code than the one that was shown")]
    Changed,
    /// Policy or a limit does not permit it. The text says what and what to do.
    #[error("{0}")]
    NotPermitted(String),
    /// Nothing is left to give. The text says what and what to do.
    #[error("{0}")]
    Exhausted(String),
}

/// Names the command that lists what there is instead of what was looked for.
fn listed_by(what: &str) -> &'static str {
    match what {
        "subject" => ": `postern-controller user list` and `device list` name everybody",
        "device" | "node" | "machine of that subject" => ": `postern-controller device list` names every machine",
        "open login session" => ": `postern-controller session list` lists those that are open",
        "token" => ": `postern-controller token list` lists those that work",
        "SCIM token" => ": `postern-controller scim token list` lists them",
        "request" => ": `postern-controller request list` lists them",
        "break-glass" => ": `postern-controller break-glass list` lists what is open",
        "rule" | "resource" => ": `postern-controller policy show` prints the policy in force",
        _other => "",
    }
}
