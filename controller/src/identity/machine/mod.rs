//! Workload identity: services that sign in by a token of the platform that they run on, with no stored secret.
//!
//! ```text
//! node --token--> core: limits, device key proven --Effect::VerifyToken--> Issuers::verify --> Workload --> core: admit or renew
//!                                                     parse, issuer, algorithm, signature, claims, match
//! ```
//!
//! Invariants:
//! - A token counts only for the issuer *and* the audience of one section; its keys are asked for nobody else's.
//! - Only asymmetric algorithms, and only by a key of that kind that the issuer lists; no key that a token brings along.
//! - [`Workload`] is made here alone, after every check (tests and simulations write it out).
//! - What a machine gets ends when its token does (`stream/platform`): no fresh token, no access.
//!
//! Threats: forged and foreign tokens ([`token`]); a stolen one (bound to the device key that showed it first; the core keeps
//! that); names that change owners ([`settings`]); an issuer that is asked again and again because strangers name keys that
//! it does not have ([`keys`](super::keys): a bounded allowance); a flood of tokens (the core's limit by address, [`WAITING`] here).
//!
//! Rejected: asking the cluster about each token (TokenReview). It needs a credential of ours in every cluster and a
//! connection to it at every sign-in; the bound life of a token gives most of that without either.
//!
//! | module | holds |
//! | --- | --- |
//! | [`settings`] | `[[machine_issuer]]` |
//! | `token`, `json` | tokens, taken apart and checked; sans-IO |
//! | `source` | where an issuer's keys are |

pub mod settings;
mod source;
mod token;

use std::sync::Arc;

use postern_common::{protocol::PlatformToken, time::Now};
use tokio::sync::{Semaphore, mpsc, watch};

pub use self::token::fuzz_platform_token;
use self::{
    settings::{MachineIssuer, Platform},
    source::Place,
    token::Terms,
};
use super::{
    keys::{Keys, Signature, Signed},
    oidc::{SettingsError, accepted, http},
};
use crate::{
    records::{Reuse, Workload},
    serve::{actor::Handle, clock, listener},
    stream::StreamId,
};

/// How many tokens may wait to be checked, and how many are being checked; what comes beyond that is told to try again.
pub const WAITING: usize = 256;

/// A token to be checked.
#[derive(Debug)]
pub struct Question {
    /// On which stream it came.
    pub stream: StreamId,
    /// The token.
    pub token: PlatformToken,
}

/// Why a token opens nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenRefusal {
    /// It does not hold. A text for whoever showed it, and one for the audit log.
    Refused {
        /// For whoever showed it.
        told: String,
        /// For the audit log.
        why: String,
    },
    /// It cannot be checked now.
    Unavailable(String),
}

impl TokenRefusal {
    fn refused(why: &str) -> Self {
        Self::Refused { told: format!("the platform's token is refused: {why}"), why: why.to_owned() }
    }
}

/// The issuers whose tokens are taken.
#[derive(Debug)]
pub struct Issuers(Vec<Issuer>);

#[derive(Debug)]
struct Issuer {
    settings: MachineIssuer,
    keys: Keys<Place>,
}

impl Issuers {
    /// Prepares the issuers. None is asked before the first token of it comes, so that one that is away keeps nobody down.
    ///
    /// # Errors
    /// If a file of certificate authorities cannot be used.
    pub fn new(settings: &[MachineIssuer]) -> Result<Self, SettingsError> {
        let issuers = settings.iter().map(|settings| {
            let source = match &settings.keys_file {
                Some(path) => Place::File(path.clone()),
                None => Place::Discovery {
                    issuer: settings.issuer.clone(),
                    http: http::client(settings.ca_file.as_deref())?,
                },
            };
            Ok(Issuer { settings: settings.clone(), keys: Keys::new(source) })
        });
        issuers.collect::<Result<_, _>>().map(Self)
    }

    /// Checks a token in every part and finds the service that it stands for.
    ///
    /// # Errors
    /// [`TokenRefusal`].
    pub async fn verify(&self, token: &PlatformToken, now: Now) -> Result<Workload, TokenRefusal> {
        let unverified = token::parse(token.expose()).map_err(TokenRefusal::refused)?;
        let claimed = (unverified.claimed_issuer(), unverified.claimed_audience());
        let of = |issuer: &&Issuer| {
            claimed == (Some(issuer.settings.issuer.as_str()), Some(issuer.settings.audience.as_str()))
        };
        let Some(Issuer { settings, keys }) = self.0.iter().find(of) else {
            let known = self.0.iter().any(|issuer| Some(issuer.settings.issuer.as_str()) == claimed.0);
            return Err(TokenRefusal::refused(match known {
                true => {
                    "it is for another audience, or not for this one alone: is it asked for with the one in `[[machine_issuer]]`?"
                }
                false => "it is of an issuer that this controller does not know",
            }));
        };
        let refused = |why: &str| TokenRefusal::Refused {
            told: format!("the platform's token is refused: {why}"),
            why: format!("a token of {}: {why}", settings.name),
        };
        let name = unverified.algorithm.as_str();
        let wanted = settings.algorithms.is_empty() || settings.algorithms.iter().any(|taken| taken == name);
        let algorithm = accepted(name).filter(|_| wanted);
        let algorithm = algorithm.ok_or_else(|| refused("signed by an algorithm that is not accepted"))?;
        let signed = Signed {
            algorithm: &algorithm,
            key: unverified.key.as_deref(),
            text: unverified.signed,
            signature: &unverified.signature,
        };
        match keys.signed(signed, now).await {
            Signature::Good(_) => {}
            Signature::Unknown => return Err(refused("it is not signed by its issuer")),
            // Strangers' tokens can use up how often the keys are read: that is nothing against this one.
            Signature::Unread(why) | Signature::Unavailable(why) => {
                let why = format!("the keys of {} cannot be read: {why}", settings.name);
                return Err(TokenRefusal::Unavailable(why));
            }
        }
        let max_lifetime = i64::try_from(settings.max_lifetime.as_secs()).unwrap_or(i64::MAX);
        let terms = Terms { issuer: &settings.issuer, audience: &settings.audience, max_lifetime };
        let checked = unverified.check(terms, now.wall).map_err(refused)?;
        let subject = super::oidc::presentable(&checked.subject);
        let fits = |found: &&settings::Match| found.claims.iter().all(|(path, any_of)| checked.says(path, any_of));
        let Some(found) = settings.matches.iter().find(fits) else {
            let why = match settings.matches.as_slice() {
                [only] => {
                    let differs = only.claims.iter().filter(|(path, any_of)| !checked.says(path, any_of));
                    let paths: Vec<_> = differs.map(|(path, _)| path.as_str()).collect();
                    format!("{subject} fits no match: {} is another", paths.join(", "))
                }
                _ => format!("{subject} fits no match"),
            };
            return Err(TokenRefusal::Refused {
                told: format!(
                    "the platform's token is good, and no [[machine_issuer.match]] fits {subject}: the controller's audit log says more"
                ),
                why: format!("a token of {}: {why}", settings.name),
            });
        };
        let names: &[&str] = match settings.platform {
            Platform::Kubernetes => &["kubernetes.io.pod.uid"],
            Platform::Github => &["run_id", "run_attempt"],
            Platform::Other => &[],
        };
        let parts: Option<Vec<&str>> = names.iter().map(|path| checked.word(path)).collect();
        let parts = parts.filter(|parts| !parts.is_empty()).unwrap_or_else(|| vec![&checked.subject]);
        Ok(Workload {
            issuer: settings.name.clone(),
            instance: parts.join("/"),
            subject,
            service: found.service.clone(),
            tags: found.tags.clone(),
            machine: found.machine.clone(),
            token: checked.hash,
            // The platform writes a new token into a file only once in a while, and who begins again reads the old one.
            reuse: match settings.platform {
                Platform::Github => Reuse::Never,
                Platform::Kubernetes | Platform::Other => Reuse::SameMachine,
            },
            issued: checked.issued,
            expires: checked.expires,
            forget_after: settings.forget_after,
        })
    }
}

/// Checks the tokens that the core asks about, some at a time, until it is told to stop.
pub(crate) async fn answer(
    issuers: Arc<Issuers>,
    mut questions: mpsc::Receiver<Question>,
    handle: Handle,
    mut stop: watch::Receiver<bool>,
) {
    // Checking is short; who waits for keys takes no place from those whose keys are known.
    let room = Arc::new(Semaphore::new(WAITING));
    loop {
        let question = tokio::select! {
            question = questions.recv() => question,
            () = listener::told(&mut stop) => return,
        };
        let (Some(Question { stream, token }), Ok(permit)) = (question, Arc::clone(&room).acquire_owned().await) else {
            return;
        };
        let (issuers, handle) = (Arc::clone(&issuers), handle.clone());
        tokio::spawn(async move {
            let found = issuers.verify(&token, clock::now()).await;
            drop(permit);
            let _ = handle.call(move |turn, now| turn.core.token_verified(stream, found, now)).await; // stopping
        });
    }
}

#[cfg(test)]
mod tests;
