//! `[[events]]` in `controller.toml`: streams of security events that are received.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use postern_common::diagnostics::{Diagnostic, Diagnostics, HumanDuration};
use serde::Deserialize;
use toml::Spanned;

use super::memory::{LONGEST_AGE, MAX_STREAMS};
use crate::identity::oidc::http::is_safe;

/// The least silence that is an alarm, and the least and greatest age of a token.
const LEAST_SILENCE: Duration = Duration::from_secs(10);
const AGES: std::ops::RangeInclusive<Duration> = Duration::from_secs(60)..=LONGEST_AGE;
const LEAST_PAUSE: Duration = Duration::from_secs(1);

/// How events come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Delivery {
    /// The transmitter posts them (RFC 8935).
    Push,
    /// The controller fetches them (RFC 8936).
    Poll,
}

impl Delivery {
    /// Returns the word for people.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Push => "push",
            Self::Poll => "poll",
        }
    }
}

/// One stream, as the file says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventStream {
    /// What it is called here: in the endpoint, in logs and alerts.
    pub name: String,
    /// The transmitter: `iss` of its tokens.
    pub issuer: String,
    /// This receiver: `aud` of its tokens; the push endpoint's URL if absent.
    #[serde(default)]
    pub audience: Option<String>,
    /// How events come.
    pub delivery: Delivery,
    /// The provider of whose people it speaks; the `issuer` of `[oidc]` if that is the transmitter too.
    #[serde(default)]
    pub people_of: Option<String>,
    /// Whether it speaks of devices.
    #[serde(default)]
    pub devices: bool,
    /// Push: a file with the token that the transmitter shows.
    #[serde(default)]
    pub push_token_file: Option<PathBuf>,
    /// Poll: where.
    #[serde(default)]
    pub poll_url: Option<String>,
    /// A file with the token that is shown to the transmitter: at the poll, and when a verification is asked for.
    #[serde(default)]
    pub api_token_file: Option<PathBuf>,
    /// Poll: how long after an answer without events it is asked again, if it does not hold the question.
    #[serde(default = "default_poll_interval")]
    pub poll_interval: HumanDuration,
    /// Where its keys are; found by discovery if absent.
    #[serde(default)]
    pub jwks_url: Option<String>,
    /// PEM certificates that vouch for the transmitter, beside the system's roots.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The stream's name at the transmitter: a verification is asked for if it is there.
    #[serde(default)]
    pub stream_id: Option<String>,
    /// Where a verification is asked for, if that is not the `verification_endpoint` of the transmitter's metadata, or on another host
    /// than the issuer's and the poll's: the token of `api_token_file` is shown there.
    #[serde(default)]
    pub verification_url: Option<String>,
    /// After how long without an event there is an alert.
    #[serde(default = "default_silent_after")]
    pub silent_after: HumanDuration,
    /// For how long a token is taken after it was issued.
    #[serde(default = "default_max_age")]
    pub max_age: HumanDuration,
}

fn default_poll_interval() -> HumanDuration {
    HumanDuration::new(Duration::from_secs(10))
}
fn default_silent_after() -> HumanDuration {
    HumanDuration::new(Duration::from_secs(3_600))
}
fn default_max_age() -> HumanDuration {
    HumanDuration::new(Duration::from_secs(7 * 86_400))
}

/// A mistake: what is wrong, and what to do.
type Mistake = (String, String);

impl EventStream {
    /// Resolves paths, which are relative to the configuration file, and what is derived from the rest of it.
    pub(crate) fn resolved(self, base: &Path, own_url: &str, oidc_issuer: Option<&str>) -> Self {
        let place = |path: Option<PathBuf>| path.map(|path| base.join(path));
        let audience = self.audience.clone().or_else(|| Some(format!("{own_url}/events/{}", self.name)));
        let own_provider = oidc_issuer.filter(|issuer| *issuer == self.issuer).map(str::to_owned);
        Self {
            audience,
            people_of: self.people_of.clone().or(own_provider),
            push_token_file: place(self.push_token_file),
            api_token_file: place(self.api_token_file),
            ca_file: place(self.ca_file),
            ..self
        }
    }

    /// Lists what is wrong with it.
    fn mistakes(&self, own_url: &str, oidc_issuer: Option<&str>) -> Vec<Mistake> {
        let mut wrong: Vec<Mistake> = Vec::new();
        let mut say = |what: String, help: &str| wrong.push((what, help.to_owned()));
        let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if self.name.is_empty() || self.name.len() > 40 || !self.name.chars().all(good) {
            say("the name of a stream is part of a URL".into(), "use small letters, digits and `-`: name = \"corp\"");
        }
        if !is_safe(&self.issuer) {
            say("the issuer must begin with https://".into(), "write it as the `iss` of its tokens says");
        }
        for (key, url) in [("jwks_url", &self.jwks_url), ("poll_url", &self.poll_url)] {
            if url.as_ref().is_some_and(|url| !is_safe(url)) {
                say(format!("`{key}` must begin with https://"), "keys and events travel there");
            }
        }
        match self.people_of.as_deref() {
            None => match oidc_issuer {
                _ if self.devices => {}
                Some(issuer) if issuer == self.issuer => {}
                Some(issuer) => say(
                    "the stream speaks of nobody: the transmitter is not the provider at which people sign in".into(),
                    &format!(
                        "if it speaks of those people, write people_of = \"{issuer}\"; of devices: devices = true"
                    ),
                ),
                None => say(
                    "the stream speaks of nobody: there is no [oidc]".into(),
                    "only people of a provider are spoken of; for devices write devices = true",
                ),
            },
            Some(people) if people.trim_end_matches('/') == own_url.trim_end_matches('/') => say(
                "`people_of` is the controller's own URL, which names local accounts".into(),
                "nobody but administrators speaks of those: write the `issuer` of [oidc]",
            ),
            Some(people) if oidc_issuer != Some(people) => say(
                format!("nobody signs in at `{people}`"),
                "`people_of` is the `issuer` of [oidc], letter for letter",
            ),
            Some(_) => {}
        }
        match self.delivery {
            Delivery::Push if self.push_token_file.is_none() => say(
                "`delivery = \"push\"` needs `push_token_file`: the token that the transmitter shows".into(),
                "head -c 32 /dev/urandom | base64 > keys/events.token; chmod 600 keys/events.token",
            ),
            Delivery::Push if self.poll_url.is_some() => {
                say("`poll_url` with `delivery = \"push\"`".into(), "leave it out, or write delivery = \"poll\"");
            }
            Delivery::Poll if self.poll_url.is_none() => say(
                "`delivery = \"poll\"` needs `poll_url`".into(),
                "the transmitter names it as the `endpoint_url` of the stream's delivery",
            ),
            Delivery::Poll if self.push_token_file.is_some() => {
                say("`push_token_file` with `delivery = \"poll\"`".into(), "`api_token_file` is what the poll shows");
            }
            Delivery::Push | Delivery::Poll => {}
        }
        if self.stream_id.is_some() && self.api_token_file.is_none() {
            say(
                "`stream_id` needs `api_token_file`: a verification is asked for in the receiver's name".into(),
                "leave `stream_id` out, and the transmitter has to send verifications by itself",
            );
        }
        if let Some(url) = &self.verification_url {
            if !url::Url::parse(url).is_ok_and(|url| url.scheme() == "https" && url.host().is_some()) {
                say(
                    "`verification_url` must begin with https://".into(),
                    "the token of `api_token_file` is shown there",
                );
            }
            if self.stream_id.is_none() {
                say(
                    "`verification_url` needs `stream_id`: a verification is asked for by the stream's name".into(),
                    "write the name that the transmitter gave the stream, or leave `verification_url` out",
                );
            }
        }
        if self.silent_after.get() < LEAST_SILENCE {
            say(
                "`silent_after` is at least \"10s\"".into(),
                "with a transmitter that is asked, a few minutes are usual",
            );
        }
        if !AGES.contains(&self.max_age.get()) {
            say("`max_age` is \"1m\" to \"30d\"".into(), "as long as a transmitter keeps what it could not deliver");
        }
        if self.poll_interval.get() < LEAST_PAUSE {
            say(
                "`poll_interval` is at least \"1s\"".into(),
                "most transmitters hold a question until there is an answer",
            );
        }
        wrong
    }

    /// Lists the files with secrets.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &PathBuf> {
        self.push_token_file.iter().chain(&self.api_token_file)
    }
}

/// Says what is wrong with all of them, each with its place.
pub(crate) fn check_all(
    streams: &[Spanned<EventStream>],
    own_url: &str,
    oidc_issuer: Option<&str>,
    wrong: &mut Diagnostics,
) {
    for stream in streams {
        for (what, help) in stream.get_ref().mistakes(own_url, oidc_issuer) {
            wrong.push(Diagnostic::at(stream.span(), what).help(help));
        }
    }
    let all: Vec<EventStream> = streams.iter().map(|stream| stream.get_ref().clone()).collect();
    if let (Some((what, help)), Some(last)) = (mistakes_of_all(&all, own_url), streams.last()) {
        wrong.push(Diagnostic::at(last.span(), what).help(help));
    }
}

/// Says what is wrong with all of them together.
fn mistakes_of_all(streams: &[EventStream], own_url: &str) -> Option<Mistake> {
    let names: std::collections::BTreeSet<&str> = streams.iter().map(|stream| stream.name.as_str()).collect();
    if names.len() < streams.len() {
        return Some(("two [[events]] have one name".into(), "give each a name of its own".into()));
    }
    let audience = |stream: &EventStream| {
        stream.audience.clone().unwrap_or_else(|| format!("{}/events/{}", own_url.trim_end_matches('/'), stream.name))
    };
    let ends: std::collections::BTreeSet<_> = streams.iter().map(|stream| (&stream.issuer, audience(stream))).collect();
    if ends.len() < streams.len() {
        let what =
            "two [[events]] have one `issuer` and one `audience`: a token of one would be taken on the other too";
        return Some((what.into(), "leave `audience` out: it is the endpoint's URL then".into()));
    }
    let many = streams.len() > MAX_STREAMS;
    many.then(|| (format!("at most {MAX_STREAMS} [[events]]"), "one for each transmitter".into()))
}
