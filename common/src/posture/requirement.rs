//! What `[posture.NAME]` asks, and how far a device meets it.

use std::{collections::BTreeSet, fmt, time::Duration};

use super::{
    facts::{CheckResult, FactKind, Facts, OsKind, Report},
    version::{Distribution, Version},
    words,
};
use crate::{diagnostics::HumanDuration, id::FactName, policy::Truth, time::WallTime};

/// How old a device's report may be where `[posture.NAME]` says nothing of `max_age`.
pub const DEFAULT_MAX_AGE: Duration = Duration::from_secs(15 * 60);
/// How old the word of a device-management system may be where `[posture.NAME]` says nothing of `attested_max_age`.
pub const DEFAULT_ATTESTED_AGE: Duration = Duration::from_secs(24 * 3_600);
/// The least `max_age`: devices report three times within it.
pub const MIN_MAX_AGE: Duration = Duration::from_secs(10);
/// How far a report may seem to lie in the future: clocks of management system and controller differ.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// What `[posture.NAME]` requires. Absent parts require nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requirement {
    /// The required state of disk encryption.
    pub disk_encrypted: Option<bool>,
    /// The required state of the firewall.
    pub firewall: Option<bool>,
    /// The required state of the screen lock.
    pub screen_lock: Option<bool>,
    /// The required state of Secure Boot.
    pub secure_boot: Option<bool>,
    /// The lowest kernel version; it requires Linux too.
    pub min_linux_kernel: Option<Version>,
    /// Any of these distributions, in that version or a newer one; it requires Linux too.
    pub distributions: Vec<Distribution>,
    /// The most security updates that may wait.
    pub max_security_updates: Option<u32>,
    /// Who must manage the machine.
    pub managed_by: Option<FactName>,
    /// Endpoint agents that must run.
    pub agents: BTreeSet<FactName>,
    /// Checks by command that must pass.
    pub checks: BTreeSet<FactName>,
    /// Whether the machine's management has to find it as it wants it: always by its own word ([`FactKind::Compliant`]).
    pub compliant: Option<bool>,
    /// How old what the device says may be.
    pub max_age: Duration,
    /// For which facts the word of a device-management system counts, and the device's own does not.
    pub attested: BTreeSet<FactKind>,
    /// How old the word of a device-management system may be.
    pub attested_max_age: Duration,
}

impl Default for Requirement {
    fn default() -> Self {
        Self {
            disk_encrypted: None,
            firewall: None,
            screen_lock: None,
            secure_boot: None,
            min_linux_kernel: None,
            distributions: Vec::new(),
            max_security_updates: None,
            managed_by: None,
            agents: BTreeSet::new(),
            checks: BTreeSet::new(),
            compliant: None,
            max_age: DEFAULT_MAX_AGE,
            attested: BTreeSet::new(),
            attested_max_age: DEFAULT_ATTESTED_AGE,
        }
    }
}

/// One fact that is not as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is so, and since when it is known: `the firewall is off as of 12 s ago, and must be on`.
    pub what: String,
    /// The same without a time, so that it is equal while nothing changes: `the firewall is off, and must be on`.
    pub gist: String,
    /// What the person at the machine can do.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// What came of comparing what is known with a requirement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostureVerdict {
    /// Whether the requirement is met.
    pub truth: Truth,
    /// Until when `truth` holds if nothing new is heard.
    pub until: WallTime,
    /// What fails or is unknown; empty if the requirement is met.
    pub findings: Vec<Finding>,
}

/// Whose word is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Witness {
    Device,
    Management,
}

/// A witness's facts if they are fresh enough to count.
struct Testimony<'a> {
    facts: Option<&'a Facts>,
    age: Duration,
    max_age: Duration,
    until: WallTime,
    /// Why there are none that count.
    silence: Option<Finding>,
}

impl<'a> Testimony<'a> {
    fn of(witness: Witness, report: Option<&'a Report>, max_age: Duration, now: WallTime) -> Self {
        let silent = |what: String, gist: Option<String>| {
            let fix = match witness {
                Witness::Device => "let the agent run and reach the controller: postern status",
                Witness::Management => "ask who runs the device management: postern-controller posture import",
            };
            let gist = gist.unwrap_or_else(|| what.clone());
            let silence = Some(Finding { what, gist, fix: fix.into() });
            Self { facts: None, age: Duration::ZERO, max_age, until: WallTime::NEVER, silence }
        };
        let Some(report) = report else {
            let what = match witness {
                Witness::Device => "this device has not reported its posture",
                Witness::Management => "no device management has vouched for this device",
            };
            return silent(what.into(), None);
        };
        if report.observed_at > now.saturating_add(CLOCK_SKEW) {
            return silent("its posture claims to lie in the future".into(), None);
        }
        let observed = report.observed_at.min(now);
        let until = observed.saturating_add(max_age);
        let age = now.since(observed);
        if until <= now {
            let whose = match witness {
                Witness::Device => "its posture",
                Witness::Management => "what device management said of it",
            };
            let (age, accepted) = (HumanDuration::rounded(age), HumanDuration::new(max_age));
            let gist = format!("{whose} is older than {accepted}");
            return silent(format!("{whose} is {age} old, and {accepted} is accepted"), Some(gist));
        }
        Self { facts: Some(&report.facts), age, max_age, until, silence: None }
    }
}

/// What is gathered while the parts of a requirement are looked at.
struct Gathering<'a> {
    device: Testimony<'a>,
    management: Testimony<'a>,
    requirement: &'a Requirement,
    verdict: PostureVerdict,
}

impl<'a> Gathering<'a> {
    /// Looks at one part. `judge` is given words for the fact's age, and returns `None` if the fact is unknown, `Err` with
    /// what is so if it fails.
    fn part(
        &mut self,
        kind: FactKind,
        further_age: Duration,
        unknown: impl FnOnce() -> String,
        judge: impl Fn(&Facts, &str) -> Option<Result<(), String>>,
    ) {
        let attested = self.requirement.attested.contains(&kind);
        let testimony = if attested { &mut self.management } else { &mut self.device };
        let Some(facts) = testimony.facts else {
            self.verdict.truth = self.verdict.truth.and(Truth::Unknown);
            // Said once, however many facts of this witness are asked for.
            self.verdict.findings.extend(testimony.silence.take());
            return;
        };
        self.verdict.until = self.verdict.until.min(testimony.until);
        let fix = || words::fix(kind).to_owned();
        // Most devices are as they should be: words are made only for those that are not.
        match judge(facts, "") {
            Some(Ok(())) => {}
            Some(Err(gist)) => {
                let as_of = as_of(testimony.age.saturating_add(further_age));
                let what = judge(facts, &as_of).and_then(Result::err).unwrap_or_default();
                self.verdict.truth = self.verdict.truth.and(Truth::False);
                self.verdict.findings.push(Finding { what, gist, fix: fix() });
            }
            None => {
                self.verdict.truth = self.verdict.truth.and(Truth::Unknown);
                let who = if attested { "device management" } else { "the device" };
                let what = format!("{who} did not say {}", unknown());
                self.verdict.findings.push(Finding { gist: what.clone(), what, fix: fix() });
            }
        }
    }

    fn flag(&mut self, kind: FactKind, required: Option<bool>, reported: impl Fn(&Facts) -> Option<bool>) {
        let Some(required) = required else { return };
        let state = |on: bool| if on { "on" } else { "off" };
        let what = words::name(kind);
        self.part(
            kind,
            Duration::ZERO,
            || format!("whether {what} is {}", state(required)),
            |facts, as_of| {
                let reported = reported(facts)?;
                let wrong = || format!("{what} is {}{as_of}, and must be {}", state(reported), state(required));
                Some(if reported == required { Ok(()) } else { Err(wrong()) })
            },
        );
    }

    fn check(&mut self, name: &FactName) {
        let kind = FactKind::Checks;
        let attested = self.requirement.attested.contains(&kind);
        let testimony = if attested { &self.management } else { &self.device };
        let result: Option<CheckResult> = testimony.facts.and_then(|facts| facts.checks.get(name)).cloned();
        let further = result.as_ref().map_or(Duration::ZERO, |result| Duration::from_secs(result.age_s.into()));
        let (age, max_age) = (testimony.age.saturating_add(further), testimony.max_age);
        if result.is_some() && age >= max_age {
            let (age, accepted) = (HumanDuration::rounded(age), HumanDuration::new(max_age));
            self.verdict.truth = self.verdict.truth.and(Truth::Unknown);
            self.verdict.findings.push(Finding {
                what: format!("check {name} was run {age} ago, and {accepted} is accepted"),
                gist: format!("check {name} was run longer ago than {accepted}"),
                fix: "look at `every` of the check in node.toml: postern status".into(),
            });
            return;
        }
        let fresh = result;
        if fresh.is_some() {
            // It was run before the rest was looked at, and is too old before the rest is.
            let earlier = i64::try_from(further.as_millis()).unwrap_or(i64::MAX);
            let until = WallTime::from_millis(testimony.until.as_millis().saturating_sub(earlier));
            self.verdict.until = self.verdict.until.min(until);
        }
        self.part(
            kind,
            further,
            || format!("whether check {name} passes"),
            |_, as_of| {
                let result = fresh.as_ref()?;
                let said = if result.said.is_empty() { String::new() } else { format!(" ({})", result.said) };
                Some(if result.passed { Ok(()) } else { Err(format!("check {name} failed{said}{as_of}")) })
            },
        );
    }
}

/// Says how old what was looked at is: ` now`, ` as of 12 s ago`.
fn as_of(age: Duration) -> String {
    if age < Duration::from_secs(1) {
        return " now".into();
    }
    format!(" as of {} ago", HumanDuration::rounded(age))
}

impl Requirement {
    /// Compares what is known of a device at `now`, by its own word and by that of a device-management system, with this
    /// requirement.
    pub fn evaluate(&self, own: Option<&Report>, attested: Option<&Report>, now: WallTime) -> PostureVerdict {
        let mut gathering = Gathering {
            device: Testimony::of(Witness::Device, own, self.max_age, now),
            management: Testimony::of(Witness::Management, attested, self.attested_max_age, now),
            requirement: self,
            verdict: PostureVerdict { truth: Truth::True, until: WallTime::NEVER, findings: Vec::new() },
        };
        gathering.flag(FactKind::DiskEncrypted, self.disk_encrypted, |facts| facts.disk_encrypted);
        gathering.flag(FactKind::Firewall, self.firewall, |facts| facts.firewall);
        gathering.flag(FactKind::ScreenLock, self.screen_lock, |facts| facts.screen_lock);
        gathering.flag(FactKind::SecureBoot, self.secure_boot, |facts| facts.secure_boot);
        if let Some(required) = self.compliant {
            let state = |compliant: bool| if compliant { "compliant" } else { "not compliant" };
            gathering.part(
                FactKind::Compliant,
                Duration::ZERO,
                || format!("whether it is {}", state(required)),
                |facts, _| {
                    let found = facts.compliant?;
                    let wrong = || format!("its management finds it {}", state(found));
                    Some(if found == required { Ok(()) } else { Err(wrong()) })
                },
            );
        }
        self.system(&mut gathering);
        if let Some(most) = self.max_security_updates {
            gathering.part(
                FactKind::SecurityUpdates,
                Duration::ZERO,
                || "how many security updates wait".into(),
                |facts, as_of| {
                    let waiting = facts.security_updates?;
                    let wrong = || format!("{waiting} security updates wait{as_of}, and at most {most} may");
                    Some(if waiting <= most { Ok(()) } else { Err(wrong()) })
                },
            );
        }
        if let Some(manager) = &self.managed_by {
            gathering.part(
                FactKind::ManagedBy,
                Duration::ZERO,
                || format!("that {manager} manages it"),
                |facts, _| {
                    let named = facts.managed_by.as_ref()?;
                    let wrong = || format!("it is managed by {named}, and must be by {manager}");
                    Some(if named == manager { Ok(()) } else { Err(wrong()) })
                },
            );
        }
        for agent in &self.agents {
            gathering.part(
                FactKind::Agents,
                Duration::ZERO,
                || format!("whether endpoint agent {agent} runs"),
                |facts, as_of| {
                    let wrong = || format!("endpoint agent {agent} does not run{as_of}");
                    Some(if *facts.agents.get(agent)? { Ok(()) } else { Err(wrong()) })
                },
            );
        }
        for check in &self.checks {
            gathering.check(check);
        }
        gathering.verdict
    }

    fn system(&self, gathering: &mut Gathering<'_>) {
        let kind = FactKind::Os;
        let not_linux = |facts: &Facts| match facts.os {
            Some(OsKind::Macos | OsKind::Windows | OsKind::Other) => {
                Some(Err("its operating system is not Linux".to_owned()))
            }
            Some(OsKind::Linux) | None => None,
        };
        let linux = |facts: &Facts| (facts.os == Some(OsKind::Linux)).then_some(());
        if let Some(minimum) = self.min_linux_kernel {
            gathering.part(
                kind,
                Duration::ZERO,
                || "which kernel it runs".into(),
                |facts, _| {
                    not_linux(facts).or_else(|| {
                        let kernel = linux(facts).and(facts.kernel)?;
                        let wrong = || format!("its kernel is {kernel}, and must be {minimum} or newer");
                        Some(if kernel >= minimum { Ok(()) } else { Err(wrong()) })
                    })
                },
            );
        }
        if !self.distributions.is_empty() {
            let wanted = || self.distributions.iter().map(ToString::to_string).collect::<Vec<_>>().join(" or ");
            gathering.part(
                kind,
                Duration::ZERO,
                || "which distribution it is".into(),
                |facts, _| {
                    not_linux(facts).or_else(|| {
                        let found = linux(facts).and(facts.distribution.as_ref())?;
                        let good = self.distributions.iter().any(|wanted| found.is_at_least(wanted));
                        let wrong = || format!("its system is {found}, and must be {} or newer", wanted());
                        Some(if good { Ok(()) } else { Err(wrong()) })
                    })
                },
            );
        }
    }

    /// Lists the kinds of facts that this asks for.
    pub fn kinds(&self) -> BTreeSet<FactKind> {
        let asked = [
            (FactKind::DiskEncrypted, self.disk_encrypted.is_some()),
            (FactKind::Firewall, self.firewall.is_some()),
            (FactKind::ScreenLock, self.screen_lock.is_some()),
            (FactKind::SecureBoot, self.secure_boot.is_some()),
            (FactKind::Os, self.min_linux_kernel.is_some() || !self.distributions.is_empty()),
            (FactKind::SecurityUpdates, self.max_security_updates.is_some()),
            (FactKind::ManagedBy, self.managed_by.is_some()),
            (FactKind::Agents, !self.agents.is_empty()),
            (FactKind::Checks, !self.checks.is_empty()),
            (FactKind::Compliant, self.compliant.is_some()),
        ];
        asked.into_iter().filter_map(|(kind, asked)| asked.then_some(kind)).collect()
    }

    /// Tells whether a device has to report something for this.
    pub fn asks_the_device(&self) -> bool {
        self.kinds().difference(&self.attested).next().is_some()
    }

    /// Returns facts that meet exactly this requirement and say nothing else, by the device's word and by the management
    /// system's: for `[[test]]` and simulation.
    pub fn minimal_facts(&self) -> (Facts, Facts) {
        let (mut own, mut attested) = (Facts::default(), Facts::default());
        let mut of = |kind: FactKind, set: &dyn Fn(&mut Facts)| {
            set(if self.attested.contains(&kind) { &mut attested } else { &mut own });
        };
        of(FactKind::DiskEncrypted, &|facts| facts.disk_encrypted = self.disk_encrypted);
        of(FactKind::Firewall, &|facts| facts.firewall = self.firewall);
        of(FactKind::ScreenLock, &|facts| facts.screen_lock = self.screen_lock);
        of(FactKind::SecureBoot, &|facts| facts.secure_boot = self.secure_boot);
        if self.kinds().contains(&FactKind::Os) {
            of(FactKind::Os, &|facts| {
                facts.os = Some(OsKind::Linux);
                facts.kernel = self.min_linux_kernel;
                facts.distribution = self.distributions.first().cloned();
            });
        }
        of(FactKind::SecurityUpdates, &|facts| facts.security_updates = self.max_security_updates);
        of(FactKind::Compliant, &|facts| facts.compliant = self.compliant);
        of(FactKind::ManagedBy, &|facts| facts.managed_by.clone_from(&self.managed_by));
        of(FactKind::Agents, &|facts| facts.agents = self.agents.iter().map(|name| (name.clone(), true)).collect());
        let passed = CheckResult { passed: true, said: String::new(), age_s: 0 };
        of(FactKind::Checks, &|facts| {
            facts.checks = self.checks.iter().map(|name| (name.clone(), passed.clone())).collect();
        });
        (own, attested)
    }
}

#[cfg(test)]
mod tests;
