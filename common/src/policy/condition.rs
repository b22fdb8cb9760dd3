//! Conditions of a rule: posture, proof of sign-in, hours, place.
//!
//! Each has one evaluation that returns a [`State`] (a truth of three values, and until when it stays so if only time
//! passes); decisions take the state, explanations add words to the same state.

use super::{
    hours::Hours,
    model::Model,
    place::Places,
    posture,
    proof::Demand,
    subject::{RequestContext, Truth},
};
use crate::time::WallTime;

/// A truth, and until when it stays the same if only time passes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State {
    pub(super) truth: Truth,
    pub(super) until: WallTime,
}

impl State {
    pub(super) const ALWAYS: Self = Self { truth: Truth::True, until: WallTime::NEVER };

    pub(super) const fn forever(truth: Truth) -> Self {
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

    /// Joins two states of which one is enough. A true disjunction lasts as long as the last of its true parts.
    pub(super) fn or(self, other: Self) -> Self {
        self.negated().and(other.negated()).negated()
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
    /// What the proof of sign-in must be.
    pub(super) proof: Demand,
    /// Any of them opens; empty means that hours do not matter.
    pub(super) hours: Vec<Hours>,
    /// Where the device must be.
    pub(super) place: Places,
}

/// What is taken for granted in an evaluation, in favour of access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lens {
    /// Nothing: the moment as it is.
    Actual,
    /// Time does not count: accesses are within their hours and dates, denies outside theirs.
    AnyTime,
    /// The proof of sign-in does not count: it is as strong and fresh as anybody asks. All else is as it is.
    Proven,
    /// No condition counts: what a subject could ever reach by who it is.
    Anyhow,
}

impl Lens {
    /// Tells whether hours and dates are taken for granted.
    pub(super) const fn grants_time(self) -> bool {
        match self {
            Self::AnyTime | Self::Anyhow => true,
            Self::Actual | Self::Proven => false,
        }
    }

    /// Tells whether the proof of sign-in is taken for granted.
    pub(super) const fn grants_proof(self) -> bool {
        match self {
            Self::Proven | Self::Anyhow => true,
            Self::Actual | Self::AnyTime => false,
        }
    }
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
    /// Whether stronger or fresher proof of sign-in mends it.
    pub(super) mended_by_step_up: bool,
}

impl When {
    /// Tells whether it goes by the place and by nothing of the person or the device: hours say nothing of either, and a posture from
    /// which everybody is `excepted` asks nothing.
    pub(super) fn is_place_alone(&self, excepted: impl Fn(usize) -> bool) -> bool {
        let Self { posture, proof, hours: _, place } = self;
        !place.is_nothing() && proof.is_nothing() && posture.iter().all(|posture| excepted(*posture))
    }

    /// Evaluates all conditions together. `assumed` is what a condition that the lens takes for granted counts as.
    pub(super) fn state(&self, model: &Model, context: &RequestContext, lens: Lens, assumed: Truth) -> State {
        let assumed = State::forever(assumed);
        let anyhow = lens == Lens::Anyhow;
        let mut state = State::ALWAYS;
        for posture in &self.posture {
            state = state.and(if anyhow { assumed } else { posture::state(model, *posture, context, lens) });
        }
        if !self.proof.is_nothing() {
            state = state.and(if lens.grants_proof() { assumed } else { self.proof.state(model, context) });
        }
        if !self.hours.is_empty() {
            state = state.and(if lens.grants_time() { assumed } else { hours_state(&self.hours, context) });
        }
        if !self.place.is_nothing() {
            state = state.and(if anyhow { assumed } else { self.place.state(context) });
        }
        state
    }

    /// Tells in words which conditions are not true.
    pub(super) fn unmet(&self, model: &Model, context: &RequestContext, lens: Lens) -> Vec<Unmet> {
        if lens == Lens::Anyhow {
            return Vec::new();
        }
        let mut unmet = Vec::new();
        unmet.extend(self.posture.iter().filter_map(|posture| posture::unmet(model, *posture, context, lens)));
        if !lens.grants_proof() {
            unmet.extend(self.proof.unmet(model, context));
        }
        if !self.hours.is_empty() && !lens.grants_time() {
            let state = hours_state(&self.hours, context);
            if state.truth != Truth::True {
                let windows = self.hours.iter().map(Hours::to_string).collect::<Vec<_>>().join(" and ");
                let next = (state.until != WallTime::NEVER).then(|| self.hours[0].local(state.until));
                unmet.push(Unmet {
                    fact: match context.instead {
                        None => format!("it is {}", self.hours[0].local(context.now)),
                        Some(instead) => {
                            format!("it is {} or {}", self.hours[0].local(context.now), self.hours[0].local(instead))
                        }
                    },
                    demand: format!("opens {windows}"),
                    fix: next.map(|next| format!("try again from {next}")),
                    mended_by_step_up: false,
                });
            }
        }
        unmet.extend(self.place.unmet(context));
        unmet
    }
}

fn hours_state(hours: &[Hours], context: &RequestContext) -> State {
    context.at_every_time(|now| {
        let state = Hours::state(hours, now);
        State { truth: state.open, until: state.until }
    })
}
