//! Conditions on the proof of sign-in: how strong, how fresh, of which class; and what of it a person can mend at once.
//!
//! ```text
//! Assurance (verified acr, amr, auth_time) + Demand --state--> true, false, unknown, and until when
//! a decision with every demand taken for granted, minus the decision as it is --> StepUp: what stronger proof would open
//! ```
//!
//! Invariants: a claim that is absent, unknown to us or makes no sense (a sign-in in the future) is *unknown*, which opens
//! nothing. What a provider was *asked* for never counts, only what it vouched for. One sign-in has to meet the whole
//! demand: freshness of one and strength of another do not add up.
//!
//! Rejected: reading `phr` and `phrh` as several factors. OpenID Connect EAP ACR Values 1.0 §2 defines them by resistance to
//! phishing alone; who knows that their provider means more by them lists them in `mfa_acr`.

use std::time::Duration;

use super::{
    condition::{State, Unmet},
    model::Model,
    subject::{Assurance, RequestContext, Subject, Truth},
};
use crate::{diagnostics::HumanDuration, time::WallTime};

/// How far a sign-in may seem to lie in the future: clocks of provider and controller differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Values of `acr` that state several factors wherever they are used.
const MULTI_FACTOR_CLASSES: [&str; 2] =
    ["http://schemas.openid.net/pape/policies/2007/06/multi-factor", "https://refeds.org/profile/mfa"];

/// Values of `acr` that state resistance to phishing (OpenID Connect EAP ACR Values 1.0 §2).
const PHISHING_RESISTANT_CLASSES: [&str; 2] = ["phr", "phrh"];
/// Methods that a page in between cannot pass on: a key in hardware or a smart card signs for the origin that asks (RFC
/// 8176 §2), and what providers say of FIDO authenticators, which RFC 8176 has no word for.
const PHISHING_RESISTANT_METHODS: [&str; 3] = ["hwk", "sc", "fido"];

/// RFC 8176 §2: methods by the kind of factor that they prove.
const KNOWLEDGE: [&str; 3] = ["pwd", "pin", "kba"];
const POSSESSION: [&str; 8] = ["otp", "hwk", "swk", "sc", "sms", "tel", "pop", "fido"];
const INHERENCE: [&str; 5] = ["fpt", "face", "iris", "retina", "vbm"];

/// Whether a sign-in has to be one that cannot be phished.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Phishing {
    /// Any sign-in will do.
    #[default]
    Any,
    /// Only one whose method is bound to the origin: a passkey, a security key, a smart card.
    Resistant,
}

/// What rules ask of the proof of sign-in. The default asks nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Demand {
    /// Several factors, proven no longer ago than this.
    pub mfa_within: Option<Duration>,
    /// Whether it must resist phishing.
    pub phishing: Phishing,
    /// Any of these classes (`acr`); empty if the class does not matter.
    pub acr: Vec<String>,
    /// A sign-in that came after something happened.
    pub anew: Option<Anew>,
}

/// A moment after which a person has to have proven who they are, and why. The later one is the greater.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Anew {
    /// The moment.
    pub after: WallTime,
    /// What happened then, for people.
    pub reason: String,
}

impl Demand {
    /// Tells whether nothing is asked.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Joins two demands: both must be met. Of two lists of classes the first stands; the decision after the step-up judges both.
    #[must_use]
    pub fn and(self, other: &Self) -> Self {
        Self {
            mfa_within: match (self.mfa_within, other.mfa_within) {
                (Some(one), Some(two)) => Some(one.min(two)),
                (one, two) => one.or(two),
            },
            phishing: self.phishing.max(other.phishing),
            acr: if self.acr.is_empty() { other.acr.clone() } else { self.acr },
            anew: self.anew.max(other.anew.clone()),
        }
    }

    /// Says what is asked, in words that follow `needs`: `MFA within 15 min`.
    pub fn words(&self) -> String {
        let mut words = Vec::new();
        words.extend(self.mfa_within.map(|within| format!("MFA within {}", HumanDuration::new(within))));
        if self.phishing == Phishing::Resistant {
            words.push("a sign-in that cannot be phished (a passkey or security key)".into());
        }
        if !self.acr.is_empty() {
            words.push(format!("a sign-in of class {}", self.acr.join(" or ")));
        }
        // Every other demand is met by a fresh sign-in alone; this one says why it is asked for.
        words.extend(self.anew.as_ref().map(|anew| format!("a fresh sign-in ({})", anew.reason)));
        words.join(" and ")
    }

    /// Evaluates the demand.
    pub(super) fn state(&self, model: &Model, context: &RequestContext) -> State {
        if self.is_nothing() {
            return State::ALWAYS;
        }
        let Subject::User { assurance, .. } = &context.subject else {
            return State::forever(Truth::False); // a service has no sign-in
        };
        let mut state = State::ALWAYS;
        if let Some(within) = self.mfa_within {
            state = state.and(fresh(assurance, within, context)).and(State::forever(multi_factor(model, assurance)));
        }
        if self.phishing == Phishing::Resistant {
            state = state.and(State::forever(phishing_resistant(model, assurance)));
        }
        if !self.acr.is_empty() {
            state = state.and(State::forever(of_class(assurance, &self.acr)));
        }
        if let Some(anew) = &self.anew {
            state = state.and(State::forever(proven_after(assurance, anew.after, context)));
        }
        state
    }

    /// Tells in words what is not met.
    pub(super) fn unmet(&self, model: &Model, context: &RequestContext) -> Vec<Unmet> {
        let Subject::User { assurance, .. } = &context.subject else {
            let demand = format!("asks for {}", self.words());
            let unmet = Unmet { fact: "a service has no sign-in".into(), demand, fix: None, mended_by_step_up: false };
            return if self.is_nothing() { vec![] } else { vec![unmet] };
        };
        let mut unmet = Vec::new();
        let mut missing = |fact: String, demand: Self| {
            let demand = format!("asks for {}", demand.words());
            unmet.push(Unmet { fact, demand, fix: None, mended_by_step_up: true });
        };
        if self.mfa_within.is_some() {
            let part = Self { mfa_within: self.mfa_within, ..Self::default() };
            if part.state(model, context).truth != Truth::True {
                missing(proof_in_words(model, assurance, context.latest()), part);
            }
        }
        if self.phishing == Phishing::Resistant {
            let fact = match phishing_resistant(model, assurance) {
                Truth::True => None,
                Truth::False => Some("the sign-in could have been phished"),
                Truth::Unknown => Some("the sign-in does not tell by which method it was proven"),
            };
            fact.into_iter().for_each(|fact| {
                missing(fact.into(), Self { phishing: self.phishing, ..Self::default() });
            });
        }
        if !self.acr.is_empty() && of_class(assurance, &self.acr) != Truth::True {
            let fact = match &assurance.acr {
                Some(class) => format!("the sign-in is of class \"{class}\""),
                None => "the sign-in does not tell its class".into(),
            };
            missing(fact, Self { acr: self.acr.clone(), ..Self::default() });
        }
        unmet
    }
}

/// Tells whether `new` proves at least what `old` proves: it is no older, and loses neither factors nor resistance to phishing.
pub(super) fn at_least_as_strong(model: &Model, new: &Assurance, old: &Assurance) -> bool {
    let keeps =
        |test: fn(&Model, &Assurance) -> Truth| test(model, old) != Truth::True || test(model, new) == Truth::True;
    let no_older = match (new.auth_time, old.auth_time) {
        (Some(new), Some(old)) => new >= old,
        (None, Some(_)) => false,
        (_, None) => true,
    };
    no_older && keeps(multi_factor) && keeps(phishing_resistant)
}

fn has_any(methods: &std::collections::BTreeSet<String>, of: &[&str]) -> bool {
    of.iter().any(|method| methods.contains(*method))
}

/// Tells whether the sign-in proved several factors.
fn multi_factor(model: &Model, assurance: &Assurance) -> Truth {
    if is_listed(assurance, &MULTI_FACTOR_CLASSES, &model.mfa_acr) {
        return Truth::True;
    }
    let Some(methods) = &assurance.amr else { return Truth::Unknown };
    let kinds = [&KNOWLEDGE[..], &POSSESSION, &INHERENCE].into_iter().filter(|kind| has_any(methods, kind)).count();
    Truth::known(methods.contains("mfa") || kinds >= 2)
}

fn phishing_resistant(model: &Model, assurance: &Assurance) -> Truth {
    if is_listed(assurance, &PHISHING_RESISTANT_CLASSES, &model.phishing_resistant_acr) {
        return Truth::True;
    }
    let Some(methods) = &assurance.amr else { return Truth::Unknown };
    Truth::known(has_any(methods, &PHISHING_RESISTANT_METHODS))
}

fn is_listed(assurance: &Assurance, everywhere: &[&str], configured: &[String]) -> bool {
    let listed = |class: &str| everywhere.contains(&class) || configured.iter().any(|known| known == class);
    assurance.acr.as_deref().is_some_and(listed)
}

fn of_class(assurance: &Assurance, classes: &[String]) -> Truth {
    assurance.acr.as_ref().map_or(Truth::Unknown, |class| Truth::known(classes.contains(class)))
}

/// Tells whether a sign-in came after a moment. One of the same moment may be what the moment is about.
fn proven_after(assurance: &Assurance, after: WallTime, context: &RequestContext) -> Truth {
    match assurance.auth_time {
        None => Truth::Unknown,
        Some(at) if is_to_come(at, context) => Truth::Unknown,
        Some(at) => Truth::known(at > after),
    }
}

/// Tells whether a sign-in seems to lie in the future, at every time that it may be: one that a provider vouched for after the clock
/// was put right lies ahead of the clock that went on as if nothing had been set.
fn is_to_come(at: WallTime, context: &RequestContext) -> bool {
    at > context.latest().saturating_add(CLOCK_SKEW)
}

fn fresh(assurance: &Assurance, within: Duration, context: &RequestContext) -> State {
    match assurance.auth_time {
        None => State::forever(Truth::Unknown),
        Some(at) if is_to_come(at, context) => State::forever(Truth::Unknown),
        Some(at) => context.at_every_time(|now| {
            let until = at.min(now).saturating_add(within);
            if until > now { State { truth: Truth::True, until } } else { State::forever(Truth::False) }
        }),
    }
}

fn proof_in_words(model: &Model, assurance: &Assurance, now: WallTime) -> String {
    match (multi_factor(model, assurance), assurance.auth_time) {
        (Truth::False, _) => "the sign-in had no second factor".into(),
        (Truth::Unknown, _) => "the sign-in does not tell whether it had a second factor".into(),
        (Truth::True, None) => "the sign-in does not tell when it was proven".into(),
        (Truth::True, Some(at)) if at > now => "the sign-in claims to lie in the future".into(),
        (Truth::True, Some(at)) => format!("proof of sign-in is {} old", HumanDuration::rounded(now.since(at))),
    }
}
