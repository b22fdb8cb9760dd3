//! `user`, `group`.

use std::{collections::BTreeSet, io::Read, path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Subcommand};
use postern_common::diagnostics::HumanDuration;
use serde_json::Value;

use super::Desk;
use crate::{
    admin::{
        print::{self, text},
        request::Request,
    },
    serve::clock,
};

/// Where a password comes from.
#[derive(Debug, Args)]
pub(super) struct Password {
    /// Read the password from this file (`-`: standard input) instead of printing a one-time link.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl Password {
    fn read(&self) -> anyhow::Result<Option<String>> {
        let Some(path) = &self.password_file else { return Ok(None) };
        let mut password = String::new();
        if path.as_os_str() == "-" {
            std::io::stdin().take(4_096).read_to_string(&mut password).context("cannot read standard input")?;
        } else {
            password = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        Ok(Some(password.trim_end_matches(['\n', '\r']).to_owned()))
    }
}

/// Local accounts, and people who signed in through a provider.
#[derive(Debug, Subcommand)]
pub(super) enum User {
    /// Make a local account. Prints a one-time link by which the person sets a password.
    #[command(after_help = "Example:\n  postern-controller user add alice@corp.example --group payroll --group staff")]
    Add {
        /// What the person will type to sign in.
        login: String,
        /// A group; may be repeated.
        #[arg(long = "group", value_name = "GROUP")]
        groups: Vec<String>,
        /// The person also administers the controller.
        #[arg(long)]
        admin: bool,
        #[command(flatten)]
        password: Password,
    },
    /// List everybody.
    #[command(after_help = "Example:\n  postern-controller user list --json")]
    List,
    /// Keep a person out: every session ends, every flow is cut.
    #[command(
        after_help = "Example:\n  postern-controller user disable bob@corp.example --reason \"left the company\""
    )]
    Disable {
        /// Login, or name for people of a provider.
        user: String,
        /// Why; recorded, and shown to the person.
        #[arg(long, default_value = "disabled by an administrator")]
        reason: String,
    },
    /// Let a person in again.
    #[command(after_help = "Example:\n  postern-controller user enable bob@corp.example")]
    Enable {
        /// Login, or name for people of a provider.
        user: String,
    },
    /// Remove a local account for good. A new one under the same login is another person.
    #[command(after_help = "Example:\n  postern-controller user remove bob@corp.example")]
    Remove {
        /// Login.
        user: String,
    },
    /// Set all groups of a local account.
    #[command(after_help = "Example:\n  postern-controller user set-groups alice@corp.example payroll staff")]
    SetGroups {
        /// Login.
        user: String,
        /// All of its groups; none takes every group away.
        groups: Vec<String>,
    },
    /// Forget a local account's second factor: it sets one up at the next sign-in.
    #[command(after_help = "Example:\n  postern-controller user reset-totp alice@corp.example")]
    ResetTotp {
        /// Login.
        user: String,
    },
    /// Set a password, or print a one-time link for it.
    #[command(
        after_help = "Example:\n  postern-controller user passwd alice@corp.example\n  postern-controller user passwd alice@corp.example --password-file - < secret"
    )]
    Passwd {
        /// Login.
        user: String,
        #[command(flatten)]
        password: Password,
    },
}

fn said(value: &Value, what: &str) {
    let name = [&value["account"]["login"], &value["subject"]].into_iter().find(|name| !name.is_null());
    print::done(&format!("{} {what}", name.map(text).unwrap_or_default()));
    if let Some(link) = value["link"].as_str() {
        println!("Password, once, within 24 h: {link}");
    }
}

impl User {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        match self {
            Self::Add { login, groups, admin, password } => {
                let groups: BTreeSet<_> = groups.into_iter().collect();
                let request = Request::UserAdd { login, groups, admin, password: password.read()? };
                desk.ask_and(&request, |value| said(value, "may sign in"))
            }
            Self::List => desk.ask_and(&Request::UserList, list),
            Self::Disable { user, reason } => desk.ask_and(&Request::UserDisable { user, reason }, |value| {
                said(value, "is kept out; every session has ended")
            }),
            Self::Enable { user } => {
                desk.ask_and(&Request::UserEnable { user }, |value| said(value, "may sign in again"))
            }
            Self::Remove { user } => desk.ask_and(&Request::UserRemove { user }, |value| said(value, "was removed")),
            Self::SetGroups { user, groups } => {
                let groups: BTreeSet<_> = groups.into_iter().collect();
                desk.ask_and(&Request::UserSetGroups { user, groups }, |value| {
                    said(value, &format!("is in: {}", text(&value["account"]["groups"])));
                })
            }
            Self::ResetTotp { user } => desk.ask_and(&Request::UserResetTotp { user }, |value| {
                said(value, "has no second factor and no passkey now, and is signed out everywhere")
            }),
            Self::Passwd { user, password } => {
                let request = Request::UserPasswd { user, password: password.read()? };
                desk.ask_and(&request, |value| {
                    said(value, "gets a new password: with it every sign-in and passkey from before ends")
                })
            }
        }
    }
}

fn list(value: &Value) {
    let empty = Vec::new();
    let mut rows = Vec::new();
    for account in value["accounts"].as_array().unwrap_or(&empty) {
        let mut notes = Vec::new();
        for (key, on, note) in [
            ("disabled", true, "disabled"),
            ("admin", true, "administrator"),
            ("password", false, "no password yet"),
            ("second_factor", true, "second factor"),
        ] {
            if account[key].as_bool() == Some(on) {
                notes.push(note);
            }
        }
        rows.push(vec![text(&account["login"]), "local".into(), text(&account["groups"]), notes.join(", ")]);
    }
    for view in value["of_provider"].as_array().unwrap_or(&empty) {
        let record = &view["record"];
        let disabled = record["disabled"].as_str().map(|why| format!("disabled: {why}"));
        let provisioned = view["provisioned"].as_str().map(str::to_owned);
        let note = disabled.into_iter().chain(provisioned).collect::<Vec<_>>().join("; ");
        // Without an open login session nobody has said them; with one, the provider did not send them.
        let groups = match view["groups"].is_null() && view["sessions"].as_u64() > Some(0) {
            true => "unknown".to_owned(),
            false => text(&view["groups"]),
        };
        rows.push(vec![text(&record["name"]), text(&record["kind"]["issuer"]), groups, note]);
    }
    print::table(
        &["who", "from", "groups", ""],
        rows,
        "Nobody yet: postern-controller user add you@corp.example --admin",
    );
}

/// Groups of local accounts.
#[derive(Debug, Subcommand)]
pub(super) enum Group {
    /// List groups and who is in them.
    #[command(after_help = "Example:\n  postern-controller group list")]
    List,
}

impl Group {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        match self {
            Self::List => desk.ask_and(&Request::GroupList, |value| {
                let groups = value["groups"].as_object();
                let rows = groups.into_iter().flatten().map(|(group, people)| vec![group.clone(), text(people)]);
                print::table(&["group", "people"], rows.collect(), "No local account is in a group.");
            }),
        }
    }
}

/// Who and what is known here, and is not used.
#[derive(Debug, Subcommand)]
pub(super) enum Identities {
    /// List people, services, machines and tokens that nobody used for long.
    #[command(
        after_help = "Examples:\n  postern-controller identities stale\n  postern-controller identities stale --for 30d --json\n\nThen: user disable, device remove, token revoke, scim token revoke."
    )]
    Stale {
        /// For how long.
        #[arg(long = "for", default_value = "90d", value_name = "DURATION")]
        unused: HumanDuration,
    },
}

impl Identities {
    pub(super) fn run(self, desk: &Desk) -> anyhow::Result<ExitCode> {
        let Self::Stale { unused } = self;
        let for_ms = u64::try_from(unused.get().as_millis()).unwrap_or(u64::MAX);
        desk.ask_and(&Request::Stale { for_ms }, |value| {
            let now = clock::now().wall;
            let rows = value.as_array().into_iter().flatten().map(|view| {
                let last = print::time(&view["last_used"]).map_or_else(|| "-".into(), |at| print::ago(at, now));
                vec![text(&view["kind"]), text(&view["name"]), last, text(&view["detail"])]
            });
            print::table(&["what", "name", "last used", ""], rows.collect(), "Everything was used within that time.");
        })
    }
}
