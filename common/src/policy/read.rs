//! Reads the document: TOML with places -> the checked [`Model`], or every mistake in it.
//!
//! Names are resolved here, so that nothing after this can meet a rule that names a missing resource. A rule with a
//! mistake is left out of the model while the rest is read; the document as a whole is refused all the same.

use std::{collections::HashMap, ops::Range, time::Duration};

use ipnet::IpNet;
use jiff::tz::TimeZone;
use toml::{Spanned, de::DeValue};

use super::{
    condition::When,
    hours::{Hours, time_zone},
    model::{Access, Deny, DenyTo, Life, Model, NodeSelector, Resource, Sensitivity},
    place::{AutonomousSystem, Country},
    posture,
    proof::Phishing,
    request::OnRequest,
    selector::Selector,
};
use crate::{
    diagnostics::{
        Diagnostic, Diagnostics, HumanDuration, did_you_mean, parse_tree,
        table::{TableReader, parse_at, text_of, wrong_type},
    },
    grant::OnDeny,
    id::{ResourceName, RuleName},
    net::Service,
    time::WallTime,
};

/// The shortest and the longest lease that a rule may ask for.
pub const LEASE_LIMITS: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(3_600));
/// The shortest and the longest time for which a rule may let somebody ask.
pub(super) const REQUEST_LIMITS: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(7 * 86_400));
/// The lease of rules that do not say.
pub const DEFAULT_LEASE: Duration = Duration::from_secs(600);

/// The conditions that `when` and `unless` know.
const CONDITIONS: [&str; 8] =
    ["posture", "mfa_within", "phishing_resistant", "acr", "hours", "network", "country", "asn"];

/// What the readers of single sections share.
pub(super) struct Reading {
    /// Where lines end: a document of ten thousand rules asks for twenty thousand lines.
    line_ends: Vec<usize>,
    pub(super) model: Model,
    pub(super) diagnostics: Diagnostics,
    pub(super) zone: TimeZone,
    default_lease: Duration,
    pub(super) posture_by_name: HashMap<String, usize>,
    network_by_name: HashMap<String, Vec<IpNet>>,
    rule_lines: HashMap<RuleName, usize>,
    when_by_text: HashMap<String, usize>,
    /// Names of resources and postures that were written but could not be read: naming them is no second mistake.
    pub(super) broken: Vec<String>,
}

/// Reads and checks a document; its tests are not run yet.
pub(super) fn read(file: &str, text: &str) -> Result<Model, Diagnostics> {
    let tree = parse_tree(file, text)?;
    let mut reading = Reading {
        line_ends: text.match_indices('\n').map(|(at, _)| at).collect(),
        model: Model { file: file.to_owned(), ..Model::default() },
        diagnostics: Diagnostics::new(file, text),
        zone: TimeZone::UTC,
        default_lease: DEFAULT_LEASE,
        posture_by_name: HashMap::new(),
        network_by_name: HashMap::new(),
        rule_lines: HashMap::new(),
        when_by_text: HashMap::new(),
        broken: Vec::new(),
    };
    let mut document = TableReader::new(&tree, "", 0..0);
    if let Some(settings) = document.take("settings") {
        reading.settings(settings);
    }
    for (name, value) in reading.named_tables(document.take("posture"), "posture") {
        reading.posture(name, value);
    }
    for value in reading.table_list(document.take("posture_exception"), "posture_exception") {
        reading.posture_exception(value);
    }
    for (name, value) in reading.named_tables(document.take("network"), "network") {
        reading.known_network(name, value);
    }
    for (name, value) in reading.named_tables(document.take("resource"), "resource") {
        reading.resource(name, value);
    }
    for (name, value) in reading.named_tables(document.take("set"), "set") {
        reading.resource_set(name, value);
    }
    for value in reading.table_list(document.take("access"), "access") {
        reading.access(value);
    }
    for value in reading.table_list(document.take("deny"), "deny") {
        reading.deny(value);
    }
    for value in reading.table_list(document.take("limit"), "limit") {
        reading.subject_limit(value);
    }
    for value in reading.table_list(document.take("test"), "test") {
        reading.test(value);
    }
    document.finish(&mut reading.diagnostics);
    reading.model.index();
    reading.diagnostics.into_result(reading.model)
}

pub(super) type Table<'t, 'i> = &'t Spanned<DeValue<'i>>;

impl Reading {
    pub(super) fn line(&self, span: &Range<usize>) -> usize {
        self.line_ends.partition_point(|end| *end < span.start) + 1
    }

    /// Lists `[kind.NAME]` tables in the order of the document.
    fn named_tables<'t, 'i>(
        &mut self,
        section: Option<Table<'t, 'i>>,
        kind: &str,
    ) -> Vec<(Spanned<&'t str>, Table<'t, 'i>)> {
        let Some(section) = section else { return Vec::new() };
        let DeValue::Table(table) = section.get_ref() else {
            let wrong = wrong_type(section.span(), "tables with names", section.get_ref());
            self.diagnostics.push(wrong.help(format!("write [{kind}.NAME]")));
            return Vec::new();
        };
        let mut named: Vec<_> =
            table.iter().map(|(name, value)| (Spanned::new(name.span(), name.get_ref().as_ref()), value)).collect();
        named.sort_by_key(|(name, _)| name.span().start);
        named
    }

    /// Lists `[[kind]]` tables.
    fn table_list<'t, 'i>(&mut self, section: Option<Table<'t, 'i>>, kind: &str) -> Vec<Table<'t, 'i>> {
        match section.map(|section| (section, section.get_ref())) {
            None => Vec::new(),
            Some((_, DeValue::Array(array))) => array.iter().collect(),
            Some((section, other)) => {
                let wrong = wrong_type(section.span(), "a list of tables", other);
                self.diagnostics.push(wrong.help(format!("write [[{kind}]], with two brackets")));
                Vec::new()
            }
        }
    }

    fn settings(&mut self, value: Table<'_, '_>) {
        let diagnostics = &mut self.diagnostics;
        let Some(mut table) = TableReader::of_value(value, "[settings]", diagnostics) else { return };
        if let Some(name) = table.text("timezone", diagnostics) {
            match time_zone(name.get_ref()) {
                Ok(zone) => self.zone = zone,
                Err(error) => diagnostics.push(Diagnostic::of_error(name.span(), &error.to_string())),
            }
        }
        if let Some(lease) = table.duration("default_lease", diagnostics) {
            self.default_lease = checked_lease(&lease, diagnostics);
        }
        let classes = table.list("mfa_acr", diagnostics).unwrap_or_default();
        self.model.mfa_acr = classes.into_iter().map(|class| class.into_inner().to_owned()).collect();
        let classes = table.list("phishing_resistant_acr", diagnostics).unwrap_or_default();
        self.model.phishing_resistant_acr = classes.into_iter().map(|class| class.into_inner().to_owned()).collect();
        table.finish(diagnostics);
    }

    fn resource(&mut self, name: Spanned<&str>, value: Table<'_, '_>) {
        let line = self.line(&name.span());
        let diagnostics = &mut self.diagnostics;
        let read = parse_at::<ResourceName>(name.span(), name.get_ref(), diagnostics).zip(TableReader::of_value(
            value,
            format!("[resource.{}]", name.get_ref()),
            diagnostics,
        ));
        let Some((resource_name, mut table)) = read else {
            self.broken.push(name.into_inner().to_owned());
            return;
        };
        let single = table.text("node", diagnostics);
        let several = table.list("nodes", diagnostics);
        let has_nodes = table.has("node") || table.has("nodes");
        if table.has("node") && table.has("nodes") {
            let help = "keep one: a name in `node`, or several names and tags in `nodes`";
            diagnostics
                .push(Diagnostic::at(name.span(), format!("{} has both `node` and `nodes`", table.title())).help(help));
        } else if !has_nodes && !table.has("via") {
            table.missing("node", "add node = \"MACHINE\" or nodes = [\"tag:NAME\"]", diagnostics);
        }
        let mut nodes = Vec::new();
        for text in single.into_iter().chain(several.unwrap_or_default()) {
            nodes.extend(match text.get_ref().strip_prefix("tag:") {
                Some(tag) => parse_at(text.span(), tag, diagnostics).map(NodeSelector::Tag),
                None => parse_at(text.span(), text.get_ref(), diagnostics).map(NodeSelector::Name),
            });
        }
        let mut services: Vec<Service> = Vec::new();
        for text in table.list("ports", diagnostics).unwrap_or_default() {
            if let Some(service) = parse_at(text.span(), text.get_ref(), diagnostics) {
                if services.contains(&service) {
                    diagnostics.push(Diagnostic::at(text.span(), format!("`{service}` is named twice")));
                }
                services.push(service);
            }
        }
        if !table.has("ports") {
            table.missing("ports", "add what may be opened, such as ports = [\"tcp/443\"]", diagnostics);
        }
        let sensitivity = [("low", Sensitivity::Low), ("medium", Sensitivity::Medium), ("high", Sensitivity::High)];
        let resource = Resource {
            name: resource_name,
            line,
            nodes,
            services,
            sensitivity: table.word("sensitivity", &sensitivity, diagnostics).unwrap_or(Sensitivity::Medium),
            owner: table.text("owner", diagnostics).map(|owner| owner.into_inner().to_owned()),
            on_deny: table
                .word("on_deny", &[("drop", OnDeny::Drop), ("reject", OnDeny::Reject)], diagnostics)
                .unwrap_or_default(),
        };
        table.refuse("via", "name the node itself in `node`, and run the agent there");
        table.finish(diagnostics);
        let model = &mut self.model;
        model.resource_by_name.insert(resource.name.clone(), model.resources.len());
        model.resources.push(resource);
    }

    fn access(&mut self, value: Table<'_, '_>) {
        let Some(mut table) = TableReader::of_value(value, "[[access]]", &mut self.diagnostics) else { return };
        let name = self.rule_name(&mut table);
        let line = self.line(&table.span());
        let reason = table.text("reason", &mut self.diagnostics).map(|reason| reason.into_inner().to_owned());
        let owner = table.text("owner", &mut self.diagnostics).map(|owner| owner.into_inner().to_owned());
        let from = self.from(&mut table);
        let to = self.resources_of(&mut table);
        let when = self.conditions(&mut table, "when");
        let excepted = |posture: usize| posture::excepts_all(&self.model, posture, &from);
        if when.is_some_and(|when| self.model.whens[when].is_place_alone(excepted)) {
            let help = "ask for something of the person or the device too (posture, mfa_within): an address is easily borrowed";
            let message = format!("{} opens by the place alone", table.title());
            self.diagnostics.push(Diagnostic::at(table.span(), message).help(help));
        }
        let life = self.life(&mut table);
        let lease = table.duration("lease", &mut self.diagnostics);
        let lease = lease.map_or(self.default_lease, |lease| checked_lease(&lease, &mut self.diagnostics));
        let monitor_until = self.monitor(&mut table);
        let stock_clients = table.flag("stock_clients", &mut self.diagnostics).unwrap_or(false);
        let request = self.on_request(&mut table);
        let limits = self.access_limits(&mut table, &from, &to);
        table.refuse("unless", "`unless` belongs to [[deny]]; an access holds `when` its conditions are met");
        table.finish(&mut self.diagnostics);
        if let Some(name) = name {
            self.model.access.push(Access {
                name,
                line,
                reason,
                owner,
                from,
                to,
                when,
                life,
                lease,
                monitor_until,
                stock_clients,
                request,
                limits,
            });
        }
    }

    /// Reads `request`: who may approve, and for how long at most.
    fn on_request(&mut self, rule: &mut TableReader<'_, '_>) -> Option<OnRequest> {
        let value = rule.take("request")?;
        let mut table = TableReader::of_value(value, format!("`request` of {}", rule.title()), &mut self.diagnostics)?;
        let mut approvers = Vec::new();
        for text in table.one_or_more("approvers", &mut self.diagnostics).unwrap_or_default() {
            match parse_at::<Selector>(text.span(), text.get_ref(), &mut self.diagnostics) {
                Some(known @ (Selector::LocalUser(_) | Selector::OidcUser(_) | Selector::Group(_))) => {
                    approvers.push(known);
                }
                Some(other @ (Selector::AnyUser | Selector::Service(_) | Selector::AnyService | Selector::Tag(_))) => {
                    let message = format!("`{other}` cannot approve anything");
                    let help = "name people or a group: \"user:bob\", \"group:sre-leads\"";
                    self.diagnostics.push(Diagnostic::at(text.span(), message).help(help));
                }
                None => {}
            }
        }
        if !table.has("approvers") {
            let help = "add who may approve, such as approvers = [\"group:sre-leads\"]";
            table.missing("approvers", help, &mut self.diagnostics);
        }
        let longest = table.duration("longest", &mut self.diagnostics);
        if !table.has("longest") {
            table.missing("longest", "add for how long at most, such as longest = \"4h\"", &mut self.diagnostics);
        }
        let (least, most) = REQUEST_LIMITS;
        if let Some(longest) = &longest
            && !(least..=most).contains(&longest.get_ref().get())
        {
            let message = format!("an approval for {} is out of bounds", longest.get_ref());
            self.diagnostics.push(Diagnostic::at(longest.span(), message).help("use \"1m\" to \"7d\""));
        }
        table.finish(&mut self.diagnostics);
        Some(OnRequest { approvers, longest: longest.map_or(least, |longest| longest.get_ref().get()) })
    }

    fn deny(&mut self, value: Table<'_, '_>) {
        let Some(mut table) = TableReader::of_value(value, "[[deny]]", &mut self.diagnostics) else { return };
        let name = self.rule_name(&mut table);
        let line = self.line(&table.span());
        let reason = table.text("reason", &mut self.diagnostics).map(|reason| reason.into_inner().to_owned());
        let owner = table.text("owner", &mut self.diagnostics).map(|owner| owner.into_inner().to_owned());
        let from = self.from(&mut table);
        let everything = table
            .take("to")
            .and_then(|to| to.get_ref().as_array())
            .is_some_and(|list| matches!(&list[..], [only] if only.get_ref().as_str() == Some("*")));
        let to = if everything { DenyTo::Everything } else { DenyTo::Resources(self.resources_of(&mut table)) };
        let when = self.conditions(&mut table, "when");
        let unless = self.conditions(&mut table, "unless");
        let life = self.life(&mut table);
        let monitor_until = self.monitor(&mut table);
        table.finish(&mut self.diagnostics);
        if let Some(name) = name {
            self.model.deny.push(Deny { name, line, reason, owner, from, to, when, unless, life, monitor_until });
        }
    }

    /// Reads a rule's name; two rules cannot share one, because records name rules by it.
    pub(super) fn rule_name(&mut self, table: &mut TableReader<'_, '_>) -> Option<RuleName> {
        let Some(name) = table.parsed::<RuleName>("name", &mut self.diagnostics) else {
            if !table.has("name") {
                let help = "add name = \"...\": records and explanations show it";
                table.missing("name", help, &mut self.diagnostics);
            }
            return None;
        };
        let line = self.line(&name.span());
        if let Some(earlier) = self.rule_lines.insert(name.get_ref().clone(), line) {
            let message = format!("two rules are named \"{}\"", name.get_ref());
            self.diagnostics
                .push(Diagnostic::at(name.span(), message).help(format!("line {earlier} has this name already")));
        }
        Some(name.into_inner())
    }

    pub(super) fn from(&mut self, table: &mut TableReader<'_, '_>) -> Vec<Selector> {
        let list = table.list("from", &mut self.diagnostics);
        if !table.has("from") {
            let help = "add who it speaks of, such as from = [\"group:NAME\"]";
            table.missing("from", help, &mut self.diagnostics);
        }
        let list = list.unwrap_or_default();
        list.iter().filter_map(|text| parse_at(text.span(), text.get_ref(), &mut self.diagnostics)).collect()
    }

    fn resources_of(&mut self, table: &mut TableReader<'_, '_>) -> Vec<usize> {
        let list = table.list("to", &mut self.diagnostics);
        if !table.has("to") {
            table.missing("to", "add the resources, such as to = [\"NAME\"]", &mut self.diagnostics);
        }
        let mut indexes = Vec::new();
        for text in list.unwrap_or_default() {
            if let Some(index) = self.resource_named(&text)
                && !indexes.contains(&index)
            {
                indexes.push(index);
            }
        }
        indexes
    }

    /// Resolves the name of a resource, or reports that there is none.
    pub(super) fn resource_named(&mut self, text: &Spanned<&str>) -> Option<usize> {
        let name = *text.get_ref();
        let found = name.parse::<ResourceName>().ok().and_then(|name| self.model.resource_by_name.get(&name).copied());
        if found.is_none() && !self.broken.iter().any(|broken| broken == name) {
            let known = self.model.resources.iter().map(|resource| resource.name.as_str());
            let help = match did_you_mean(name, known) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None if name == "*" => "only [[deny]] may name everything; an access names its resources".into(),
                None => format!("add [resource.{name}], or name one that exists"),
            };
            self.diagnostics.push(Diagnostic::at(text.span(), format!("there is no resource \"{name}\"")).help(help));
        }
        found
    }

    /// Resolves the name of a posture, or reports that there is none.
    pub(super) fn posture_named(&mut self, text: &Spanned<&str>) -> Option<usize> {
        let name = *text.get_ref();
        let found = self.posture_by_name.get(name).copied();
        if found.is_none() && !self.broken.iter().any(|broken| broken == name) {
            let help = match did_you_mean(name, self.posture_by_name.keys().map(String::as_str)) {
                Some(near) => format!("did you mean \"{near}\"?"),
                None => format!("add [posture.{name}], or name one that exists"),
            };
            self.diagnostics.push(Diagnostic::at(text.span(), format!("there is no posture \"{name}\"")).help(help));
        }
        found
    }

    /// Reads `when` or `unless`. Equal conditions are kept once, so that one decision evaluates them once.
    fn conditions(&mut self, rule: &mut TableReader<'_, '_>, key: &'static str) -> Option<usize> {
        let value = rule.take(key)?;
        let mut table = TableReader::of_value(value, format!("`{key}` of {}", rule.title()), &mut self.diagnostics)?;
        let mut when = When::default();
        for text in table.one_or_more("posture", &mut self.diagnostics).unwrap_or_default() {
            when.posture.extend(self.posture_named(&text));
        }
        if let Some(within) = table.duration("mfa_within", &mut self.diagnostics) {
            if within.get_ref().get().is_zero() {
                self.diagnostics.push(Diagnostic::at(within.span(), "nobody can prove anything within no time"));
            }
            when.proof.mfa_within = Some(within.into_inner().get());
        }
        if table.has("phishing_resistant") {
            let span = table.span();
            match table.flag("phishing_resistant", &mut self.diagnostics) {
                Some(true) => when.proof.phishing = Phishing::Resistant,
                Some(false) => {
                    let message = "`phishing_resistant = false` asks for nothing";
                    self.diagnostics.push(Diagnostic::at(span, message).help("leave it out"));
                }
                None => {}
            }
        }
        let classes = table.one_or_more("acr", &mut self.diagnostics).unwrap_or_default();
        when.proof.acr = classes.into_iter().map(|class| class.into_inner().to_owned()).collect();
        for text in table.one_or_more("hours", &mut self.diagnostics).unwrap_or_default() {
            when.hours.extend(parse_at::<Hours>(text.span(), text.get_ref(), &mut self.diagnostics));
        }
        for text in table.one_or_more("network", &mut self.diagnostics).unwrap_or_default() {
            when.place.network.extend(self.network(&text));
        }
        for text in table.one_or_more("country", &mut self.diagnostics).unwrap_or_default() {
            when.place.country.extend(parse_at::<Country>(text.span(), text.get_ref(), &mut self.diagnostics));
        }
        for text in table.one_or_more("asn", &mut self.diagnostics).unwrap_or_default() {
            when.place.asn.extend(parse_at::<AutonomousSystem>(text.span(), text.get_ref(), &mut self.diagnostics));
        }
        let is_empty = CONDITIONS.iter().all(|key| !table.has(key));
        if is_empty {
            let help = format!("name a condition ({}), or leave it out", CONDITIONS.join(", "));
            let message = format!("`{key}` of {} is empty", rule.title());
            self.diagnostics.push(Diagnostic::at(value.span(), message).help(help));
        }
        table.finish(&mut self.diagnostics);
        let model = &mut self.model;
        let same = format!("{:?} {:?} {:?}", when.posture, when.proof, when.place);
        let same = when.hours.iter().fold(same, |text, hours| format!("{text} {hours}"));
        Some(*self.when_by_text.entry(same).or_insert_with(|| {
            model.whens.push(when);
            model.whens.len() - 1
        }))
    }

    /// Reads an address, a prefix, or the name of a known network; host bits are a slip of the pen.
    fn network(&mut self, text: &Spanned<&str>) -> Vec<IpNet> {
        let parsed = match text.get_ref().parse::<std::net::IpAddr>() {
            Ok(address) => Some(IpNet::from(address)),
            Err(_) => text.get_ref().parse::<IpNet>().ok(),
        };
        let known = self.network_by_name.get(*text.get_ref()).cloned();
        match (parsed, known) {
            (Some(network), _) if network.addr() == network.network() => return vec![network],
            (None, Some(known)) => return known,
            (Some(network), _) => {
                let message = format!("`{network}` has bits after its prefix");
                let help = format!("did you mean \"{}\"?", network.trunc());
                self.diagnostics.push(Diagnostic::at(text.span(), message).help(help));
            }
            (None, None) if self.broken.iter().any(|broken| broken == text.get_ref()) => {}
            (None, None) => {
                let message = format!("`{}` is not a network", text.get_ref());
                let help = match did_you_mean(text.get_ref(), self.network_by_name.keys().map(String::as_str)) {
                    Some(near) => format!("did you mean \"{near}\"?"),
                    None => {
                        "write it as \"192.0.2.0/24\" or \"2001:db8::/32\", or name one that [network.NAME] makes known"
                            .into()
                    }
                };
                self.diagnostics.push(Diagnostic::at(text.span(), message).help(help));
            }
        }
        Vec::new()
    }

    /// Reads `[network.NAME]`: prefixes that conditions may name.
    fn known_network(&mut self, name: Spanned<&str>, value: Table<'_, '_>) {
        let title = format!("[network.{}]", name.get_ref());
        let Some(mut table) = TableReader::of_value(value, title, &mut self.diagnostics) else {
            return self.broken.push(name.into_inner().to_owned());
        };
        let list = table.list("prefixes", &mut self.diagnostics).unwrap_or_default();
        if !table.has("prefixes") {
            table.missing("prefixes", "add prefixes = [\"192.0.2.0/24\"]", &mut self.diagnostics);
        }
        let prefixes = list.iter().flat_map(|text| self.network(text)).collect();
        table.finish(&mut self.diagnostics);
        self.network_by_name.insert(name.into_inner().to_owned(), prefixes);
    }

    fn life(&mut self, rule: &mut TableReader<'_, '_>) -> Life {
        let starts = self.date(rule, "starts");
        let expires = self.date(rule, "expires");
        if let (Some(starts), Some(expires)) = (&starts, &expires)
            && starts.get_ref() >= expires.get_ref()
        {
            let help = "it would never hold: did you exchange them?";
            self.diagnostics.push(Diagnostic::at(expires.span(), "`expires` is not after `starts`").help(help));
        }
        Life { starts: starts.map(Spanned::into_inner), expires: expires.map(Spanned::into_inner) }
    }

    /// Reads `mode` and `monitor_until`: a rule that is only watched has an end.
    pub(super) fn monitor(&mut self, rule: &mut TableReader<'_, '_>) -> Option<WallTime> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mode {
            Enforce,
            Monitor,
        }
        let words = [("enforce", Mode::Enforce), ("monitor", Mode::Monitor)];
        let mode = rule.word("mode", &words, &mut self.diagnostics).unwrap_or(Mode::Enforce);
        let until = self.date(rule, "monitor_until");
        match (mode, until) {
            (Mode::Monitor, None) if !rule.has("monitor_until") => {
                let help = "add monitor_until = \"2027-01-31\": a rule is not watched for ever";
                rule.missing("monitor_until", help, &mut self.diagnostics);
                None
            }
            (Mode::Enforce, Some(until)) if !rule.has("mode") => {
                let help = "add mode = \"monitor\", or leave it out";
                self.diagnostics.push(Diagnostic::at(until.span(), "`monitor_until` without a mode").help(help));
                None
            }
            (Mode::Enforce, _) => None, // switching a rule to "enforce" may leave the date in place
            (Mode::Monitor, until) => until.map(Spanned::into_inner),
        }
    }

    /// Reads a date or a time: `2026-12-01` (its midnight), `2026-12-01 18:00`, with or without an offset.
    pub(super) fn date(&mut self, rule: &mut TableReader<'_, '_>, key: &'static str) -> Option<Spanned<WallTime>> {
        let value = rule.take(key)?;
        let native;
        let text = match value.get_ref() {
            DeValue::Datetime(datetime) => {
                native = datetime.to_string();
                native.as_str()
            }
            DeValue::String(_) => text_of(value, &mut self.diagnostics)?.into_inner(),
            other => {
                self.diagnostics.push(wrong_type(value.span(), "a date, such as \"2026-12-01\"", other));
                return None;
            }
        };
        match moment(text, &self.zone) {
            Some(moment) => Some(Spanned::new(value.span(), moment)),
            None => {
                let help = "write \"2026-12-01\" or \"2026-12-01 18:00\" (in [settings] timezone), or RFC 3339";
                self.diagnostics.push(Diagnostic::at(value.span(), format!("`{text}` is not a date")).help(help));
                None
            }
        }
    }
}

fn moment(text: &str, zone: &TimeZone) -> Option<WallTime> {
    let timestamp = match text.parse::<jiff::Timestamp>() {
        Ok(timestamp) => timestamp,
        Err(_) => match text.parse::<jiff::civil::DateTime>() {
            Ok(local) if !text.contains('[') => local.to_zoned(zone.clone()).ok()?.timestamp(),
            Ok(_) | Err(_) => return None,
        },
    };
    Some(WallTime::from_millis(timestamp.as_millisecond()))
}

fn checked_lease(lease: &Spanned<HumanDuration>, diagnostics: &mut Diagnostics) -> Duration {
    let (shortest, longest) = LEASE_LIMITS;
    let asked = lease.get_ref().get();
    if asked < shortest || asked > longest {
        let message = format!("a lease of {} is out of bounds", lease.get_ref());
        diagnostics.push(Diagnostic::at(lease.span(), message).help("use \"30s\" to \"1h\""));
    }
    asked.clamp(shortest, longest)
}
