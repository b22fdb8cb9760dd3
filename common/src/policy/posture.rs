//! `posture` as a condition: a requirement that a device meets, or an exception that stands in for it.
//!
//! ```text
//! [posture.NAME]          -> Requirement, asked of what the device (or its management) said
//! [[posture_exception]]   device or people, owner, reason, expires -> counts as met until then,
//!                         by `instead` only while that other posture is met: for people's own machines
//! ```
//!
//! Invariants: an exception ends by itself (`expires` is demanded); it needs its subject or device to be *known* (a machine's name
//! counts once an administrator approved it: who joins takes any name that is free); its
//! `instead` is asked of the facts alone, so exceptions cannot lean on each other.
//!
//! Rejected: exceptions inside a rule. The same machine would be excepted in one place and forgotten in another, and nobody could
//! list what stands open.

use std::{collections::BTreeSet, time::Duration};

use toml::{Spanned, de::DeValue};

use super::{
    Policy,
    condition::{Lens, State, Unmet},
    model::Model,
    read::{Reading, Table},
    selector::Selector,
    subject::{RequestContext, Truth},
};
use crate::{
    diagnostics::{
        Diagnostic,
        table::{TableReader, parse_at, wrong_type},
    },
    id::{DeviceId, FactName, MachineName, ResourceName},
    posture::{Distribution, FactKind, Finding, MIN_MAX_AGE, PostureVerdict, Requirement},
    time::WallTime,
};

/// One `[[posture_exception]]`.
#[derive(Debug, Clone)]
pub(super) struct PostureException {
    pub(super) posture: usize,
    pub(super) of: Excepted,
    pub(super) owner: String,
    pub(super) reason: String,
    pub(super) expires: WallTime,
    pub(super) instead: Option<usize>,
    pub(super) line: usize,
}

/// Of whom an exception speaks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Excepted {
    /// A device by its identifier.
    Device(DeviceId),
    /// A machine by its name.
    Machine(MachineName),
    /// Whoever one of these names.
    From(Vec<Selector>),
}

/// A posture that rules ask of a subject and that its device does not meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostureDemand {
    /// `[posture.NAME]`.
    pub posture: String,
    /// What fails or is unknown.
    pub findings: Vec<Finding>,
}

impl PostureException {
    fn speaks_of(&self, context: &RequestContext) -> bool {
        match &self.of {
            Excepted::Device(device) => context.device == Some(*device),
            Excepted::Machine(_) => context.machine_approved && self.names_machine_of(context),
            Excepted::From(from) => from.iter().any(|selector| selector.matches(context) == Truth::True),
        }
    }

    fn names_machine_of(&self, context: &RequestContext) -> bool {
        matches!(&self.of, Excepted::Machine(machine) if context.machine.as_ref() == Some(machine))
    }

    fn state(&self, model: &Model, context: &RequestContext, lens: Lens) -> State {
        // A test that names no time asks of every time: an exception counts as it would until its end.
        let live = if lens.grants_time() {
            State::ALWAYS
        } else {
            context.at_every_time(|now| match self.expires > now {
                true => State { truth: Truth::True, until: self.expires },
                false => State::forever(Truth::False),
            })
        };
        let instead = self.instead.map_or(State::ALWAYS, |instead| of_facts(&verdict(model, instead, context)));
        live.and(instead)
    }
}

fn verdict(model: &Model, posture: usize, context: &RequestContext) -> PostureVerdict {
    model.postures[posture].1.evaluate(context.posture.as_ref(), context.attested.as_ref(), context.now)
}

fn of_facts(verdict: &PostureVerdict) -> State {
    State { truth: verdict.truth, until: verdict.until }
}

fn exceptions<'a>(
    model: &'a Model,
    posture: usize,
    context: &'a RequestContext,
) -> impl Iterator<Item = &'a PostureException> {
    model
        .posture_exceptions
        .iter()
        .filter(move |exception| exception.posture == posture && exception.speaks_of(context))
}

/// Tells whether exceptions free everybody whom `from` names of a posture, and ask for no other instead.
pub(super) fn excepts_all(model: &Model, posture: usize, from: &[Selector]) -> bool {
    let of_it = model.posture_exceptions.iter().filter(|known| known.posture == posture && known.instead.is_none());
    let freed: Vec<&Selector> = of_it
        .flat_map(|exception| match &exception.of {
            Excepted::Device(_) | Excepted::Machine(_) => &[],
            Excepted::From(from) => &from[..],
        })
        .collect();
    from.iter().all(|selector| freed.iter().any(|freed| freed.includes(selector)))
}

/// Tells whether a posture counts as met.
pub(super) fn state(model: &Model, posture: usize, context: &RequestContext, lens: Lens) -> State {
    let own = of_facts(&verdict(model, posture, context));
    exceptions(model, posture, context).fold(own, |state, exception| state.or(exception.state(model, context, lens)))
}

/// Tells in words why a posture does not count as met.
pub(super) fn unmet(model: &Model, posture: usize, context: &RequestContext, lens: Lens) -> Option<Unmet> {
    if state(model, posture, context, lens).truth == Truth::True {
        return None;
    }
    let verdict = verdict(model, posture, context);
    let join = |texts: Vec<String>| texts.join("; ");
    let mut facts: Vec<String> = verdict.findings.iter().map(|finding| finding.what.clone()).collect();
    let fixes: Vec<String> = verdict.findings.iter().map(|finding| finding.fix.clone()).collect();
    for exception in exceptions(model, posture, context) {
        match exception.instead {
            _ if exception.expires <= context.latest() && !lens.grants_time() => {
                let ended = format!("its exception by {} ended at {}", exception.owner, exception.expires);
                facts.push(ended);
            }
            Some(instead) => {
                let name = &model.postures[instead].0;
                facts.push(format!("its exception by {} asks for posture \"{name}\" instead", exception.owner));
            }
            None => {}
        }
    }
    let named = |exception: &&PostureException| exception.posture == posture && exception.names_machine_of(context);
    if let Some(exception) = model.posture_exceptions.iter().find(named).filter(|_| !context.machine_approved) {
        facts.push(format!(
            "its exception by {} is for a machine of that name, which nobody approved for this one: `postern-controller approve {} --name`",
            exception.owner,
            context.machine.as_ref().map_or("", |machine| machine.as_str())
        ));
    }
    Some(Unmet {
        fact: join(facts),
        demand: format!("asks for posture \"{}\"", model.postures[posture].0),
        fix: (!fixes.is_empty()).then(|| format!("on this device: {}", join(fixes))),
        mended_by_step_up: false,
    })
}

/// Tells which exceptions make a posture count as met that the facts do not meet.
pub(super) fn excepted(model: &Model, posture: usize, context: &RequestContext) -> Option<String> {
    if verdict(model, posture, context).truth == Truth::True {
        return None;
    }
    let holds = |exception: &&PostureException| exception.state(model, context, Lens::Actual).truth == Truth::True;
    let exception = exceptions(model, posture, context).find(holds)?;
    Some(format!(
        "posture \"{}\" is excepted until {} by {}: {}   ({})",
        model.postures[posture].0,
        exception.expires,
        exception.owner,
        exception.reason,
        model.location(exception.line)
    ))
}

impl Policy {
    /// Lists the postures that rules which name the subject ask for and that do not count as met: what to mend on its device.
    /// It names no resource, and nothing that no rule opens to the subject.
    pub fn posture_demands(&self, context: &RequestContext) -> Vec<PostureDemand> {
        let model = &self.model;
        let named = model.access_index.naming(context);
        let whens: BTreeSet<usize> = named.iter().filter_map(|(rule, _)| model.access[*rule].when).collect();
        let asked: BTreeSet<usize> = whens.iter().flat_map(|when| model.whens[*when].posture.iter().copied()).collect();
        let unmet =
            asked.into_iter().filter(|posture| state(model, *posture, context, Lens::Actual).truth != Truth::True);
        let demand = |posture: usize| PostureDemand {
            posture: model.postures[posture].0.clone(),
            findings: verdict(model, posture, context).findings,
        };
        unmet.map(demand).collect()
    }

    /// Lists the exceptions from postures, one line each, for people: who answers for each, why, and until when.
    pub fn posture_exceptions(&self) -> impl Iterator<Item = String> {
        self.model.posture_exceptions.iter().map(|exception| {
            let of = match &exception.of {
                Excepted::Device(device) => device.to_string(),
                Excepted::Machine(machine) => machine.to_string(),
                Excepted::From(from) => from.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            };
            let posture = &self.model.postures[exception.posture].0;
            let PostureException { owner, reason, expires, .. } = exception;
            format!("{of}: excepted from posture \"{posture}\" until {expires} by {owner}: {reason}")
        })
    }

    /// Returns the shortest age of a device's own report that some posture accepts; `None` if no posture asks devices.
    pub fn shortest_posture_age(&self) -> Option<Duration> {
        let asking = self.model.postures.iter().map(|(_, requirement)| requirement);
        asking.filter(|requirement| requirement.asks_the_device()).map(|requirement| requirement.max_age).min()
    }
}

impl Reading {
    pub(super) fn posture(&mut self, name: Spanned<&str>, value: Table<'_, '_>) {
        let diagnostics = &mut self.diagnostics;
        let title = format!("[posture.{}]", name.get_ref());
        if parse_at::<ResourceName>(name.span(), name.get_ref(), diagnostics).is_none() {
            self.broken.push(name.into_inner().to_owned());
            return;
        }
        let Some(mut table) = TableReader::of_value(value, &title, diagnostics) else {
            self.broken.push(name.into_inner().to_owned());
            return;
        };
        let mut requirement = Requirement {
            disk_encrypted: table.flag("disk_encrypted", diagnostics),
            firewall: table.flag("firewall", diagnostics),
            screen_lock: table.flag("screen_lock", diagnostics),
            secure_boot: table.flag("secure_boot", diagnostics),
            managed_by: table.parsed("managed_by", diagnostics).map(Spanned::into_inner),
            compliant: table.flag("compliant", diagnostics),
            ..Requirement::default()
        };
        if let Some(value) = table.take("max_security_updates") {
            requirement.max_security_updates = whole_number(value);
            if requirement.max_security_updates.is_none() {
                diagnostics.push(wrong_type(value.span(), "how many may wait, such as 0", value.get_ref()));
            }
        }
        for text in table.list("agents", diagnostics).unwrap_or_default() {
            requirement.agents.extend(parse_at::<FactName>(text.span(), text.get_ref(), diagnostics));
        }
        for text in table.list("checks", diagnostics).unwrap_or_default() {
            requirement.checks.extend(parse_at::<FactName>(text.span(), text.get_ref(), diagnostics));
        }
        if let Some(max_age) = table.duration("max_age", diagnostics) {
            requirement.max_age = max_age.get_ref().get();
            if requirement.max_age < MIN_MAX_AGE {
                let message = format!("no device reports often enough for a `max_age` of {}", max_age.get_ref());
                let help = format!("use \"{}s\" or more", MIN_MAX_AGE.as_secs());
                diagnostics.push(Diagnostic::at(max_age.span(), message).help(help));
            }
        }
        if let Some(os) = table.take("os")
            && let Some(mut os) = TableReader::of_value(os, format!("[posture.{}.os]", name.get_ref()), diagnostics)
        {
            if let Some(linux) = os.take("linux")
                && let Some(mut linux) =
                    TableReader::of_value(linux, format!("[posture.{}.os.linux]", name.get_ref()), diagnostics)
            {
                requirement.min_linux_kernel = linux.parsed("min_kernel", diagnostics).map(Spanned::into_inner);
                for text in linux.list("distributions", diagnostics).unwrap_or_default() {
                    requirement.distributions.extend(parse_at::<Distribution>(
                        text.span(),
                        text.get_ref(),
                        diagnostics,
                    ));
                }
                linux.finish(diagnostics);
            }
            os.refuse("macos", "only Linux runs the agent that reports a posture");
            os.refuse("windows", "only Linux runs the agent that reports a posture");
            os.finish(diagnostics);
        }
        let asked = requirement.kinds();
        // Nobody is asked about themselves whether others are content with them.
        requirement.attested.extend(requirement.compliant.map(|_| FactKind::Compliant));
        if let Some(value) = table.take("attested") {
            match value.get_ref() {
                DeValue::Boolean(false) => {}
                DeValue::Boolean(true) => requirement.attested.clone_from(&asked),
                _ => {
                    for text in table.list("attested", diagnostics).unwrap_or_default() {
                        match FactKind::ALL.into_iter().find(|kind| kind.word() == *text.get_ref()) {
                            Some(kind) if asked.contains(&kind) => drop(requirement.attested.insert(kind)),
                            Some(kind) => {
                                let message = format!("{title} does not require `{}`", kind.word());
                                let help = "attested names facts that this posture requires";
                                diagnostics.push(Diagnostic::at(text.span(), message).help(help));
                            }
                            None => {
                                let known = FactKind::ALL.map(FactKind::word).join(", ");
                                let message = format!("`{}` is no fact", text.get_ref());
                                diagnostics.push(Diagnostic::at(text.span(), message).help(format!("use {known}")));
                            }
                        }
                    }
                }
            }
        }
        if let Some(max_age) = table.duration("attested_max_age", diagnostics) {
            requirement.attested_max_age = max_age.get_ref().get();
            if requirement.attested.is_empty() {
                let help = "add attested = true, or leave it out";
                diagnostics.push(Diagnostic::at(max_age.span(), "`attested_max_age` with nothing attested").help(help));
            }
        }
        table.finish(diagnostics);
        if asked.is_empty() {
            let help = "add what it requires, such as disk_encrypted = true";
            diagnostics.push(Diagnostic::at(name.span(), format!("{title} requires nothing")).help(help));
        }
        self.posture_by_name.insert(name.get_ref().to_string(), self.model.postures.len());
        self.model.postures.push((name.into_inner().to_owned(), requirement));
    }

    pub(super) fn posture_exception(&mut self, value: Table<'_, '_>) {
        let title = "[[posture_exception]]";
        let Some(mut table) = TableReader::of_value(value, title, &mut self.diagnostics) else { return };
        let line = self.line(&table.span());
        let posture = table.text("posture", &mut self.diagnostics);
        let posture = posture.and_then(|name| self.posture_named(&name));
        let instead = table.text("instead", &mut self.diagnostics);
        let instead = instead.and_then(|name| self.posture_named(&name));
        let device = table.text("device", &mut self.diagnostics);
        let of = match (device, table.has("from")) {
            (Some(device), false) => match device.get_ref().parse() {
                Ok(id) => Some(Excepted::Device(id)),
                Err(_) => parse_at(device.span(), device.get_ref(), &mut self.diagnostics).map(Excepted::Machine),
            },
            (None, true) => Some(Excepted::From(self.from(&mut table))),
            (Some(device), true) => {
                table.take("from");
                let both = Diagnostic::at(device.span(), format!("{title} names both a device and people"));
                self.diagnostics.push(both.help("keep one: `device`, or `from`"));
                None
            }
            (None, false) => {
                if !table.has("device") {
                    let help = "add device = \"MACHINE\" (or its identifier), or from = [\"group:NAME\"]";
                    table.missing("device", help, &mut self.diagnostics);
                }
                None
            }
        };
        let owner = table.text("owner", &mut self.diagnostics).map(|owner| owner.into_inner().to_owned());
        let reason = table.text("reason", &mut self.diagnostics).map(|reason| reason.into_inner().to_owned());
        let expires = self.date(&mut table, "expires").map(Spanned::into_inner);
        for (key, help) in [
            ("posture", "add the posture that it stands in for"),
            ("owner", "add who answers for it, such as owner = \"it-security\""),
            ("reason", "add why it is needed"),
            ("expires", "add expires = \"2027-01-31\": an exception does not last for ever"),
        ] {
            if !table.has(key) {
                table.missing(key, help, &mut self.diagnostics);
            }
        }
        table.finish(&mut self.diagnostics);
        if let (Some(posture), Some(of), Some(owner), Some(reason), Some(expires)) =
            (posture, of, owner, reason, expires)
        {
            let exception = PostureException { posture, of, owner, reason, expires, instead, line };
            self.model.posture_exceptions.push(exception);
        }
    }
}

fn whole_number(value: &Spanned<DeValue<'_>>) -> Option<u32> {
    match value.get_ref() {
        DeValue::Integer(number) => number.to_string().parse().ok(),
        DeValue::String(_)
        | DeValue::Float(_)
        | DeValue::Boolean(_)
        | DeValue::Datetime(_)
        | DeValue::Array(_)
        | DeValue::Table(_) => None,
    }
}
