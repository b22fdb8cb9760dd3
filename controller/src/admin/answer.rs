//! What each request does.

mod restraint;
mod status;

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use postern_common::{id::SessionId, policy::Policy, time::WallTime};
use serde::Serialize;
use serde_json::{Value, json};

use super::{
    request::{Holdable, Request, Response, Revocable},
    scim,
    server::{Administrator, Office},
};
use crate::{
    identity::local::{Account, AccountError, AccountRole, AccountStatus, Credential, NewAccount},
    records::{Quarantined, RevokeTarget, SubjectKind},
    serve::{actor::Stopped, clock, parse_policy},
    stream::{
        Core, CoreError, Decider, NewToken, PlanId, PolicyPlan, RevocationId, RevocationProgress, StaleKind, StaleView,
        SubjectUpdate,
    },
};

/// How long a one-time link for a password works.
const LINK: Duration = Duration::from_secs(24 * 3_600);

/// How long nodes have to count the flows that a plan would cut.
const COUNT_FLOWS: Duration = Duration::from_secs(1);

/// Why a request was refused: the sentence for the person.
struct Refusal(String);

impl<E: std::fmt::Display> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}

/// Does what an administrator asks.
pub async fn answer(office: &Office, who: &Administrator, request: Request) -> Response {
    match respond(office, who, request).await {
        Ok(value) => Response::Done { value },
        Err(Refusal(message)) => Response::Refused { message },
    }
}

fn value(of: &impl Serialize) -> Value {
    serde_json::to_value(of).expect("a view has a JSON form")
}

async fn respond(office: &Office, who: &Administrator, request: Request) -> Result<Value, Refusal> {
    let by = who.name.clone();
    match request {
        Request::Status => status::status(office).await,
        Request::UserAdd { login, groups, admin, password } => {
            let role = if admin { AccountRole::Administrator } else { AccountRole::Person };
            let account = office.accounts.add(NewAccount { login, groups, role }, clock::now().wall).await?;
            let made = credentials(office, &account.login, password).await;
            if made.is_err() {
                drop(office.accounts.remove(&account.login).await); // an account that nobody asked for like this
            }
            let link = made?;
            let (login, mut detail) = (account.login.clone(), described(&account));
            let told = office.handle.call(move |turn, _| {
                for before in turn.core.former_holders(&login) {
                    detail += &format!(", a login that {before} had before");
                }
                turn.record_administration(&by, "user add", &detail);
            });
            told.await?;
            Ok(json!({ "account": account_json(&account), "link": link }))
        }
        Request::UserList => user_list(office).await,
        Request::UserDisable { user, reason } => {
            change_user(office, &by, &user, AccountStatus::Disabled, Some(reason)).await
        }
        Request::UserEnable { user } => change_user(office, &by, &user, AccountStatus::Enabled, None).await,
        Request::UserRemove { user } => {
            let _in_order = office.changing.lock().await;
            let reason = "the account was removed";
            shut_out(office, &by, &office.accounts.find(&user).await?, reason).await?;
            let account = office.accounts.remove(&user).await?;
            let (issuer, sub, detail) = (office.accounts.issuer().to_owned(), account.id.clone(), described(&account));
            let told = office.handle.call(move |turn, now| {
                turn.core.person_removed(&issuer, &sub, &by, now);
                turn.record_administration(&by, "user remove", &detail);
            });
            told.await?;
            Ok(json!({ "account": account_json(&account) }))
        }
        Request::UserSetGroups { user, groups } => {
            let _in_order = office.changing.lock().await;
            let account = office.accounts.set_groups(&user, &groups).await?;
            let change = SubjectUpdate { groups: Some(groups), disabled: None };
            tell_core(office, &by, &account, change, "user set-groups").await?;
            Ok(json!({ "account": account_json(&account) }))
        }
        Request::UserResetTotp { user } => {
            let account = office.accounts.reset_totp(&user, clock::now().wall).await?;
            credentials_set(office, &account).await?;
            record(office, &by, "user reset-totp", &account.login).await?;
            Ok(json!({ "account": account_json(&account) }))
        }
        Request::UserPasswd { user, password } => {
            let account = office.accounts.find(&user).await?;
            let set_at_once = password.is_some();
            let link = credentials(office, &account.login, password).await?;
            if set_at_once {
                credentials_set(office, &account).await?; // a link does it when it is used
            }
            record(office, &by, "user passwd", &account.login).await?;
            Ok(json!({ "account": account_json(&account), "link": link }))
        }
        Request::GroupList => {
            let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for account in office.accounts.list().await? {
                for group in account.groups {
                    groups.entry(group).or_default().push(account.login.clone());
                }
            }
            Ok(json!({ "groups": groups }))
        }
        Request::TokenCreate { tags, service, machine, networks, uses, ttl_s } => {
            let new = NewToken { service, tags, machine, networks, uses, life: Duration::from_secs(ttl_s) };
            let made = office.handle.call(move |turn, now| turn.core.create_token(new, &by, now)).await?;
            let (token, view) = made?;
            Ok(json!({ "token": token, "view": value(&view), "join_url": join_url(office) }))
        }
        Request::TokenList => ask(office, |core| value(&core.list_tokens(clock::now()))).await,
        Request::TokenRevoke { token } => {
            let done = office.handle.call(move |turn, _| {
                let hash = turn.core.find_token(&token)?;
                turn.core.delete_token(hash, &by).map(|()| hash.short())
            });
            Ok(json!({ "token": done.await?? }))
        }
        Request::Scim { request } => Ok(scim::respond(office, by, request).await??),
        Request::DeviceList => ask(office, |core| value(&core.list_devices())).await,
        Request::DeviceShow { device } => {
            let found = office.handle.call(move |turn, now| {
                let id = turn.core.find_device(&device)?;
                Ok::<_, CoreError>((turn.core.show_device(id), turn.core.posture_of(id, now)))
            });
            let (view, posture) = found.await??;
            let mut shown = value(&view);
            shown["posture"] = value(&posture);
            Ok(shown)
        }
        Request::DeviceRemove { device, wait_ms } => {
            let begun = office.handle.call(move |turn, now| {
                let id = turn.core.find_device(&device)?;
                turn.core.remove_device(id, &by, now)
            });
            let id = begun.await??;
            await_revocation(office, id, Duration::from_millis(wait_ms)).await
        }
        Request::DeviceRename { device, name } => {
            let renamed = office.handle.call(move |turn, now| {
                let id = turn.core.find_device(&device)?;
                turn.core.rename_device(id, name, &by, now)
            });
            renamed.await??;
            Ok(Value::Null)
        }
        Request::SessionList => ask(office, |core| value(&core.list_sessions())).await,
        Request::LeaseList => ask(office, |core| value(&core.list_leases())).await,
        Request::Approve { device, tags, name } => {
            let done = office.handle.call(move |turn, now| {
                let id = turn.core.find_device(&device)?;
                turn.core.approve(id, &tags, name, &by, now)
            });
            done.await??;
            Ok(Value::Null)
        }
        Request::Refuse { device, tags, name } => {
            let done = office.handle.call(move |turn, now| {
                let id = turn.core.find_device(&device)?;
                turn.core.refuse(id, &tags, name, &by, now)
            });
            done.await??;
            Ok(Value::Null)
        }
        Request::Revoke { what, name, reason, wait_ms } => {
            let begun = office.handle.call(move |turn, now| {
                let target = target(turn.core, what, &name)?;
                let person = person(turn.core, &target);
                let browsers = turn.core.browsers_behind(&target);
                let id = turn.core.revoke(target, &reason, &by, now)?;
                turn.core.cut_browsers(&browsers, now);
                Ok::<_, CoreError>((id, person, browsers))
            });
            let (id, person, browsers) = begun.await??;
            end_browsers(office, person, browsers).await?;
            await_revocation(office, id, Duration::from_millis(wait_ms)).await
        }
        Request::Quarantine { what, name, reason, wait_ms } => {
            let begun = office.handle.call(move |turn, now| {
                let target = holdable(turn.core, what, &name)?;
                let browsers = turn.core.browsers_behind(&RevokeTarget::Quarantine(target.clone()));
                let id = turn.core.quarantine(target, &reason, &by, now)?;
                turn.core.cut_browsers(&browsers, now);
                Ok::<_, CoreError>((id, browsers))
            });
            let (id, browsers) = begun.await??;
            end_browsers(office, None, browsers).await?;
            await_revocation(office, id, Duration::from_millis(wait_ms)).await
        }
        Request::QuarantineRelease { what, name } => {
            let done = office.handle.call(move |turn, now| {
                let target = match what {
                    // It may have left the policy meanwhile.
                    Holdable::Resource => resource(&name)?,
                    Holdable::Subject | Holdable::Device | Holdable::Node => holdable(turn.core, what, &name)?,
                };
                turn.core.release(&target, &by, now)
            });
            done.await??;
            Ok(Value::Null)
        }
        Request::QuarantineList => ask(office, |core| value(&core.list_quarantines())).await,
        Request::Restrain { what, name, to, terminate, reason } => {
            restraint::restrain(office, by, restraint::Wanted { what, name, to, terminate, reason }).await
        }
        Request::RestraintRelease { what, name } => restraint::release(office, by, what, name).await,
        Request::RestraintList => ask(office, |core| value(&core.list_restraints())).await,
        Request::Stale { for_ms } => {
            let now = clock::now();
            let since =
                WallTime::from_millis(now.wall.as_millis().saturating_sub(i64::try_from(for_ms).unwrap_or(i64::MAX)));
            let (mut stale, known) = office
                .handle
                .call(move |turn, now| (turn.core.list_stale(since, now), turn.core.list_subjects()))
                .await?;
            // Accounts with which nobody ever signed in are not subjects yet.
            let came = |id: &str| {
                known.iter().any(|view| matches!(&view.record.kind, SubjectKind::Person { sub, .. } if sub == id))
            };
            for account in office.accounts.list().await? {
                let (enabled, login, last_used) =
                    (account.status == AccountStatus::Enabled, account.login, account.created);
                if enabled && last_used < since && !came(&account.id) {
                    let detail = "a local account with which nobody ever signed in".to_owned();
                    stale.push(StaleView { kind: StaleKind::Person, name: login, last_used, detail });
                }
            }
            Ok(value(&stale))
        }
        Request::BreakGlassOpen { machine, subject, resource, length_ms, reason, why_past_the_rules } => {
            let opened = office.handle.call(move |turn, now| {
                let device = turn.core.machine_to_open(&machine, subject.as_deref())?;
                let missing = |_| CoreError::NotFound { what: "resource", name: resource.chars().take(80).collect() };
                let resource = resource.parse().map_err(missing)?;
                let length = Duration::from_millis(length_ms);
                turn.core.break_glass(device, &resource, length, &reason, &why_past_the_rules, &by, now)
            });
            Ok(value(&opened.await??))
        }
        Request::BreakGlassClose { id } => {
            let closed = office.handle.call(move |turn, now| {
                let id = turn.core.find_break_glass(&id)?;
                turn.core.close_break_glass(id, &by, now)
            });
            closed.await??;
            Ok(Value::Null)
        }
        Request::BreakGlassList => ask(office, |core| value(&core.list_break_glass(clock::now()))).await,
        Request::Clock => ask(office, |core| value(&core.clock_view(clock::now()))).await,
        Request::ClockAccept { reason } => {
            let accepted = office.handle.call(move |turn, now| {
                let before = turn.core.accept_clock(&reason, now)?;
                let detail = format!("{} instead of {}: {}", before.shows, before.steady, reason.trim());
                turn.record_administration(&by, "clock accept", &detail);
                Ok::<_, CoreError>(turn.core.clock_view(now))
            });
            Ok(value(&accepted.await??))
        }
        Request::RequestList => ask(office, |core| value(&core.list_requests())).await,
        Request::RequestDecide { request, decision, reason } => {
            let decided = office.handle.call(move |turn, now| {
                let id = turn.core.find_request(&request)?;
                turn.core.decide_request(id, decision, Decider::Administrator(&by), &reason, now)
            });
            Ok(value(&decided.await??))
        }
        Request::Lift { what, name } => {
            let done = office.handle.call(move |turn, now| {
                let target = target(turn.core, what, &name)?;
                turn.core.lift(target, &by, now)
            });
            done.await??;
            Ok(Value::Null)
        }
        Request::PolicyPlan { file, text } => {
            let policy = parse(&file, &text)?;
            let tests = policy.run_tests().len(); // all of them passed, or it would not have been read
            let id = office.handle.call(move |turn, now| turn.core.begin_plan(&policy, now)).await?;
            Ok(json!({ "plan": value(&await_plan(office, id).await?), "tests": tests }))
        }
        Request::PolicyApply { file, text } => {
            let policy = match parse(&file, &text) {
                Ok(policy) => policy,
                Err(Refusal(wrong)) => return Err(Refusal(format!("{wrong}\n{}", stays(office).await?))),
            };
            let applied = office.handle.call(move |turn, now| {
                let before = turn.meta.policy_text == text;
                let plan = value(&turn.core.plan(&policy, now));
                let revision = turn.core.apply_policy(policy.into(), text, &by, now);
                json!({ "revision": revision, "plan": plan, "unchanged": before })
            });
            Ok(applied.await?)
        }
        Request::PolicyShow => Ok(value(&office.handle.call(|turn, _| turn.meta.clone()).await?)),
        Request::Explain { subject, to, service } => {
            let explained = office.handle.call(move |turn, now| {
                let places = turn.core.places_of(&to);
                turn.core.explain(&subject, &to, service, now).map(|explanation| (explanation, places))
            });
            let (explanation, places) = explained.await??;
            let mut explained = value(&explanation);
            explained["recorded_at"] = value(&places);
            Ok(explained)
        }
        Request::PostureImport { lines } => {
            let import = office.handle.call(move |turn, now| turn.core.import_posture(&lines, &by, now));
            Ok(value(&import.await?))
        }
        Request::PostureBind { device, serial } => {
            let bound = office.handle.call(move |turn, now| {
                let id = turn.core.find_device(&device)?;
                turn.core.bind_serial(id, &serial, &by, now)
            });
            bound.await??;
            Ok(Value::Null)
        }
        Request::Places { to } => {
            let asked = to.clone();
            let places = office.handle.call(move |turn, _| turn.core.places_of(&asked)).await?;
            if places.is_empty() {
                return Err(Refusal(format!("no machine stands for `{to}`: postern-controller device list")));
            }
            Ok(json!({ "recorded_at": places }))
        }
        Request::BackupWritten { file, with_keys } => {
            record(office, &by, if with_keys { "backup with private keys" } else { "backup" }, &file).await?;
            Ok(Value::Null)
        }
        Request::JoinUrl => Ok(json!({ "join_url": join_url(office) })),
    }
}

/// Asks the core something that changes nothing.
async fn ask(office: &Office, question: impl FnOnce(&mut Core) -> Value + Send + 'static) -> Result<Value, Refusal> {
    Ok(office.handle.call(move |turn, _| question(turn.core)).await?)
}

async fn record(office: &Office, by: &str, action: &'static str, detail: &str) -> Result<(), Stopped> {
    let (by, detail) = (by.to_owned(), detail.to_owned());
    office.handle.call(move |turn, _| turn.record_administration(&by, action, &detail)).await
}

fn parse(file: &str, text: &str) -> Result<Policy, Refusal> {
    Ok(parse_policy(std::path::Path::new(file), text)?)
}

/// Says which policy stays when a new one is refused.
async fn stays(office: &Office) -> Result<String, Refusal> {
    let meta = office.handle.call(|turn, _| turn.meta.clone()).await?;
    Ok(format!(
        "Nothing was changed: the policy of {} (revision {}) stays in force.",
        super::print::clock_time(meta.policy_applied, clock::now().wall),
        meta.policy_revision
    ))
}

fn join_url(office: &Office) -> String {
    join_link(&office.config.url, office.certificates.current().pin)
}

/// Makes the link that machines join with: the URL, and what they pin.
pub fn join_link(url: &str, pin: Option<[u8; 32]>) -> String {
    match pin {
        Some(pin) => format!("{url}#k={}", hex::encode(pin)),
        None => url.to_owned(),
    }
}

/// Sets a password, or makes a one-time link for one.
async fn credentials(office: &Office, login: &str, password: Option<String>) -> Result<Option<String>, AccountError> {
    match password {
        Some(password) => office.accounts.set_password(login, &password, clock::now().wall).await.map(|_| None),
        None => {
            let link = office.accounts.password_link(login, LINK, clock::now().wall).await?;
            Ok(Some(format!("{}/password/{}", office.config.url, link.expose())))
        }
    }
}

fn account_json(account: &Account) -> Value {
    let set = |credential: Credential| credential == Credential::Set;
    json!({
        "login": account.login,
        "sub": account.id,
        "groups": account.groups,
        "disabled": account.status == AccountStatus::Disabled,
        "admin": account.role == AccountRole::Administrator,
        "password": set(account.password),
        "second_factor": set(account.second_factor),
        "created": account.created,
    })
}

/// Signs a person out everywhere, after the credentials of their account were set anew: on machines and stock clients, and in
/// a browser whose sign-in was ending at the same moment.
async fn credentials_set(office: &Office, account: &Account) -> Result<(), Refusal> {
    let (issuer, sub) = (office.accounts.issuer().to_owned(), account.id.clone());
    let told = office.handle.call(move |turn, now| {
        turn.core.credentials_set(&issuer, &sub, now);
        now.wall
    });
    office.sessions.end_proven_until(office.accounts.issuer(), &account.id, told.await?).await?;
    Ok(())
}

/// Writes an account for the audit log: with what its groups and role give it.
fn described(account: &Account) -> String {
    let groups = account.groups.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
    let role = match account.role {
        AccountRole::Person => "",
        AccountRole::Administrator => ", administrator",
    };
    format!("{} ({}), groups: [{groups}]{role}", account.login, account.id)
}

async fn tell_core(
    office: &Office,
    by: &str,
    account: &Account,
    change: SubjectUpdate,
    action: &'static str,
) -> Result<(), Refusal> {
    let (issuer, sub, by) = (office.accounts.issuer().to_owned(), account.id.clone(), by.to_owned());
    let detail = described(account);
    let told = office.handle.call(move |turn, now| {
        turn.core.update_subject(&issuer, &sub, change, &by, now);
        turn.record_administration(&by, action, &detail);
    });
    Ok(told.await?)
}

/// Disables an account's person in the core before the account itself changes: a crash between the two leaves nobody
/// with a lease, and the same command can be given again. Whoever joins meanwhile is found by [`tell_core`] afterwards.
async fn shut_out(office: &Office, by: &str, account: &Account, reason: &str) -> Result<(), Stopped> {
    let (issuer, sub, by) = (office.accounts.issuer().to_owned(), account.id.clone(), by.to_owned());
    let change = SubjectUpdate { groups: None, disabled: Some(Some(reason.to_owned())) };
    office.handle.call(move |turn, now| turn.core.update_subject(&issuer, &sub, change, &by, now)).await
}

/// Disables or enables a local account; a person of a provider is revoked or let in again as a subject.
async fn change_user(
    office: &Office,
    by: &str,
    user: &str,
    status: AccountStatus,
    reason: Option<String>,
) -> Result<Value, Refusal> {
    let _in_order = office.changing.lock().await;
    let action = if reason.is_some() { "user disable" } else { "user enable" };
    if let Some(reason) = &reason {
        match office.accounts.find(user).await {
            Ok(account) => shut_out(office, by, &account, reason).await?,
            Err(AccountError::Unknown(_)) => {} // a person of the provider, below
            Err(other) => return Err(other.into()),
        }
    }
    match office.accounts.set_status(user, status).await {
        Ok(account) => {
            let change = SubjectUpdate { groups: None, disabled: Some(reason) };
            tell_core(office, by, &account, change, action).await?;
            Ok(json!({ "account": account_json(&account) }))
        }
        Err(AccountError::Unknown(_)) => {
            let (name, by) = (user.to_owned(), by.to_owned());
            let changed = office.handle.call(move |turn, now| {
                let target = target(turn.core, Revocable::Subject, &name)?;
                let person = person(turn.core, &target);
                match reason {
                    Some(reason) => turn.core.revoke(target, &reason, &by, now).map(|_| person),
                    None => turn.core.lift(target, &by, now).map(|()| None),
                }
            });
            let person = changed.await??;
            end_browsers(office, person, BTreeSet::new()).await?;
            Ok(json!({ "subject": user }))
        }
        Err(other) => Err(other.into()),
    }
}

async fn user_list(office: &Office) -> Result<Value, Refusal> {
    let subjects = office.handle.call(|turn, _| turn.core.list_subjects()).await?;
    let accounts = office.accounts.list().await?;
    let of_provider: Vec<_> = subjects
        .iter()
        .filter(|view| matches!(&view.record.kind, SubjectKind::Person { issuer, .. } if issuer != office.accounts.issuer()))
        .map(value)
        .collect();
    let accounts: Vec<_> = accounts.iter().map(account_json).collect();
    Ok(json!({ "accounts": accounts, "of_provider": of_provider }))
}

fn target(core: &Core, what: Revocable, name: &str) -> Result<RevokeTarget, CoreError> {
    Ok(match what {
        Revocable::Session => RevokeTarget::Session(core.find_session(name)?),
        Revocable::Device => RevokeTarget::Device(core.find_device(name)?),
        Revocable::Subject => RevokeTarget::Subject(core.find_subject(name)?),
        Revocable::Node => RevokeTarget::Node(core.find_device(name)?),
        Revocable::Rule => {
            let rule = name.parse().map_err(|_| CoreError::NotFound { what: "rule", name: name.into() })?;
            RevokeTarget::Rule(rule)
        }
    })
}

fn holdable(core: &Core, what: Holdable, name: &str) -> Result<Quarantined, CoreError> {
    match what {
        Holdable::Subject => core.find_subject(name).map(Quarantined::Subject),
        Holdable::Device => core.find_device(name).map(Quarantined::Device),
        Holdable::Node => core.find_node(name).map(Quarantined::Device),
        Holdable::Resource => resource(name),
    }
}

fn resource(name: &str) -> Result<Quarantined, CoreError> {
    let parsed = name.parse().map(Quarantined::Resource);
    parsed.map_err(|_| CoreError::NotFound { what: "resource", name: name.chars().take(80).collect() })
}

/// Returns issuer and `sub` of the person whom a revocation names.
fn person(core: &Core, target: &RevokeTarget) -> Option<(String, String)> {
    let RevokeTarget::Subject(id) = target else { return None };
    match core.subject_kind(*id)? {
        SubjectKind::Person { issuer, sub } => Some((issuer.clone(), sub.clone())),
        SubjectKind::Service { .. } => None,
    }
}

/// Ends login sessions in browsers too: all of a revoked person's, and those that let in what was revoked.
async fn end_browsers(
    office: &Office,
    person: Option<(String, String)>,
    browsers: BTreeSet<SessionId>,
) -> Result<(), Refusal> {
    if let Some((issuer, sub)) = person {
        office.sessions.end_of_person(&issuer, &sub).await?;
    }
    for browser in browsers {
        office.sessions.end(browser).await?;
    }
    Ok(())
}

/// Waits until every connected node has acknowledged, or the time is over, and tells how far it came.
async fn await_revocation(office: &Office, id: RevocationId, wait: Duration) -> Result<Value, Refusal> {
    let mut turns = office.handle.turns();
    let until = tokio::time::Instant::now() + wait;
    loop {
        turns.mark_unchanged(); // before asking, so that nothing that happens meanwhile is missed
        let view = office.handle.call(move |turn, now| turn.core.revocation(id, now)).await?;
        let Some(view) = view else { return Ok(json!({ "revocation": null })) };
        let told = view.nodes.iter().any(|node| node.progress == RevocationProgress::Told);
        if view.done || !told {
            return Ok(json!({ "revocation": value(&view) }));
        }
        let changed = tokio::time::timeout_at(until, turns.changed()).await;
        if changed.is_err() {
            return Ok(json!({ "revocation": value(&view) }));
        }
    }
}

/// Waits until every node that was asked for its live flows has answered, or the time is over.
async fn await_plan(office: &Office, id: PlanId) -> Result<PolicyPlan, Refusal> {
    let mut turns = office.handle.turns();
    let until = tokio::time::Instant::now() + COUNT_FLOWS;
    loop {
        turns.mark_unchanged(); // before asking, so that nothing that happens meanwhile is missed
        let found = office.handle.call(move |turn, _| turn.core.planned(id)).await?;
        let Some((plan, done)) = found else {
            return Err(Refusal("too many plans are being made at the same time: try again".into()));
        };
        if done || tokio::time::timeout_at(until, turns.changed()).await.is_err() {
            office.handle.call(move |turn, _| turn.core.forget_plan(id)).await?;
            return Ok(plan);
        }
    }
}
