//! Limits on behaviour as the document says them: how much of a resource within how long, how many refused destinations, no other
//! country; and what follows.
//!
//! ```toml
//! [set.basics]
//! resources = ["helpdesk"]
//!
//! [[access]]
//! limits = { download = "2GiB/h", on_exceed = "challenge" }      # or a list of such tables
//!
//! [[limit]]
//! name = "machines that scan"
//! from = ["user:*", "service:*"]
//! refused = "20/m"
//! on_exceed = "quarantine"
//! ```
//!
//! What a rule limits, it limits for each subject and each of its resources alone. Several rules that open the same give their amounts
//! one after the other, as they give everything else. A `[[limit]]` speaks of a subject's behaviour everywhere; of several that name
//! a subject the strictest counts.

use std::{collections::BTreeSet, ops::Range, str::FromStr, time::Duration};

use toml::{Spanned, de::DeValue};

use super::{
    Policy,
    model::Resource,
    place::Place,
    read::{Reading, Table},
    selector::Selector,
    subject::{RequestContext, Truth},
};
use crate::{
    diagnostics::{
        ByteSize, Diagnostic, HumanDuration, did_you_mean,
        table::{TableReader, parse_at},
    },
    id::{ResourceName, RuleName},
    limit::{Consequence, Limit, MAX_LIMITS, MAX_REFUSED, Measure, ScanLimit, WITHIN},
    time::WallTime,
};

/// What follows, with the set that stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    Challenge,
    /// An index into the model's sets.
    Restrict(usize),
    Terminate,
    Quarantine,
}

/// A named set of resources, as indexes into the model's resources.
#[derive(Debug, Clone)]
pub(super) struct ResourceSet {
    pub(super) name: String,
    pub(super) resources: Vec<usize>,
}

/// One limit of an `[[access]]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AccessLimit {
    pub(super) measure: Measure,
    pub(super) most: u64,
    pub(super) within: Duration,
    pub(super) then: Then,
}

/// What a `[[limit]]` watches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Watched {
    /// Distinct destinations that were refused.
    Refused { most: u32, within: Duration },
    /// The place during one login session.
    Stay { country: bool, asn: bool },
}

/// One `[[limit]]`.
#[derive(Debug, Clone)]
pub(super) struct SubjectLimit {
    pub(super) name: RuleName,
    pub(super) from: Vec<Selector>,
    pub(super) watched: Watched,
    pub(super) then: Then,
    /// Until when it only raises alerts.
    pub(super) monitor_until: Option<WallTime>,
}

/// What follows from passing a limit, with everything that is needed to do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LimitResponse {
    /// The sign-in has to be proven anew.
    Challenge,
    /// Nothing but these resources.
    Restrict(BTreeSet<ResourceName>),
    /// The login session ends.
    Terminate,
    /// The machine comes into quarantine.
    Quarantine,
    /// An alert: the rule is only watched.
    Alert,
}

/// A rule about the place, and what follows when it is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StayLimit {
    /// The rule.
    pub rule: RuleName,
    /// What follows.
    pub then: LimitResponse,
}

impl Then {
    pub(super) const fn consequence(self) -> Consequence {
        match self {
            Self::Challenge => Consequence::Challenge,
            Self::Restrict(_) => Consequence::Restrict,
            Self::Terminate => Consequence::Terminate,
            Self::Quarantine => Consequence::Quarantine,
        }
    }
}

impl SubjectLimit {
    /// Tells whether it only raises alerts.
    pub(super) fn is_watched(&self, now: WallTime) -> bool {
        self.monitor_until.is_some_and(|until| until > now)
    }
}

impl LimitResponse {
    /// Returns what nodes and people are told that follows.
    pub const fn consequence(&self) -> Consequence {
        match self {
            Self::Challenge => Consequence::Challenge,
            Self::Restrict(_) => Consequence::Restrict,
            Self::Terminate => Consequence::Terminate,
            Self::Quarantine => Consequence::Quarantine,
            Self::Alert => Consequence::Alert,
        }
    }
}

impl AccessLimit {
    /// Returns what nodes count; `watched` if the rule is only watched.
    pub(super) fn on_nodes(self, watched: bool) -> Limit {
        let then = if watched { Consequence::Alert } else { self.then.consequence() };
        let within_ms = u64::try_from(self.within.as_millis()).unwrap_or(u64::MAX);
        Limit { measure: self.measure, most: self.most, within_ms, then, budget: 0 }
    }
}

impl Policy {
    pub(super) fn set(&self, set: usize) -> BTreeSet<ResourceName> {
        let resources = self.model.sets[set].resources.iter();
        resources.map(|index| self.model.resources[*index].name.clone()).collect()
    }

    fn response(&self, then: Then) -> LimitResponse {
        match then {
            Then::Challenge => LimitResponse::Challenge,
            Then::Restrict(set) => LimitResponse::Restrict(self.set(set)),
            Then::Terminate => LimitResponse::Terminate,
            Then::Quarantine => LimitResponse::Quarantine,
        }
    }

    /// Finds a limit of an `[[access]]`, and what follows from it at this moment.
    pub fn limit(
        &self,
        rule: &RuleName,
        measure: Measure,
        within_ms: u64,
        now: WallTime,
    ) -> Option<(Limit, LimitResponse)> {
        let access = &self.model.access[*self.model.access_by_name.get(rule)?];
        let watched = access.is_watched(now);
        let fits = |limit: &&AccessLimit| limit.measure == measure && limit.within.as_millis() == u128::from(within_ms);
        let limit = access.limits.iter().find(fits)?;
        let response = if watched { LimitResponse::Alert } else { self.response(limit.then) };
        Some((limit.on_nodes(watched), response))
    }

    /// Tells whether the document watches behaviour that is no resource's.
    pub fn limits_behaviour(&self) -> bool {
        !self.model.limits.is_empty()
    }

    fn limits_on<'a>(&'a self, context: &'a RequestContext) -> impl Iterator<Item = &'a SubjectLimit> {
        // Unknown groups do not free anybody: what is unknown satisfies a limit, as it satisfies a deny.
        let names = |limit: &&SubjectLimit| {
            limit.from.iter().map(|selector| selector.matches(context)).fold(Truth::False, Truth::or) != Truth::False
        };
        self.model.limits.iter().filter(names)
    }

    fn response_at(&self, limit: &SubjectLimit, now: WallTime) -> LimitResponse {
        if limit.is_watched(now) { LimitResponse::Alert } else { self.response(limit.then) }
    }

    /// Returns from how many refused destinations on a subject counts as one that scans; of several rules the strictest counts, and of
    /// those that are only watched none beside one that is not. Its `budget` is 0.
    pub fn scan_limit(&self, context: &RequestContext) -> Option<ScanLimit> {
        let now = context.latest(); // watched no longer than at every time that it may be
        let limits = self.limits_on(context).filter_map(|limit| match limit.watched {
            Watched::Refused { most, within } => Some(ScanLimit {
                rule: limit.name.clone(),
                most,
                within_ms: u64::try_from(within.as_millis()).unwrap_or(u64::MAX),
                then: if limit.is_watched(now) { Consequence::Alert } else { limit.then.consequence() },
                budget: 0,
            }),
            Watched::Stay { .. } => None,
        });
        limits.min_by_key(|limit| (!limit.then.shuts(), limit.most, std::cmp::Reverse(limit.within_ms)))
    }

    /// Tells what follows from a scan at this moment, by the rule that was passed.
    pub fn scan_response(&self, rule: &RuleName, now: WallTime) -> Option<LimitResponse> {
        let limit = self.model.limits.iter().find(|limit| limit.name == *rule)?;
        matches!(limit.watched, Watched::Refused { .. }).then(|| self.response_at(limit, now))
    }

    /// Tells what follows when a subject speaks from another place than before; the first rule of the document counts, and one that is
    /// only watched if there is no other.
    pub fn stay_limit(&self, context: &RequestContext, before: &Place, now: &Place) -> Option<StayLimit> {
        let left = |limit: &&SubjectLimit| match limit.watched {
            Watched::Stay { country, asn } => {
                let of = |place: &Place| Place {
                    country: place.country.filter(|_| country),
                    asn: place.asn.filter(|_| asn),
                };
                of(now).differs_from(&of(before))
            }
            Watched::Refused { .. } => false,
        };
        let at = context.latest();
        let limit = self.limits_on(context).filter(left).min_by_key(|limit| limit.is_watched(at))?;
        Some(StayLimit { rule: limit.name.clone(), then: self.response_at(limit, at) })
    }
}

/// `2GiB/h`, `600/10m`: an amount and within how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate {
    amount: Amount,
    within: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Amount {
    Bytes(u64),
    Count(u64),
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((amount, within)) = text.split_once('/') else {
            return Err(format!("`{text}` does not say within how long: write it as \"2GiB/h\" or \"600/10m\""));
        };
        let (amount, within) = (amount.trim(), within.trim());
        // "h" is one hour.
        let within =
            if within.starts_with(|c: char| c.is_ascii_alphabetic()) { format!("1{within}") } else { within.into() };
        let within = within.parse::<HumanDuration>().map_err(|error| error.to_string())?;
        let (least, most) = WITHIN;
        if within.get() < least || within.get() > most {
            return Err(format!("`{text}`: a time of {within} is out of bounds: use \"10s\" to \"7d\""));
        }
        let amount = match amount.bytes().all(|c| c.is_ascii_digit()) && !amount.is_empty() {
            true => Amount::Count(amount.parse().map_err(|_| format!("`{text}` is more than can be counted"))?),
            false => Amount::Bytes(amount.parse::<ByteSize>().map_err(|error| error.to_string())?.get()),
        };
        if matches!(amount, Amount::Count(0) | Amount::Bytes(0)) {
            return Err(format!("`{text}` lets nothing pass: write a [[deny]] for that"));
        }
        Ok(Self { amount, within: within.get() })
    }
}

/// What a limit's consequence is read from.
struct Consequences<'a> {
    from: &'a [Selector],
    /// Resources that may not be in the set that stays.
    of: &'a [usize],
    /// Whether quarantine is one.
    quarantine: bool,
}

impl Reading {
    /// Reads `[set.NAME]`: resources that stay when everything else goes.
    pub(super) fn resource_set(&mut self, name: Spanned<&str>, value: Table<'_, '_>) {
        let title = format!("[set.{}]", name.get_ref());
        let Some(mut table) = TableReader::of_value(value, title, &mut self.diagnostics) else {
            return self.broken.push(name.into_inner().to_owned());
        };
        let list = table.list("resources", &mut self.diagnostics);
        if !table.has("resources") {
            table.missing("resources", "add resources = [\"NAME\"]", &mut self.diagnostics);
        }
        let resources = list.unwrap_or_default().iter().filter_map(|text| self.resource_named(text)).collect();
        table.finish(&mut self.diagnostics);
        self.model.sets.push(ResourceSet { name: name.into_inner().to_owned(), resources });
    }

    fn rate(&mut self, table: &mut TableReader<'_, '_>, key: &'static str, bytes: bool) -> Option<(u64, Duration)> {
        let text = table.text(key, &mut self.diagnostics)?;
        let rate: Rate = parse_at(text.span(), text.get_ref(), &mut self.diagnostics)?;
        match (rate.amount, bytes) {
            (Amount::Bytes(amount), true) | (Amount::Count(amount), false) => Some((amount, rate.within)),
            (Amount::Count(amount), true) => {
                let message = format!("`{key}` counts bytes, and `{amount}` has no unit");
                self.diagnostics.push(Diagnostic::at(text.span(), message).help("write it as \"2GiB/h\""));
                None
            }
            (Amount::Bytes(_), false) => {
                let message = format!("`{key}` counts how often, and not bytes");
                self.diagnostics.push(Diagnostic::at(text.span(), message).help("write it as \"600/10m\""));
                None
            }
        }
    }

    /// Reads `on_exceed` and `restrict_to`.
    fn consequence(&mut self, table: &mut TableReader<'_, '_>, of: Consequences<'_>) -> Option<Then> {
        let words = [
            ("challenge", Consequence::Challenge),
            ("restrict", Consequence::Restrict),
            ("terminate", Consequence::Terminate),
            ("quarantine", Consequence::Quarantine),
        ];
        let offered = if of.quarantine { &words[..] } else { &words[..3] };
        let span = table.span();
        let word = table.word("on_exceed", offered, &mut self.diagnostics);
        if !table.has("on_exceed") {
            let known = offered.iter().map(|(word, _)| format!("\"{word}\"")).collect::<Vec<_>>().join(", ");
            table.missing("on_exceed", &format!("say what follows: {known}"), &mut self.diagnostics);
        }
        let set = table.text("restrict_to", &mut self.diagnostics);
        match (&word, &set) {
            (Some(Consequence::Restrict), None) if !table.has("restrict_to") => {
                let help = "add restrict_to = \"NAME\", and [set.NAME] with the resources that stay";
                table.missing("restrict_to", help, &mut self.diagnostics);
            }
            (
                Some(Consequence::Challenge | Consequence::Terminate | Consequence::Quarantine | Consequence::Alert),
                Some(set),
            ) => {
                let message = "`restrict_to` belongs to on_exceed = \"restrict\"";
                self.diagnostics.push(Diagnostic::at(set.span(), message).help("leave it out"));
            }
            // A word that is none was reported, and so was a set that is no text.
            (None, _) | (Some(_), None) | (Some(Consequence::Restrict), Some(_)) => {}
        }
        match word? {
            Consequence::Challenge => {
                let service =
                    of.from.iter().find(|selector| matches!(selector, Selector::Service(_) | Selector::AnyService));
                if let Some(service) = service {
                    let message = format!("{} challenges `{service}`, which cannot sign in", table.title());
                    let help = "use \"restrict\" or \"terminate\" for services, in a rule of their own";
                    self.diagnostics.push(Diagnostic::at(span, message).help(help));
                }
                Some(Then::Challenge)
            }
            Consequence::Restrict => set.and_then(|set| self.restrict_to(&set, of.of)).map(Then::Restrict),
            Consequence::Terminate => Some(Then::Terminate),
            Consequence::Quarantine => Some(Then::Quarantine),
            Consequence::Alert => None,
        }
    }

    /// Resolves the name of a set, or reports that there is none.
    pub(super) fn set_named(&mut self, text: &Spanned<&str>) -> Option<usize> {
        let name = *text.get_ref();
        let found = self.model.sets.iter().position(|set| set.name == name);
        if found.is_none() && !self.broken.iter().any(|broken| broken == name) {
            let help = match did_you_mean(name, self.model.sets.iter().map(|set| set.name.as_str())) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("add [set.{name}] with resources = [...]"),
            };
            self.diagnostics.push(Diagnostic::at(text.span(), format!("there is no set \"{name}\"")).help(help));
        }
        found
    }

    /// Resolves the name of a set that has to be smaller than what there is.
    fn restrict_to(&mut self, text: &Spanned<&str>, of: &[usize]) -> Option<usize> {
        let name = *text.get_ref();
        let index = self.set_named(text)?;
        let set = &self.model.sets[index].resources;
        let resource_name = |index: usize| self.model.resources.get(index).map(|resource: &Resource| &resource.name);
        if let Some(own) = of.iter().find(|own| set.contains(own)).and_then(|own| resource_name(*own)) {
            let message = format!("set \"{name}\" holds {own}, of which this is a limit");
            let help = "a set that stays has to be without it: nothing would be restricted";
            self.diagnostics.push(Diagnostic::at(text.span(), message).help(help));
        } else if !self.model.resources.is_empty() && set.len() >= self.model.resources.len() {
            let message = format!("set \"{name}\" holds every resource");
            self.diagnostics.push(Diagnostic::at(text.span(), message).help("nothing would be restricted"));
        }
        Some(index)
    }

    /// Reads `limits` of an `[[access]]`: one table, or a list of them.
    pub(super) fn access_limits(
        &mut self,
        rule: &mut TableReader<'_, '_>,
        from: &[Selector],
        to: &[usize],
    ) -> Vec<AccessLimit> {
        let Some(value) = rule.take("limits") else { return Vec::new() };
        let tables: Vec<Table<'_, '_>> = match value.get_ref() {
            DeValue::Array(array) => array.iter().collect(),
            _ => vec![value],
        };
        let title = format!("`limits` of {}", rule.title());
        let mut limits: Vec<AccessLimit> = Vec::new();
        for value in tables {
            let Some(mut table) = TableReader::of_value(value, title.clone(), &mut self.diagnostics) else { continue };
            let span = table.span();
            let mut read = Vec::new();
            for (key, measure, bytes) in [
                ("download", Measure::Download, true),
                ("upload", Measure::Upload, true),
                ("connections", Measure::Connections, false),
            ] {
                read.extend(self.rate(&mut table, key, bytes).map(|(most, within)| (measure, most, within)));
            }
            if !["download", "upload", "connections"].iter().any(|key| table.has(key)) {
                let help = "name what is limited: download = \"2GiB/h\", upload, or connections = \"600/10m\"";
                self.diagnostics.push(Diagnostic::at(span.clone(), format!("{title} limit nothing")).help(help));
            }
            let then = self.consequence(&mut table, Consequences { from, of: to, quarantine: false });
            table.refuse("refused", "refused destinations are no resource's: write a [[limit]]");
            table.finish(&mut self.diagnostics);
            let Some(then) = then else { continue };
            for (measure, most, within) in read {
                if limits.iter().any(|known| known.measure == measure && known.within == within) {
                    let message = format!("{title} limit the same twice within {}", HumanDuration::new(within));
                    self.diagnostics.push(Diagnostic::at(span.clone(), message).help("keep the smaller one"));
                }
                limits.push(AccessLimit { measure, most, within, then });
            }
        }
        if limits.len() > MAX_LIMITS {
            let message = format!("{title} are {}: {MAX_LIMITS} are the most", limits.len());
            self.diagnostics.push(Diagnostic::at(value.span(), message));
        }
        limits
    }

    /// Reads a `[[limit]]`.
    pub(super) fn subject_limit(&mut self, value: Table<'_, '_>) {
        let Some(mut table) = TableReader::of_value(value, "[[limit]]", &mut self.diagnostics) else { return };
        let name = self.rule_name(&mut table);
        let span = table.span();
        let from = self.from(&mut table);
        table.text("reason", &mut self.diagnostics);
        table.text("owner", &mut self.diagnostics);
        let refused = self.rate(&mut table, "refused", false);
        let stay = self.stay_in(&mut table);
        let monitor_until = self.monitor(&mut table);
        let quarantine = table.has("refused");
        let then = self.consequence(&mut table, Consequences { from: &from, of: &[], quarantine });
        let watched = match (table.has("refused"), table.has("stay_in")) {
            (true, true) | (false, false) => {
                let help = "write one: refused = \"20/m\" for scans, stay_in = \"country\" for the place";
                let message = "a [[limit]] watches one thing".to_owned();
                self.diagnostics.push(Diagnostic::at(span, message).help(help));
                None
            }
            (true, false) => refused.and_then(|(most, within)| self.refused(&span, most, within)),
            (false, true) => stay,
        };
        table.finish(&mut self.diagnostics);
        if let (Some(name), Some(watched), Some(then)) = (name, watched, then) {
            self.model.limits.push(SubjectLimit { name, from, watched, then, monitor_until });
        }
    }

    fn refused(&mut self, span: &Range<usize>, most: u64, within: Duration) -> Option<Watched> {
        match u32::try_from(most).ok().filter(|most| *most <= MAX_REFUSED) {
            Some(most) => Some(Watched::Refused { most, within }),
            None => {
                let message = format!("{most} refused destinations are too many to remember");
                let help = format!("use at most {MAX_REFUSED}");
                self.diagnostics.push(Diagnostic::at(span.clone(), message).help(help));
                None
            }
        }
    }

    fn stay_in(&mut self, table: &mut TableReader<'_, '_>) -> Option<Watched> {
        let list = table.one_or_more("stay_in", &mut self.diagnostics)?;
        let (mut country, mut asn) = (false, false);
        for text in list {
            match *text.get_ref() {
                "country" => country = true,
                "asn" => asn = true,
                other => {
                    let message = format!("`{other}` is not a kind of place");
                    let help = "use \"country\" or \"asn\"";
                    self.diagnostics.push(Diagnostic::at(text.span(), message).help(help));
                }
            }
        }
        (country || asn).then_some(Watched::Stay { country, asn })
    }
}
