//! Conditions of a rule: posture, proof of sign-in, hours, network.
//!
//! Each has one evaluation that returns a [`State`] (a truth of three values, and until when it stays so if only time
//! passes); decisions take the state, explanations add words to the same state.

use std::time::Duration;

use ipnet::IpNet;

use super::{
    hours::Hours,
    model::Model,
    subject::{Assurance, RequestContext, Subject, Truth},
};
use crate::{diagnostics::HumanDuration, time::WallTime};

/// How far a sign-in may seem to lie in the future: clocks of provider and controller differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Values of `acr` that state several factors wherever they are used.
const MULTI_FACTOR_CLASSES: [&str; 4] = [
    "phr",  // OpenID Connect EAP ACR values 1.0 §2
    "phrh", // OpenID Connect EAP ACR values 1.0 §2
    "http://schemas.openid.net/pape/policies/2007/06/multi-factor",
    "https://refeds.org/profile/mfa",
];

/// RFC 8176 §2: methods by the kind of factor that they prove.
const KNOWLEDGE: [&str; 3] = ["pwd", "pin", "kba"];
const POSSESSION: [&str; 6] = ["otp", "hwk", "swk", "sc", "sms", "tel"];
const INHERENCE: [&str; 5] = ["fpt", "face", "iris", "retina", "vbm"];

/// A truth, and until when it stays the same if only time passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) truth: Truth,
    pub(super) until: WallTime,
}

impl State {
    pub(super) const ALWAYS: Self = Self { truth: Truth::True, until: WallTime::NEVER };

    const fn forever(truth: Truth) -> Self {
        Self { truth, until: WallTime::NEVER }
    }

    /// Joins two states that must both hold. A false conjunction cannot change before the last of its false parts.
    pub(super) fn and(self, other: Self) -> Self {
        let until = match (self.truth, other.truth) {
            (Truth::False, Truth::False) => self.until.max(other.until),
            (Truth::False, Truth::True | Truth::Unknown) => self.until,
            (Truth::True | Truth::Unknown, Truth::False) => other.until,
            (Truth::True | Truth::Unknown, Truth::True | Truth::Unknown) => self.until.min(other.until),
        };
        Self { truth: self.truth.and(other.truth), until }
    }

    pub(super) const fn negated(self) -> Self {
        Self { truth: self.truth.negated(), until: self.until }
    }
}

/// The conditions of one `when` or `unless`; all of them must hold.
#[derive(Debug, Clone, Default)]
pub(super) struct When {
    /// Indexes into the model's postures.
    pub(super) posture: Vec<usize>,
    pub(super) mfa_within: Option<Duration>,
    /// Any of them opens; empty means that hours do not matter.
    pub(super) hours: Vec<Hours>,
    /// Any of them contains the address; empty means that the place does not matter.
    pub(super) network: Vec<IpNet>,
}

/// What is taken for granted in an evaluation, in favour of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lens {
    /// Nothing: the moment as it is.
    Actual,
    /// Time does not count: accesses are within their hours and dates, denies outside theirs.
    AnyTime,
    /// No condition counts: what a subject could ever reach by who it is.
    Anyhow,
}

/// A condition that is not met, in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unmet {
    /// What is so: `proof of sign-in is 3 h old`.
    pub(super) fact: String,
    /// What the rule wants, to follow its name: `asks for MFA within 15 min`.
    pub(super) demand: String,
    /// What the person can do.
    pub(super) fix: Option<String>,
}

impl When {
    /// Evaluates all conditions together. `assumed` is what a condition that the lens takes for granted counts as.
    pub(super) fn state(&self, model: &Model, context: &RequestContext, lens: Lens, assumed: Truth) -> State {
        let assumed = State::forever(assumed);
        let anyhow = lens == Lens::Anyhow;
        let mut state = State::ALWAYS;
        for posture in &self.posture {
            state = state.and(if anyhow { assumed } else { posture_state(model, *posture, context) });
        }
        if let Some(within) = self.mfa_within {
            state = state.and(if anyhow { assumed } else { proof_state(model, within, context) });
        }
        if !self.hours.is_empty() {
            let timeless = lens != Lens::Actual;
            state = state.and(if timeless { assumed } else { hours_state(&self.hours, context) });
        }
        if !self.network.is_empty() {
            state = state.and(if anyhow { assumed } else { network_state(&self.network, context) });
        }
        state
    }

    /// Tells in words which conditions are not true.
    pub(super) fn unmet(&self, model: &Model, context: &RequestContext, lens: Lens) -> Vec<Unmet> {
        if lens == Lens::Anyhow {
            return Vec::new();
        }
        let mut unmet = Vec::new();
        for posture in &self.posture {
            let (name, requirement) = &model.postures[*posture];
            let verdict = requirement.evaluate(context.posture.as_ref(), context.now);
            if verdict.truth != Truth::True {
                unmet.push(Unmet {
                    fact: verdict.findings.join("; "),
                    demand: format!("asks for posture \"{name}\""),
                    fix: (verdict.truth == Truth::False)
                        .then(|| format!("on this device: {}", verdict.findings.join("; "))),
                });
            }
        }
        if let Some(within) = self.mfa_within
            && proof_state(model, within, context).truth != Truth::True
        {
            unmet.push(describe_proof(model, within, context));
        }
        if !self.hours.is_empty() && lens == Lens::Actual {
            let state = hours_state(&self.hours, context);
            if state.truth != Truth::True {
                let windows = self.hours.iter().map(Hours::to_string).collect::<Vec<_>>().join(" and ");
                let next = (state.until != WallTime::NEVER).then(|| self.hours[0].local(state.until));
                unmet.push(Unmet {
                    fact: format!("it is {}", self.hours[0].local(context.now)),
                    demand: format!("opens {windows}"),
                    fix: next.map(|next| format!("try again from {next}")),
                });
            }
        }
        if !self.network.is_empty() && network_state(&self.network, context).truth != Truth::True {
            let networks = self.network.iter().map(IpNet::to_string).collect::<Vec<_>>().join(" or ");
            unmet.push(Unmet {
                fact: match context.address {
                    Some(address) => format!("the device speaks from {address}"),
                    None => "it is not known from which address the device speaks".into(),
                },
                demand: format!("asks for an address in {networks}"),
                fix: None,
            });
        }
        unmet
    }
}

fn posture_state(model: &Model, posture: usize, context: &RequestContext) -> State {
    let verdict = model.postures[posture].1.evaluate(context.posture.as_ref(), context.now);
    State { truth: verdict.truth, until: verdict.until }
}

fn hours_state(hours: &[Hours], context: &RequestContext) -> State {
    let state = Hours::state(hours, context.now);
    State { truth: state.open, until: state.until }
}

fn network_state(networks: &[IpNet], context: &RequestContext) -> State {
    State::forever(match context.address {
        None => Truth::Unknown,
        Some(address) => {
            let address = address.to_canonical(); // ::ffff:192.0.2.1 is 192.0.2.1
            Truth::known(networks.iter().any(|network| network.contains(&address)))
        }
    })
}

/// Tells whether the sign-in proved several factors.
fn multi_factor(model: &Model, assurance: &Assurance) -> Truth {
    let class = assurance.acr.as_deref();
    let known_class = |class: &str| {
        MULTI_FACTOR_CLASSES.contains(&class) || model.mfa_acr.iter().any(|configured| configured == class)
    };
    if class.is_some_and(known_class) {
        return Truth::True;
    }
    let Some(methods) = &assurance.amr else { return Truth::Unknown };
    let any = |kind: &[&str]| usize::from(kind.iter().any(|method| methods.contains(*method)));
    Truth::known(methods.contains("mfa") || any(&KNOWLEDGE) + any(&POSSESSION) + any(&INHERENCE) >= 2)
}

fn proof_state(model: &Model, within: Duration, context: &RequestContext) -> State {
    let Subject::User { assurance, .. } = &context.subject else {
        return State::forever(Truth::False); // a service has no sign-in
    };
    let fresh = match assurance.auth_time {
        None => State::forever(Truth::Unknown),
        Some(at) if at > context.now.saturating_add(CLOCK_SKEW) => State::forever(Truth::Unknown),
        Some(at) => {
            let until = at.min(context.now).saturating_add(within);
            if until > context.now { State { truth: Truth::True, until } } else { State::forever(Truth::False) }
        }
    };
    fresh.and(State::forever(multi_factor(model, assurance)))
}

fn describe_proof(model: &Model, within: Duration, context: &RequestContext) -> Unmet {
    let demand = format!("asks for MFA within {}", HumanDuration::new(within));
    let Subject::User { assurance, .. } = &context.subject else {
        return Unmet { fact: "a service has no sign-in".into(), demand, fix: None };
    };
    let fact = match (multi_factor(model, assurance), assurance.auth_time) {
        (Truth::False, _) => "the sign-in had no second factor".into(),
        (Truth::Unknown, _) => "the sign-in does not tell whether it had a second factor".into(),
        (Truth::True, None) => "the sign-in does not tell when it was proven".into(),
        (Truth::True, Some(at)) if at > context.now => "the sign-in claims to lie in the future".into(),
        (Truth::True, Some(at)) => {
            format!("proof of sign-in is {} old", HumanDuration::rounded(context.now.since(at)))
        }
    };
    let fix = "sign in again with a second factor: postern logout, then postern up".to_owned();
    Unmet { fact, demand, fix: Some(fix) }
}
