//! Passkeys on the pages: a sign-in with one, and a page to add and remove them.
//!
//! The options for the browser stand in the page, and its answer comes back in an ordinary form: the script calls the browser's
//! own dialog and speaks to nobody. Without scripts the form stays hidden, and password and code are the way.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use postern_common::time::WallTime;
use serde::Deserialize;

use super::{
    event::{IdentityAction, Who},
    fault::Fault,
    layout::{self, Place},
    sign_in::{self, Vouched},
    visit::{Next, Person, Posted, Visit},
    words,
};
use crate::identity::{
    local::{Account, Credential, PasskeyError},
    random::Token,
};

/// How old the proof of sign-in may be when a passkey is added or removed.
const FRESH: std::time::Duration = std::time::Duration::from_secs(15 * 60);

#[derive(Deserialize)]
pub(super) struct Answered {
    credential: String,
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
pub(super) struct Added {
    credential: String,
    #[serde(default)]
    name: String,
}

#[derive(Deserialize)]
pub(super) struct Chosen {
    passkey: String,
}

/// Begins a sign-in that waits under the browser's cookie, and returns the options for the browser.
pub(super) fn offer(visit: &Visit, cookie: &Token) -> Option<String> {
    let (waiting, options) = visit.pages.web.accounts.begin_passkey_sign_in()?;
    visit.pages.passkey_sign_ins.put(cookie, waiting, visit.now);
    Some(options)
}

/// The form by which a passkey answers; the script shows it where the browser can.
pub(super) fn form(options: &str, action: &str, hidden: Markup, button: &str) -> Markup {
    html! {
        form method="post" action=(action) data-passkey="get" data-options=(options) hidden {
            (hidden)
            input type="hidden" name="credential" value="";
            p.alert role="alert" hidden {}
            button.wide.secondary { (button) }
        }
    }
}

/// Checks what a passkey answered, and whose it is.
pub(super) async fn answered(visit: &Visit, cookie: &Token, credential: &str) -> Result<Account, Fault> {
    let pages = visit.pages.clone();
    let waiting = pages.passkey_sign_ins.take(cookie, visit.now).ok_or(Fault::Stale)?;
    match pages.web.accounts.check_passkey(waiting, credential, visit.address, visit.now).await {
        Ok(account) => Ok(account),
        Err(error) => Err(refused(visit, error).await?),
    }
}

async fn refused(visit: &Visit, error: PasskeyError) -> Result<Fault, Fault> {
    tracing::warn!(%error, "a passkey was refused");
    let web = &visit.pages.web;
    let mut who = None;
    let (reason, text) = match error {
        PasskeyError::NoDomain => return Ok(Fault::NotFound),
        PasskeyError::Store(error) => return Ok(error.into()),
        PasskeyError::TooMany(wait) => return Ok(wait.into()),
        PasskeyError::Copied(copied) => {
            let issuer = web.accounts.issuer();
            if copied.newly {
                web.doors.passkey_copied(issuer, &copied, visit.address).await?;
            }
            let account = copied.account;
            who = Some(Who { issuer: issuer.to_owned(), subject: account.id, name: account.login });
            (
                "passkey_copied",
                "This passkey may have been copied: its counter went back, and it signs nobody in any more. Sign in with your \
                 password, remove it, and tell your administrator.",
            )
        }
        PasskeyError::Unknown => ("passkey_unknown", "Nobody here has this passkey. Sign in another way."),
        PasskeyError::Disabled => ("disabled", "This account is disabled. Ask your administrator."),
        PasskeyError::Full => ("passkey_full", "This account has as many passkeys as one may have: remove one first."),
        PasskeyError::Refused(_) => ("passkey", "The passkey was not accepted. Try again, or sign in another way."),
    };
    visit.audit(who, IdentityAction::SignInRefused { reason }).await?;
    Ok(Fault::NotPermitted(text.into()))
}

pub(super) async fn sign_in(posted: Posted<Answered>) -> Result<Response, Fault> {
    let Posted { visit, fields } = posted;
    if visit.pages.web.ways.local == super::LocalAccounts::Off {
        return Err(Fault::NotFound);
    }
    let cookie = visit.visit.clone().ok_or(Fault::Stale)?;
    let account = answered(&visit, &cookie, &fields.credential).await?;
    let proof = visit.pages.web.accounts.prove_passkey(&account, visit.address, visit.now).await;
    let proof = proof.map_err(|_| Fault::StartOver)?;
    sign_in::finish(&visit, proof, Vouched::ByAccount(&account), Next::parse(&fields.next)).await
}

/// Finds the local account of a person.
async fn own_account(person: &Person) -> Result<Account, Fault> {
    let accounts = &person.visit.pages.web.accounts;
    let is_off = person.visit.pages.web.ways.local == super::LocalAccounts::Off;
    if is_off || person.who.issuer() != accounts.issuer() {
        return Err(Fault::NotFound);
    }
    accounts.find_by_id(person.who.subject()).await?.ok_or(Fault::NotFound)
}

/// Whoever finds a browser signed in, or has phished a password, must not add a key of their own: only a fresh sign-in may, with all
/// that the account has. Once it has a passkey, that is a passkey.
pub(super) async fn is_fresh(person: &Person, account: &Account) -> Result<bool, Fault> {
    let now = person.visit.now;
    // Of what was proven before the credentials were set anew, nothing counts.
    let lately =
        |at: WallTime| at <= now && now.since(at) < FRESH && account.secured.is_none_or(|secured| at > secured);
    let with_code =
        account.second_factor == Credential::Missing || person.who.amr().iter().any(|m| m == "otp" || m == "mfa");
    let has_passkey = person.visit.pages.web.accounts.has_passkey(&account.id).await?;
    let whole = if has_passkey { person.who.acr() == Some("phr") } else { with_code };
    Ok(whole && person.who.auth_time().is_some_and(lately))
}

pub(super) async fn show(visit: Visit) -> Result<Markup, Fault> {
    let person = visit.signed_in(Next::Passkeys)?;
    let account = own_account(&person).await?;
    let pages = person.visit.pages.clone();
    let known = pages.web.accounts.passkeys(&account.id).await?;
    let fresh = is_fresh(&person, &account).await?;
    let options = match fresh {
        true => match pages.web.accounts.begin_passkey(&account).await {
            Ok((waiting, options)) => {
                pages.passkeys.put(&person.cookie, waiting, person.visit.now);
                Some(options)
            }
            Err(PasskeyError::Full | PasskeyError::NoDomain) => None,
            Err(error) => return Err(refused(&person.visit, error).await?),
        },
        false => None,
    };
    let now = person.visit.now;
    Ok(layout::page_with_passkeys(
        &person,
        Place::Elsewhere,
        "Your passkeys",
        html! {
            div.narrow {
                h1 { "Your passkeys" }
                p.lead { "A passkey signs you in with your fingerprint, face or PIN, and cannot be phished." }
                @if known.is_empty() { p.empty { "None yet." } }
                ul.rows { @for passkey in &known { li.row {
                    div.what {
                        h2 { (passkey.name) }
                        p.hint { "Added " (words::ago(passkey.added, now)) }
                        @if let Some(at) = passkey.copied {
                            p.hint { "May have been copied, " (words::ago(at, now)) ": it signs nobody in. Remove it." }
                        }
                    }
                    div.state {
                        p.hint { @match passkey.used {
                            Some(at) => { "Used " (words::ago(at, now)) },
                            None => { "Not used yet" },
                        } }
                        @if fresh {
                            form method="post" action="/passkeys/remove" {
                                (layout::token(&person.form_token()))
                                input type="hidden" name="passkey" value=(passkey.id);
                                button.danger.small aria-label={ "Remove " (passkey.name) } { "Remove" }
                            }
                        }
                    }
                } } }
                @if let Some(options) = options {
                    form method="post" action="/passkeys" data-passkey="create" data-options=(options) hidden {
                        (layout::token(&person.form_token()))
                        input type="hidden" name="credential" value="";
                        label for="name" { "What you call it" }
                        input #name name="name" maxlength="60" placeholder="my laptop";
                        p.alert role="alert" hidden {}
                        button.wide { "Add a passkey" }
                    }
                    noscript { p.hint { "Adding a passkey needs scripts. Your password and codes work without." } }
                } @else if !fresh {
                    p { "To change your passkeys, sign out and in again first: with a passkey if you have one, else with your second factor." }
                }
            }
        },
    ))
}

pub(super) async fn add(posted: Posted<Added>) -> Result<Response, Fault> {
    let person = posted.visit.signed_in(Next::Passkeys)?;
    let account = own_account(&person).await?;
    let visit = &person.visit;
    if !is_fresh(&person, &account).await? {
        return Err(Fault::NotPermitted(
            "Sign out and in again first: adding a passkey asks for a fresh sign-in.".into(),
        ));
    }
    let waiting = visit.pages.passkeys.take(&person.cookie, visit.now).ok_or(Fault::Stale)?;
    let fields = &posted.fields;
    let accounts = &visit.pages.web.accounts;
    match accounts.finish_passkey(&account, waiting, &fields.credential, &fields.name, visit.now).await {
        Ok(()) => {
            visit.audit(Some(Who::of(&person.who)), IdentityAction::PasskeyAdded).await?;
            Ok(Redirect::to("/passkeys").into_response())
        }
        Err(error) => Err(refused(visit, error).await?),
    }
}

pub(super) async fn remove(posted: Posted<Chosen>) -> Result<Response, Fault> {
    let person = posted.visit.signed_in(Next::Passkeys)?;
    let account = own_account(&person).await?;
    if !is_fresh(&person, &account).await? {
        return Err(Fault::NotPermitted(
            "Sign out and in again first: removing a passkey asks for a fresh sign-in.".into(),
        ));
    }
    let removed = person.visit.pages.web.accounts.remove_passkey(&account.id, &posted.fields.passkey).await?;
    if removed {
        person.visit.audit(Some(Who::of(&person.who)), IdentityAction::PasskeyRemoved).await?;
    }
    match removed {
        true => Ok(Redirect::to("/passkeys").into_response()),
        false => Ok((StatusCode::NOT_FOUND, Fault::NotFound).into_response()),
    }
}
