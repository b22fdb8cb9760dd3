//! `scim`: what the identity provider provisions, and the tokens with which it does.

use std::{process::ExitCode, time::Duration};

use clap::Subcommand;
use ipnet::IpNet;
use postern_common::{diagnostics::HumanDuration, time::WallTime};
use serde_json::Value;

use super::Desk;
use crate::{
    admin::{
        print::{self, text, time},
        request::Request,
        scim::ScimRequest,
    },
    serve::clock,
};

/// People and groups that the identity provider provisions (SCIM 2.0).
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Examples:\n  postern-controller scim token create --from 203.0.113.0/24\n  postern-controller scim status\n  postern-controller scim people --inactive"
)]
pub(super) enum Scim {
    /// Tokens with which the provider comes.
    #[command(subcommand)]
    Token(Token),
    /// How much is provisioned, and when the provider was last heard.
    #[command(after_help = "Example:\n  postern-controller scim status --json")]
    Status,
    /// List the people whom the provider has provisioned.
    #[command(after_help = "Example:\n  postern-controller scim people --inactive")]
    People {
        /// Only those who are deactivated.
        #[arg(long)]
        inactive: bool,
    },
    /// List the groups that the provider has provisioned.
    #[command(after_help = "Example:\n  postern-controller scim groups")]
    Groups,
}

/// Tokens with which the provider comes.
#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token for the provider of [oidc] and print it, once.
    #[command(
        after_help = "Example:\n  postern-controller scim token create --from 203.0.113.0/24 --from 198.51.100.7/32 --ttl 90d"
    )]
    Create {
        /// From where it may be used, such as 203.0.113.0/24; may be repeated. From anywhere unless given.
        #[arg(long = "from", value_name = "NETWORK")]
        networks: Vec<IpNet>,
        /// How long it works.
        #[arg(long, default_value = "180d", value_name = "DURATION")]
        ttl: HumanDuration,
    },
    /// List tokens, also those that have expired lately.
    #[command(after_help = "Example:\n  postern-controller scim token list")]
    List,
    /// Take a token back: the provider changes nothing any more with it.
    #[command(after_help = "Example:\n  postern-controller scim token revoke 3f9c01d2a4be")]
    Revoke {
        /// Its short name, as `scim token list` shows it.
        token: String,
    },
}

/// How long before its end a token is soon over.
const EXPIRES_SOON: Duration = Duration::from_secs(14 * 86_400);

fn about(request: ScimRequest) -> Request {
    Request::Scim { request }
}

fn when(value: &Value, now: WallTime) -> String {
    time(value).map_or_else(|| "never".into(), |at| print::clock_time(at, now))
}

fn networks_of(record: &Value) -> String {
    let networks: Vec<_> = record["networks"].as_array().into_iter().flatten().map(text).collect();
    if networks.is_empty() { "anywhere".into() } else { networks.join(" or ") }
}

impl Scim {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let now = clock::now().wall;
        match self {
            Self::Token(token) => token.run(desk),
            Self::Status => desk.ask_and(&about(ScimRequest::Status), |value| status(value, now)),
            Self::People { inactive } => desk.ask_and(&about(ScimRequest::People { inactive }), |value| {
                let rows = value.as_array().into_iter().flatten().map(|view| {
                    let state = if view["active"] == true { "active" } else { "deactivated" };
                    vec![
                        text(&view["user_name"]),
                        text(&view["external_id"]),
                        state.to_owned(),
                        text(&view["groups"]),
                        text(&view["subjects"]),
                    ]
                });
                let nobody = "Nobody is provisioned.";
                print::table(&["userName", "externalId", "", "groups", "signed in as"], rows.collect(), nobody);
            }),
            Self::Groups => desk.ask_and(&about(ScimRequest::Groups), |value| {
                let rows = value
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|group| vec![text(&group["name"]), text(&group["people"])]);
                print::table(&["group", "people"], rows.collect(), "No group is provisioned.");
            }),
        }
    }
}

fn status(value: &Value, now: WallTime) {
    let Some(issuer) = value["issuer"].as_str() else {
        println!("No provider provisions people here: there is no [oidc.scim] in controller.toml (docs/scim.md).");
        return;
    };
    let counts = &value["counts"];
    println!("{issuer}");
    for (what, is) in [
        (
            "people",
            format!(
                "{}, {} active; {} of these never signed in here",
                text(&counts["users"]),
                text(&counts["active"]),
                text(&value["unmatched"])
            ),
        ),
        ("groups", text(&counts["groups"])),
        ("taken away", text(&counts["gone"])),
        ("last heard", when(&value["last_heard"], now)),
        ("refused", format!("{} requests since the start", text(&value["refused"]))),
        ("token", token_state(time(&value["token_until"]), now)),
    ] {
        println!("{what:<12} {is}");
    }
}

/// Says until when the provider can come, and what to do before.
fn token_state(until: Option<WallTime>, now: WallTime) -> String {
    let Some(until) = until else {
        return "none that works: nobody is deactivated by SCIM. postern-controller scim token create".into();
    };
    let said = format!("until {}", print::clock_time(until, now));
    match until.since(now) < EXPIRES_SOON {
        true => {
            format!("{said}. SOON OVER: make another (postern-controller scim token create), enter it at the provider")
        }
        false => said,
    }
}

impl Token {
    fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let now = clock::now().wall;
        match self {
            Self::Create { networks, ttl } => {
                let request = about(ScimRequest::TokenCreate { networks, ttl_s: ttl.get().as_secs() });
                desk.ask_and(&request, |value| {
                    let record = &value["record"];
                    let facts = format!("until {}, from {}", when(&record["expires"], now), networks_of(record));
                    println!("{}   ({facts})", text(&value["token"]));
                    println!("For {}:", text(&record["issuer"]));
                    println!("At the provider, as base URL:  {}", text(&value["base_url"]));
                })
            }
            Self::List => desk.ask_and(&about(ScimRequest::TokenList), |value| {
                let rows = value.as_array().into_iter().flatten().map(|view| {
                    let record = &view["record"];
                    let over = time(&record["expires"]).is_some_and(|at| at <= now);
                    let expires = when(&record["expires"], now);
                    vec![
                        text(&view["short"]),
                        text(&record["issuer"]),
                        networks_of(record),
                        if over { format!("expired {expires}") } else { expires },
                        text(&record["created_by"]),
                    ]
                });
                let none = "No token: postern-controller scim token create";
                print::table(&["token", "provider", "from", "expires", "by"], rows.collect(), none);
            }),
            Self::Revoke { token } => desk.ask_and(&about(ScimRequest::TokenRevoke { token }), |value| {
                print::done(&format!("token {} works no longer", text(&value["token"])));
            }),
        }
    }
}
