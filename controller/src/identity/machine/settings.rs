//! `[[machine_issuer]]` of `controller.toml`: whose tokens are taken, and which service a token stands for.
//!
//! What is refused here would work, and would one day let somebody else in: names that a platform gives to another owner once
//! the first is gone (a repository's name, a service account's), audiences that tokens have for other purposes too.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

use postern_common::{
    diagnostics::{Diagnostic, Diagnostics, HumanDuration},
    id::{MachineName, ServiceName, Tag},
};
use serde::{Deserialize, Deserializer};
use toml::Spanned;

use crate::identity::oidc::{accepted, http};

/// The longest life of a token that may be taken, and the shortest bound on it that makes sense.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3_600);
const MIN_LIFETIME: Duration = Duration::from_secs(10);

/// What a platform's tokens look like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Platform {
    /// Projected service account tokens.
    Kubernetes,
    /// GitHub Actions.
    Github,
    /// Any other issuer of OpenID Connect tokens.
    Other,
}

/// One issuer, as the file says it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    name: Spanned<String>,
    platform: Spanned<Platform>,
    issuer: Spanned<String>,
    audience: Spanned<String>,
    #[serde(default)]
    keys_file: Option<PathBuf>,
    #[serde(default)]
    ca_file: Option<PathBuf>,
    #[serde(default = "all_algorithms")]
    algorithms: Spanned<Vec<String>>,
    #[serde(default = "an_hour")]
    max_lifetime: Spanned<HumanDuration>,
    #[serde(default = "an_hour")]
    forget_after: Spanned<HumanDuration>,
    #[serde(rename = "match")]
    matches: Vec<Spanned<WrittenMatch>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenMatch {
    service: ServiceName,
    #[serde(default)]
    tags: Vec<TagWord>,
    #[serde(default)]
    machine: Option<MachineName>,
    claims: BTreeMap<String, AnyOf>,
}

/// A tag, written `tag:payroll` or `payroll`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct TagWord(Tag);

impl<'de> Deserialize<'de> for TagWord {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.strip_prefix("tag:").unwrap_or(&text).parse().map(Self).map_err(serde::de::Error::custom)
    }
}

/// One text, or several of which any will do.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged, expecting = "a text, or a list of texts of which any will do")]
enum AnyOf {
    One(String),
    Several(Vec<String>),
}

fn an_hour() -> Spanned<HumanDuration> {
    Spanned::new(0..0, HumanDuration::new(Duration::from_secs(3_600)))
}

fn all_algorithms() -> Spanned<Vec<String>> {
    Spanned::new(0..0, vec![])
}

/// One issuer whose tokens are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineIssuer {
    /// What it is called here and in the audit log.
    pub name: String,
    /// What its tokens look like.
    pub platform: Platform,
    /// The issuer, as tokens name it.
    pub issuer: String,
    /// The audience that tokens for this controller have.
    pub audience: String,
    /// A file with its keys; found by discovery if absent.
    pub keys_file: Option<PathBuf>,
    /// PEM certificates that vouch for it, beside the system's roots.
    pub ca_file: Option<PathBuf>,
    /// Signature algorithms that are taken; every asymmetric one that is known if empty.
    pub algorithms: Vec<String>,
    /// The longest life of a token.
    pub max_lifetime: Duration,
    /// After how long without a stream a machine is forgotten.
    pub forget_after: Duration,
    /// Which service a token stands for; the first that fits counts.
    pub matches: Vec<Match>,
}

/// What a token has to say, and what that makes of its machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Match {
    /// The service identity.
    pub service: ServiceName,
    /// Tags that it approves.
    pub tags: BTreeSet<Tag>,
    /// The machine name that it approves; the machine's own wish, unapproved, if absent.
    pub machine: Option<MachineName>,
    /// Claims by their paths, each with the texts of which it has to be one.
    pub claims: BTreeMap<String, Vec<String>>,
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kubernetes => "Kubernetes",
            Self::Github => "GitHub Actions",
            Self::Other => "the platform",
        })
    }
}

/// The issuer of GitHub Actions.
const GITHUB: &str = "https://token.actions.githubusercontent.com";
/// Audiences that tokens have when nobody asked for one, or that other services ask for: whoever gets such a token could pass it
/// on to us.
const FOREIGN_AUDIENCES: [&str; 6] = [
    "https://kubernetes.default.svc",
    "https://kubernetes.default.svc.cluster.local",
    "kubernetes",
    "sts.amazonaws.com",
    "api://azureadtokenexchange",
    "sigstore",
];
/// Claims that are names for people, or can be given to somebody else.
const NAMES: [&str; 17] = [
    "email",
    "name",
    "preferred_username",
    "upn",
    "unique_name",
    "actor",
    "repository",
    "repository_owner",
    "groups",
    "username",
    "user_login",
    "user_email",
    "project_path",
    "namespace_path",
    "path",
    "ref",
    "namespace",
];
/// What `sub` begins with where a platform composes it of names.
const COMPOSED: [&str; 4] = ["system:serviceaccount:", "repo:", "project_path:", "organization:"];

/// Reads the issuers of a file; every mistake is noted. `people` is the provider of people: issuer and client.
pub(crate) fn check(
    written: &[Spanned<Written>],
    people: Option<(&str, &str)>,
    base: &Path,
    wrong: &mut Diagnostics,
) -> Vec<MachineIssuer> {
    let mut read: Vec<MachineIssuer> = Vec::new();
    for section in written {
        let of = section.get_ref();
        let (name, issuer, audience) = (of.name.get_ref(), of.issuer.get_ref(), of.audience.get_ref());
        let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
        if name.is_empty() || name.len() > 40 || !name.chars().all(plain) {
            wrong.push(
                Diagnostic::at(of.name.span(), format!("`{name}` is not a name"))
                    .help("use small letters, digits and `-`: \"prod-cluster\""),
            );
        }
        if read.iter().any(|other| other.name == *name) {
            wrong.push(Diagnostic::at(of.name.span(), format!("there are two issuers named `{name}`")));
        }
        check_issuer(of, wrong);
        check_audience(of, wrong);
        if read.iter().any(|other| other.issuer == *issuer && other.audience == *audience) {
            wrong.push(Diagnostic::at(of.audience.span(), "another section has this issuer and this audience").help(
                "clusters that call themselves the same need an audience each: \"https://ctl.corp.example/CLUSTER\"",
            ));
        }
        if people == Some((issuer.as_str(), audience.as_str())) {
            wrong.push(
                Diagnostic::at(of.audience.span(), "people's sign-ins have this issuer and this audience")
                    .help("a person's token would stand for a service: give services an audience of their own"),
            );
        }
        for algorithm in of.algorithms.get_ref() {
            if accepted(algorithm).is_none() {
                wrong.push(
                    Diagnostic::at(of.algorithms.span(), format!("`{algorithm}` is not an algorithm that is taken"))
                        .help("use RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 or EdDSA"),
                );
            }
        }
        let life = of.max_lifetime.get_ref().get();
        if !(MIN_LIFETIME..=MAX_LIFETIME).contains(&life) {
            wrong.push(
                Diagnostic::at(of.max_lifetime.span(), "`max_lifetime` is from \"10s\" to \"24h\"")
                    .help("a machine keeps its access until its token ends: an hour is what platforms give"),
            );
        }
        if of.forget_after.get_ref().get() < Duration::from_secs(60) {
            wrong.push(Diagnostic::at(of.forget_after.span(), "`forget_after` is at least \"1m\""));
        }
        if of.matches.is_empty() {
            wrong.push(Diagnostic::at(section.span(), "this issuer has no [[machine_issuer.match]]"));
        }
        let matches = of.matches.iter().map(|found| check_match(found, *of.platform.get_ref(), wrong)).collect();
        read.push(MachineIssuer {
            name: name.clone(),
            platform: *of.platform.get_ref(),
            issuer: issuer.clone(),
            audience: audience.clone(),
            keys_file: of.keys_file.as_ref().map(|path| base.join(path)),
            ca_file: of.ca_file.as_ref().map(|path| base.join(path)),
            algorithms: of.algorithms.get_ref().clone(),
            max_lifetime: life,
            forget_after: of.forget_after.get_ref().get(),
            matches,
        });
    }
    read
}

fn check_issuer(of: &Written, wrong: &mut Diagnostics) {
    let issuer = of.issuer.get_ref();
    // With its keys in a file nobody is asked, and the name is only compared: clusters have names of many kinds.
    if of.keys_file.is_none() && !http::is_safe(issuer) {
        wrong.push(
            Diagnostic::at(of.issuer.span(), "the issuer is not an https:// URL: its keys cannot be asked for safely")
                .help("give its keys by `keys_file`: kubectl get --raw /openid/v1/jwks > cluster.jwks"),
        );
    }
    if issuer.is_empty() {
        wrong.push(Diagnostic::at(of.issuer.span(), "the issuer is empty"));
    }
    match (of.platform.get_ref(), issuer.trim_end_matches('/') == GITHUB || issuer.starts_with(&format!("{GITHUB}/"))) {
        (Platform::Github, _) | (Platform::Kubernetes | Platform::Other, false) => {}
        (Platform::Kubernetes | Platform::Other, true) => wrong.push(
            Diagnostic::at(of.platform.span(), "this is the issuer of GitHub Actions").help("platform = \"github\""),
        ),
    }
}

fn check_audience(of: &Written, wrong: &mut Diagnostics) {
    let audience = of.audience.get_ref();
    let plain = audience.trim_end_matches('/').to_lowercase();
    let of_platform = FOREIGN_AUDIENCES.contains(&plain.as_str())
        || plain == of.issuer.get_ref().trim_end_matches('/').to_lowercase()
        || plain.strip_prefix("https://github.com/").is_some();
    if plain.is_empty() {
        wrong.push(
            Diagnostic::at(of.audience.span(), "the audience is empty")
                .help("write the controller's URL: only tokens that were asked for to be used here have it"),
        );
    } else if of_platform {
        wrong.push(
            Diagnostic::at(of.audience.span(), format!("`{audience}` is an audience that tokens have for other purposes too"))
                .help("whoever is given such a token could sign in here with it: write the controller's URL, and ask the platform for that"),
        );
    }
}

fn check_match(found: &Spanned<WrittenMatch>, platform: Platform, wrong: &mut Diagnostics) -> Match {
    let of = found.get_ref();
    let mut claims = BTreeMap::new();
    for (path, any_of) in &of.claims {
        let texts = match any_of {
            AnyOf::One(text) => vec![text.clone()],
            AnyOf::Several(texts) => texts.clone(),
        };
        if texts.is_empty() || texts.iter().any(|text| text.is_empty() || text.len() > 1_024) {
            wrong.push(Diagnostic::at(found.span(), format!("claim `{path}` has to be something")));
        }
        if let Some(pattern) = texts.iter().find(|text| text.contains('*')) {
            wrong.push(
                Diagnostic::at(found.span(), format!("`{pattern}`: claims are compared as they are, without `*`"))
                    .help("write a list of every text that may be: [\"refs/heads/main\", \"refs/heads/next\"]"),
            );
        }
        if matches!(path.as_str(), "iss" | "aud" | "exp" | "iat" | "nbf" | "jti") {
            wrong.push(
                Diagnostic::at(found.span(), format!("`{path}` says nothing about who it is"))
                    .help("issuer, audience and times are always checked; match what names the workload"),
            );
        }
        claims.insert(path.clone(), texts);
    }
    if let Some((what, help)) = missing(platform, &claims) {
        wrong.push(Diagnostic::at(found.span(), what).help(help));
    }
    Match {
        service: of.service.clone(),
        tags: of.tags.iter().map(|tag| tag.0.clone()).collect(),
        machine: of.machine.clone(),
        claims,
    }
}

/// Tells what a match lacks to mean one workload for good.
fn missing(platform: Platform, claims: &BTreeMap<String, Vec<String>>) -> Option<(String, String)> {
    let has = |path: &str| claims.contains_key(path);
    let say = |what: &str, help: &str| Some((what.to_owned(), help.to_owned()));
    match platform {
        Platform::Kubernetes if !has("kubernetes.io.serviceaccount.uid") => say(
            "this goes by names: who may make a service account of that name gets this identity",
            "add claims.\"kubernetes.io.serviceaccount.uid\", which is never given again: kubectl get serviceaccount NAME -n NAMESPACE -o jsonpath={.metadata.uid}",
        ),
        Platform::Github if !has("repository_id") => say(
            "this goes by names: a repository that is deleted or renamed leaves its name to somebody else",
            "add claims.repository_id, which is never given again: gh api repos/OWNER/NAME --jq .id",
        ),
        Platform::Github if !["environment", "ref", "job_workflow_ref"].into_iter().any(has) => say(
            "every workflow on every branch of the repository would have this identity, those of pull requests too",
            "add claims.environment (with protection rules), claims.ref or claims.job_workflow_ref",
        ),
        Platform::Other if claims.is_empty() => {
            say("every token of this issuer would have this identity", "name the workload: claims.sub = \"...\"")
        }
        Platform::Other if claims.iter().all(|(path, texts)| is_name(path, texts)) => say(
            "this goes by names that the issuer can give to somebody else",
            "add claims.sub where it is no composed name (OpenID Connect Core §2: never given again), or another stable identifier, like project_id",
        ),
        Platform::Kubernetes | Platform::Github | Platform::Other => None,
    }
}

/// Tells whether a claim is a name that somebody else can get, by the last part of its path, or by what is expected there.
fn is_name(path: &str, texts: &[String]) -> bool {
    let last = path.rsplit('.').next().unwrap_or(path);
    let composed = |text: &String| COMPOSED.iter().any(|start| text.starts_with(start));
    NAMES.contains(&last) || (path == "sub" && texts.iter().any(composed))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    struct File {
        machine_issuer: Vec<Spanned<Written>>,
    }

    const CLUSTER: &str = r#"
[[machine_issuer]]
name = "prod"
platform = "kubernetes"
issuer = "https://kubernetes.default.svc.cluster.local"
audience = "https://ctl.corp.example/prod"
keys_file = "prod.jwks"

[[machine_issuer.match]]
service = "billing"
tags = ["billing", "tag:pod"]
claims."kubernetes.io.namespace" = "pay"
claims."kubernetes.io.serviceaccount.uid" = "8f2c"

[[machine_issuer]]
name = "github"
platform = "github"
issuer = "https://token.actions.githubusercontent.com"
audience = "https://ctl.corp.example"

[[machine_issuer.match]]
service = "deploy"
machine = "deployer"
claims = { repository_id = "74", repository_owner_id = "9", ref = ["refs/heads/main", "refs/heads/next"] }

[[machine_issuer]]
name = "cloud"
platform = "other"
issuer = "https://accounts.cloud.example"
audience = "https://ctl.corp.example"
algorithms = ["ES256"]
max_lifetime = "2h"

[[machine_issuer.match]]
service = "report"
claims.sub = "113"
"#;

    fn read(text: &str) -> Result<Vec<MachineIssuer>, String> {
        let file: File =
            postern_common::diagnostics::from_toml("controller.toml", text).map_err(|error| error.to_string())?;
        let mut wrong = Diagnostics::new("controller.toml", text);
        let people = Some(("https://accounts.cloud.example", "postern"));
        let read = check(&file.machine_issuer, people, Path::new("/etc/p"), &mut wrong);
        wrong.into_result(read).map_err(|error| error.to_string())
    }

    #[test]
    fn issuers_are_read() {
        let all = read(CLUSTER).map_err(|error| println!("{error}")).expect("good");
        assert_eq!(all[0].keys_file.as_deref(), Some(Path::new("/etc/p/prod.jwks")));
        assert_eq!(all[0].matches[0].tags.len(), 2);
        assert_eq!(all[1].matches[0].claims["ref"].len(), 2);
        assert_eq!(all[1].matches[0].machine.as_ref().map(MachineName::as_str), Some("deployer"));
        assert_eq!(all[2].max_lifetime, Duration::from_secs(7_200));
    }

    #[test]
    fn what_the_guide_says_of_issuers_is_good() {
        let guide = include_str!("../../../../docs/machines.md");
        let blocks = guide.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
        let issuers: Vec<_> = blocks.filter(|block| block.starts_with("[[machine_issuer]]")).collect();
        assert_eq!(issuers.len(), 3);
        for block in issuers {
            read(block).map_err(|error| println!("{error}")).expect("the guide's example is good");
        }
    }

    #[test]
    fn what_would_let_somebody_else_in_one_day_is_refused_with_the_way_out() {
        for (from, to, expected) in [
            ("claims.\"kubernetes.io.serviceaccount.uid\" = \"8f2c\"", "", "metadata.uid"),
            (
                "claims.\"kubernetes.io.serviceaccount.uid\" = \"8f2c\"",
                "claims.sub = \"system:serviceaccount:pay:billing\"",
                "goes by names",
            ),
            ("repository_id = \"74\", ", "", "gh api repos"),
            ("repository_id = \"74\"", "repository = \"corp/app\"", "goes by names"),
            (", ref = [\"refs/heads/main\", \"refs/heads/next\"]", "", "pull requests"),
            ("\"refs/heads/next\"", "\"refs/heads/*\"", "without `*`"),
            ("claims.sub = \"113\"", "claims.email = \"a@b\"", "claims.sub"),
            ("claims.sub = \"113\"", "claims = {}", "every token"),
            ("claims.sub = \"113\"", "claims.sub = \"system:serviceaccount:pay:billing\"", "somebody else"),
            ("claims.sub = \"113\"", "claims.sub = \"repo:corp/app:environment:production\"", "somebody else"),
            (
                "claims.sub = \"113\"",
                "claims.sub = [\"113\", \"project_path:corp/app:ref_type:branch:ref:main\"]",
                "project_id",
            ),
            ("claims.sub = \"113\"", "claims = { project_path = \"corp/app\", ref = \"main\" }", "somebody else"),
            ("claims.sub = \"113\"", "claims.\"x.email\" = \"a@b\"", "somebody else"),
            (
                "https://accounts.cloud.example",
                "https://token.actions.githubusercontent.com/corp",
                "platform = \"github\"",
            ),
            ("claims.sub = \"113\"", "claims.sub = []", "has to be something"),
            ("claims.sub = \"113\"", "claims.sub = 113", "a list of texts"),
            ("claims.sub = \"113\"", "claims.sub = \"113\"\nclaims.iss = \"x\"", "says nothing"),
            ("audience = \"https://ctl.corp.example/prod\"\n", "", "audience"),
            ("\"https://ctl.corp.example/prod\"", "\"\"", "the controller's URL"),
            ("\"https://ctl.corp.example/prod\"", "\"https://kubernetes.default.svc\"", "other purposes"),
            ("\"https://ctl.corp.example/prod\"", "\"https://github.com/corp\"", "other purposes"),
            ("\"https://ctl.corp.example/prod\"", "\"https://kubernetes.default.svc.cluster.local\"", "other purposes"),
            ("keys_file = \"prod.jwks\"", "issuer_key = \"x\"", "issuer_key"),
            ("issuer = \"https://accounts", "issuer = \"http://accounts", "keys_file"),
            ("name = \"cloud\"", "name = \"prod\"", "two issuers"),
            ("name = \"cloud\"", "name = \"The cloud\"", "small letters"),
            ("[\"ES256\"]", "[\"HS256\"]", "RS256"),
            ("[\"ES256\"]", "[\"none\"]", "RS256"),
            ("\"2h\"", "\"30d\"", "24h"),
            ("platform = \"github\"", "platform = \"other\"", "platform = \"github\""),
            ("platform = \"github\"", "platform = \"gitlab\"", "github"),
            (
                "[[machine_issuer.match]]\nservice = \"report\"\nclaims.sub = \"113\"",
                "match = []",
                "no [[machine_issuer.match]]",
            ),
        ] {
            assert!(CLUSTER.contains(from), "{from}");
            let error = read(&CLUSTER.replacen(from, to, 1)).expect_err(to);
            assert!(error.contains(expected) && error.contains("controller.toml"), "{to}: {error}");
        }
        let shared = CLUSTER.replacen("\"https://ctl.corp.example\"\nalgorithms", "\"postern\"\nalgorithms", 1);
        assert!(read(&shared).expect_err("shared with people").contains("a person's token"));
        let twice =
            CLUSTER.replacen("https://accounts.cloud.example", GITHUB, 1).replacen("\"other\"", "\"github\"", 1);
        assert!(read(&twice).expect_err("twice").contains("audience each"));
    }
}
