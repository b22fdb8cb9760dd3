//! `token`, `device`, `session`, `lease`, `approve`, `refuse`.

use std::{collections::BTreeSet, process::ExitCode};

use clap::{Args, Subcommand};
use ipnet::IpNet;
use postern_common::{
    diagnostics::HumanDuration,
    id::{MachineName, ServiceName, Tag},
    time::WallTime,
};
use serde_json::Value;

use super::{Desk, revoke};
use crate::{
    admin::{
        print::{self, text, time},
        request::Request,
    },
    serve::clock,
};

fn parse_tag(text: &str) -> Result<Tag, String> {
    text.strip_prefix("tag:").unwrap_or(text).parse().map_err(|error: postern_common::id::IdError| error.to_string())
}

fn parse_service(text: &str) -> Result<ServiceName, String> {
    let name = text.strip_prefix("service:").unwrap_or(text);
    name.parse().map_err(|error: postern_common::id::IdError| error.to_string())
}

/// Says by what a login session was proven, and whether that counts.
fn proof(view: &Value, now: WallTime) -> String {
    let methods = text(&view["record"]["assurance"]["amr"]);
    match time(&view["challenged_at"]) {
        Some(at) => format!("{methods}, counts no more since {}", print::clock_time(at, now)),
        None => methods,
    }
}

fn when(value: &Value, now: WallTime) -> String {
    time(value).map_or_else(|| "-".into(), |at| print::clock_time(at, now))
}

/// Enrolment tokens, with which servers join.
#[derive(Debug, Subcommand)]
pub(super) enum Token {
    /// Make a token and print it, once.
    #[command(
        after_help = "Examples:\n  postern-controller token create --tag payroll --ttl 1h\n  postern-controller token create --tag web --service shop --ttl 1d --uses 3"
    )]
    Create {
        /// A tag that the token approves; may be repeated.
        #[arg(long = "tag", value_name = "TAG", value_parser = parse_tag)]
        tags: Vec<Tag>,
        /// The service identity that machines get; each gets a private one of its own unless given.
        #[arg(long, value_name = "NAME", value_parser = parse_service)]
        service: Option<ServiceName>,
        /// The machine name that the token is for: no other name can use it.
        #[arg(long, value_name = "NAME")]
        machine: Option<MachineName>,
        /// From where machines may use it, such as 10.0.0.0/8; may be repeated. From anywhere unless given.
        #[arg(long = "from", value_name = "NETWORK")]
        networks: Vec<IpNet>,
        /// How long it works.
        #[arg(long, default_value = "1h", value_name = "DURATION")]
        ttl: HumanDuration,
        /// How many machines may use it.
        #[arg(long, default_value_t = 1, value_name = "N")]
        uses: u32,
    },
    /// List tokens that still work.
    #[command(after_help = "Example:\n  postern-controller token list")]
    List,
    /// Take a token back. Machines that have used it stay.
    #[command(after_help = "Example:\n  postern-controller token revoke 3f9c01d2a4be")]
    Revoke {
        /// Its short name, as `token list` shows it.
        token: String,
    },
}

fn tags_of(record: &Value) -> String {
    let tags = record["tags"].as_array();
    tags.into_iter().flatten().map(|tag| format!("tag:{}", text(tag))).collect::<Vec<_>>().join(", ")
}

impl Token {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let now = clock::now().wall;
        match self {
            Self::Create { tags, service, machine, networks, ttl, uses } => {
                let request = Request::TokenCreate {
                    tags: tags.into_iter().collect(),
                    service,
                    machine,
                    networks,
                    uses,
                    ttl_s: ttl.get().as_secs(),
                };
                desk.ask_and(&request, |value| {
                    let record = &value["view"]["record"];
                    let uses = match record["uses_left"].as_u64() {
                        Some(1) | None => "once".to_owned(),
                        Some(uses) => format!("{uses} times"),
                    };
                    let mut facts = vec![uses, format!("expires {}", when(&record["expires"], now))];
                    let tags = tags_of(record);
                    if !tags.is_empty() {
                        facts.push(format!("for {tags}"));
                    }
                    if let Some(service) = record["service"].as_str() {
                        facts.push(format!("as service:{service}"));
                    }
                    let networks: Vec<_> = record["networks"].as_array().into_iter().flatten().map(text).collect();
                    if !networks.is_empty() {
                        facts.push(format!("from {}", networks.join(" or ")));
                    }
                    println!("{}   ({})", text(&value["token"]), facts.join(", "));
                    println!("On the server:  postern up {} --token-file /run/token", text(&value["join_url"]));
                })
            }
            Self::List => desk.ask_and(&Request::TokenList, |value| {
                let rows = value.as_array().into_iter().flatten().map(|view| {
                    let record = &view["record"];
                    vec![
                        text(&view["short"]),
                        tags_of(record),
                        text(&record["service"]),
                        text(&record["uses_left"]),
                        when(&record["expires"], now),
                        text(&record["created_by"]),
                    ]
                });
                print::table(
                    &["token", "tags", "service", "uses", "expires", "by"],
                    rows.collect(),
                    "No token works now.",
                );
            }),
            Self::Revoke { token } => desk.ask_and(&Request::TokenRevoke { token }, |value| {
                print::done(&format!("token {} works no longer", text(&value["token"])));
            }),
        }
    }
}

/// Machines.
#[derive(Debug, Subcommand)]
pub(super) enum Device {
    /// List machines.
    #[command(after_help = "Example:\n  postern-controller device list")]
    List,
    /// Show everything about one machine.
    #[command(after_help = "Example:\n  postern-controller device show payroll-1")]
    Show {
        /// Its name or identifier.
        device: String,
    },
    /// Remove a machine: its key is forgotten, its flows are cut, it has to join again.
    #[command(after_help = "Example:\n  postern-controller device remove old-laptop")]
    Remove {
        /// Its name or identifier.
        device: String,
    },
    /// Give a machine another name, which then may stand for a resource.
    #[command(after_help = "Example:\n  postern-controller device rename debian payroll-1")]
    Rename {
        /// Its name or identifier.
        device: String,
        /// The new name.
        name: MachineName,
    },
}

/// Tells how a machine stands, in a few words.
pub(super) fn standing(view: &Value, now: WallTime) -> String {
    let record = &view["record"];
    if record["standing"]["kind"] == "revoked" {
        return format!("revoked: {}", text(&record["standing"]["reason"]));
    }
    if let Some(reason) = view["quarantine"].as_str() {
        return format!("in quarantine: {reason}");
    }
    let mut words = vec![presence(view, now)];
    words.extend(view["restraints"].as_array().into_iter().flatten().map(text));
    words.join("; ")
}

/// Tells whether a machine is connected, and how far it is.
fn presence(view: &Value, now: WallTime) -> String {
    let record = &view["record"];
    if record["kind"] == "stock_client" {
        return "stock WireGuard client".into();
    }
    let stream = &view["stream"];
    if stream.is_null() {
        let seen = time(&record["last_seen"]).map_or_else(|| "never".into(), |at| print::ago(at, now));
        return format!("away, last seen {seen}");
    }
    let generation = |position: &Value| text(&position["generation"]);
    if stream["current"].as_bool() == Some(true) {
        format!("connected, enforcing {} (current)", generation(&stream["enforcing"]))
    } else {
        format!("connected, enforcing {} of {}", generation(&stream["enforcing"]), generation(&stream["sent"]))
    }
}

/// Returns what the list says of each machine's state, for tests of what it is made from.
#[cfg(test)]
pub(crate) fn standings(views: &[crate::stream::DeviceView]) -> Vec<String> {
    let now = crate::serve::clock::now().wall;
    views.iter().map(|view| standing(&serde_json::to_value(view).expect("a view has a JSON form"), now)).collect()
}

/// Lists machines as rows.
pub(super) fn device_rows(views: &Value, now: WallTime) -> Vec<Vec<String>> {
    let row = |view: &Value| {
        let record = &view["record"];
        let mut tags = tags_of(record);
        let waiting = text(&record["tags_pending"]);
        if waiting != "-" {
            tags = format!("{tags} (waits: {waiting})").trim_start().to_owned();
        }
        let addresses = [&record["addresses"]["v6"], &record["addresses"]["v4"]].map(text).join(" ");
        vec![text(&record["name"]), text(&view["owner_name"]), tags, addresses, standing(view, now)]
    };
    views.as_array().into_iter().flatten().map(row).collect()
}

/// Shows one machine in lines.
fn show(view: &Value, now: WallTime) {
    let record = &view["record"];
    let mut tags = tags_of(record);
    if tags.is_empty() {
        tags.push('-');
    }
    for (what, is) in [
        ("machine", text(&record["name"])),
        ("identifier", text(&record["id"])),
        ("device key", text(&record["key"])),
        ("of", text(&view["owner_name"])),
        ("tags", tags),
        ("tags waiting", text(&record["tags_pending"])),
        ("addresses", [&record["addresses"]["v6"], &record["addresses"]["v4"]].map(text).join(" ")),
        ("last address", text(&record["last_address"])),
        ("version", text(&record["version"])),
        ("enrolled", when(&record["created"], now)),
        ("state", standing(view, now)),
        ("session until", when(&view["session"]["expires"], now)),
    ] {
        println!("{what:<14} {is}");
    }
    for line in super::posture::lines(&view["posture"], now) {
        println!("{line}");
    }
}

impl Device {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let now = clock::now().wall;
        match self {
            Self::List => desk.ask_and(&Request::DeviceList, |value| {
                print::table(
                    &["machine", "of", "tags", "addresses", ""],
                    device_rows(value, now),
                    "No machine has joined yet: postern-controller token create --tag TAG",
                );
            }),
            Self::Show { device } => desk.ask_and(&Request::DeviceShow { device }, |view| show(view, now)),
            Self::Remove { device } => {
                let value = desk.ask(&Request::DeviceRemove { device, wait_ms: 10_000 })?;
                desk.show(&value, |value| revoke::progress(value, "revoked"));
                Ok(revoke::verdict(&value))
            }
            Self::Rename { device, name } => {
                let said = format!("{device} is called {name} now");
                desk.ask_and(&Request::DeviceRename { device, name }, |_| print::done(&said))
            }
        }
    }
}

/// Login sessions.
#[derive(Debug, Subcommand)]
pub(super) enum Session {
    /// List open login sessions, newest first.
    #[command(after_help = "Example:\n  postern-controller session list")]
    List,
}

impl Session {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let now = clock::now().wall;
        match self {
            Self::List => desk.ask_and(&Request::SessionList, |value| {
                let rows = value.as_array().into_iter().flatten().map(|view| {
                    let record = &view["record"];
                    vec![
                        format!("{}/{}", text(&view["subject_name"]), text(&view["machine"])),
                        text(&record["from"]),
                        when(&record["started"], now),
                        when(&record["expires"], now),
                        proof(view, now),
                    ]
                });
                print::table(
                    &["session", "from", "since", "until", "proof"],
                    rows.collect(),
                    "Nobody is signed in on a machine.",
                );
            }),
        }
    }
}

/// Leases: what each session and service may reach now.
#[derive(Debug, Subcommand)]
pub(super) enum Lease {
    /// List live leases and what they open.
    #[command(after_help = "Example:\n  postern-controller lease list")]
    List,
}

impl Lease {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let now = clock::now().wall;
        match self {
            Self::List => desk.ask_and(&Request::LeaseList, |value| {
                let mut rows = Vec::new();
                for view in value.as_array().into_iter().flatten() {
                    let who = format!("{} on {}", text(&view["subject_name"]), text(&view["machine"]));
                    let empty = Vec::new();
                    let access = view["access"].as_array().unwrap_or(&empty);
                    if access.is_empty() {
                        rows.push(vec![
                            who.clone(),
                            "nothing".into(),
                            String::new(),
                            when(&view["record"]["until"], now),
                            String::new(),
                        ]);
                    }
                    for access in access {
                        let monitored = access["would_deny"].as_str().map(|why| format!(" (only watched: {why})"));
                        rows.push(vec![
                            who.clone(),
                            format!("{} {}", text(&access["resource"]), text(&access["services"])),
                            text(&access["nodes"]),
                            when(&access["until"], now),
                            format!("{}{}", text(&access["rule"]), monitored.unwrap_or_default()),
                        ]);
                    }
                }
                print::table(&["who", "may reach", "at", "until", "by rule"], rows, "No lease is live.");
            }),
        }
    }
}

/// Tags (or the name) that a machine claims.
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  postern-controller approve payroll-1 tag:payroll\n  postern-controller refuse laptop-7 tag:payroll\n  postern-controller approve payroll-1 --name"
)]
pub(super) struct Claims {
    /// The machine's name or identifier.
    device: String,
    /// Tags.
    #[arg(value_parser = parse_tag, required_unless_present = "name")]
    tags: Vec<Tag>,
    /// The machine's name too: whether it may stand for a resource.
    #[arg(long)]
    name: bool,
}

impl Claims {
    fn said(&self, what: &str) -> String {
        let mut claims: Vec<_> = self.tags.iter().map(|tag| format!("tag:{tag}")).collect();
        if self.name {
            claims.push("its name".into());
        }
        format!("{}: {} {what}", self.device, claims.join(", "))
    }

    pub(super) fn approve(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let said = self.said("counts from now on");
        let tags: BTreeSet<_> = self.tags.into_iter().collect();
        desk.ask_and(&Request::Approve { device: self.device, tags, name: self.name }, |_| print::done(&said))
    }

    pub(super) fn refuse(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let said = self.said("does not count");
        let tags: BTreeSet<_> = self.tags.into_iter().collect();
        desk.ask_and(&Request::Refuse { device: self.device, tags, name: self.name }, |_| print::done(&said))
    }
}
