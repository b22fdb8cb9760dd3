//! The second factor of a local account: asking for a code, and setting an authenticator up.

use axum::{
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    event::{IdentityAction, Who},
    fault::Fault,
    layout::{self, Place},
    passkey, sign_in,
    visit::{Next, Person, Posted, Visit},
    words,
};
use crate::identity::local::{Account, Credential, Enrolment, SignInError};

#[derive(Deserialize)]
pub(super) struct Code {
    code: String,
}

/// How many codes may be tried in one half-finished sign-in is limited by the account's own allowance.
pub(super) async fn show(visit: Visit) -> Result<Response, Fault> {
    let (token, _) = visit.form_token();
    let page = match visit.visit.as_ref() {
        Some(cookie) => visit.pages.half.peek(cookie, visit.now, |half| match &half.enrolment {
            Some(enrolment) => enrolment_at_the_door(&visit, enrolment, &token, None),
            None => code_form(&half.account, &token, None),
        }),
        None => None,
    };
    page.map(IntoResponse::into_response).ok_or(Fault::SignInFirst(Next::Home))
}

pub(super) async fn submit(posted: Posted<Code>) -> Result<Response, Fault> {
    let Posted { visit, fields } = posted;
    let pages = visit.pages.clone();
    let accounts = &pages.web.accounts;
    let cookie = visit.visit.as_ref().ok_or(Fault::SignInFirst(Next::Home))?;
    let half = pages.half.peek(cookie, visit.now, |half| (half.account.clone(), half.enrolment.clone(), half.next));
    let (account, enrolment, next) = half.ok_or(Fault::SignInFirst(Next::Home))?;
    let checked = match &enrolment {
        Some(enrolment) => accounts.finish_enrolment(enrolment, &fields.code, visit.now).await,
        None => accounts.check_code(&account, &fields.code, visit.now).await,
    };
    let proven = match checked {
        Ok(()) => accounts.prove(&account, Credential::Set, visit.address, visit.now).await,
        Err(error) => Err(error),
    };
    match proven {
        Ok(proof) => {
            pages.half.take(cookie, visit.now);
            if enrolment.is_some() {
                visit.audit(Some(who(&visit, &account)), IdentityAction::SecondFactorEnrolled).await?;
            }
            sign_in::finish(&visit, proof, sign_in::Vouched::ByAccount(&account), next).await
        }
        Err(error @ SignInError::Changed) => {
            pages.half.take(cookie, visit.now);
            refused(&visit, &account, error).await?;
            Err(Fault::StartOver)
        }
        Err(error) => {
            let (status, text) = refused(&visit, &account, error).await?;
            let (token, _) = visit.form_token();
            let page = match &enrolment {
                Some(enrolment) => enrolment_at_the_door(&visit, enrolment, &token, Some(&text)),
                None => code_form(&account, &token, Some(&text)),
            };
            Ok((status, page).into_response())
        }
    }
}

fn who(visit: &Visit, account: &Account) -> Who {
    Who {
        issuer: visit.pages.web.accounts.issuer().to_owned(),
        subject: account.id.clone(),
        name: account.login.clone(),
    }
}

async fn refused(visit: &Visit, account: &Account, error: SignInError) -> Result<(StatusCode, String), Fault> {
    let (reason, status, text) = sign_in::explain(error)?;
    visit.audit(Some(who(visit, account)), IdentityAction::SignInRefused { reason }).await?;
    Ok((status, text))
}

fn code_field() -> Markup {
    html! {
        label for="code" { "Code from your authenticator" }
        input.code #code name="code" required maxlength="12" inputmode="numeric" autocomplete="one-time-code"
            pattern="[0-9 ]{6,8}" placeholder="123 456" autofocus;
    }
}

fn code_form(account: &Account, token: &str, alert: Option<&str>) -> Markup {
    layout::door(
        if alert.is_some() { "Wrong code" } else { "One more step" },
        html! {
            h1 { "One more step" }
            p.lead { "Signing in as " strong { (account.login) } }
            @if let Some(text) = alert { (layout::alert(text)) }
            form method="post" action="/sign-in/code" {
                (layout::token(token))
                (code_field())
                button.wide { "Sign in" }
            }
            p.hint { "Lost your authenticator? Your administrator can reset it. " a href="/sign-in" { "Start over" } }
        },
    )
}

fn enrolment_steps(visit: &Visit, enrolment: &Enrolment, token: &str, action: &str, alert: Option<&str>) -> Markup {
    let host = visit.pages.web.public_url.host_str().unwrap_or("controller");
    let url = enrolment.secret.url(&format!("Postern {host}"), &enrolment.account.login);
    html! {
        @if let Some(text) = alert { (layout::alert(text)) }
        ol.steps {
            li {
                p { "Scan this with an authenticator app." }
                (words::qr(&url, "QR code for your authenticator app"))
                details { summary { "Cannot scan it?" }
                    p { "Type this key, time-based, 6 digits:" }
                    p { code.secret { (enrolment.secret.grouped()) } }
                }
            }
            li {
                p { "Type the code that it shows." }
                form method="post" action=(action) {
                    (layout::token(token))
                    (code_field())
                    button.wide { "Turn it on" }
                }
            }
        }
    }
}

fn enrolment_at_the_door(visit: &Visit, enrolment: &Enrolment, token: &str, alert: Option<&str>) -> Markup {
    layout::door(
        "Set up a second factor",
        html! {
            h1 { "Set up a second factor" }
            p.lead { "Needed once. From now on, sign-in asks for a code from your phone." }
            (enrolment_steps(visit, enrolment, token, "/sign-in/code", alert))
        },
    )
}

fn enrolment_inside(person: &Person, enrolment: &Enrolment, alert: Option<&str>) -> Markup {
    layout::page(
        person,
        Place::Elsewhere,
        "Set up a second factor",
        html! {
            div.narrow {
                h1 { "Set up a second factor" }
                p.lead { "From then on, sign-in asks for a code from your phone as well." }
                (enrolment_steps(&person.visit, enrolment, &person.form_token(), "/second-factor", alert))
            }
        },
    )
}

/// Finds the local account of a person that has no second factor yet.
pub(super) async fn account_without(person: &Person) -> Result<Option<Account>, Fault> {
    let accounts = &person.visit.pages.web.accounts;
    let is_off = person.visit.pages.web.ways.local == super::LocalAccounts::Off;
    if is_off || person.who.issuer() != accounts.issuer() {
        return Ok(None);
    }
    let account = accounts.find_by_id(person.who.subject()).await?;
    Ok(account.filter(|account| account.second_factor == Credential::Missing))
}

pub(super) async fn show_enrolment(visit: Visit) -> Result<Markup, Fault> {
    let person = visit.signed_in(Next::SecondFactor)?;
    let account = account_without(&person).await?.ok_or(Fault::NotFound)?;
    must_be_fresh(&person, &account).await?;
    let pages = person.visit.pages.clone();
    // The same secret while the page is open, so that loading it twice does not spoil what was scanned.
    let waiting = pages.enrolments.peek(&person.cookie, person.visit.now, |enrolment| enrolment.clone());
    let enrolment = waiting.unwrap_or_else(|| {
        let enrolment = pages.web.accounts.begin_enrolment(account);
        pages.enrolments.put(&person.cookie, enrolment.clone(), person.visit.now);
        enrolment
    });
    Ok(enrolment_inside(&person, &enrolment, None))
}

/// A browser that somebody else finds signed in must not get a second factor of theirs.
async fn must_be_fresh(person: &Person, account: &Account) -> Result<(), Fault> {
    if passkey::is_fresh(person, account).await? {
        return Ok(());
    }
    let text = "Sign out and in again first: setting up a second factor asks for a fresh sign-in, with a passkey if you have one.";
    Err(Fault::NotPermitted(text.into()))
}

pub(super) async fn submit_enrolment(posted: Posted<Code>) -> Result<Response, Fault> {
    let person = posted.visit.signed_in(Next::SecondFactor)?;
    let account = account_without(&person).await?.ok_or(Fault::NotFound)?;
    must_be_fresh(&person, &account).await?;
    let pages = person.visit.pages.clone();
    let now = person.visit.now;
    let Some(enrolment) = pages.enrolments.peek(&person.cookie, now, |enrolment| enrolment.clone()) else {
        return Ok(Redirect::to("/second-factor").into_response());
    };
    match pages.web.accounts.finish_enrolment(&enrolment, &posted.fields.code, now).await {
        Ok(()) => {
            pages.enrolments.take(&person.cookie, now);
            let visit = &person.visit;
            visit.audit(Some(who(visit, &enrolment.account)), IdentityAction::SecondFactorEnrolled).await?;
            // The session goes on as it was: it proves a second factor only after the next sign-in.
            Ok(Redirect::to("/").into_response())
        }
        Err(error) => {
            let (status, text) = refused(&person.visit, &enrolment.account, error).await?;
            Ok((status, enrolment_inside(&person, &enrolment, Some(&text))).into_response())
        }
    }
}
