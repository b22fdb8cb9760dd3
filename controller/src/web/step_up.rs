//! Step-up: a machine of this person wants something that asks for stronger or fresher proof of sign-in, and they give it.
//!
//! ```text
//! GET /step-up/SECRET --signed in?--> which machine wants what, why --enough?--> POST ...          (confirm)
//!                                                               \--local---> POST .../prove        (password and code)
//!                                                               \--provider--> GET .../provider -> /oidc/callback -> here
//! ```
//!
//! Invariants: nothing is confirmed by following a link; the proof is of the same person (issuer and subject) as the page is
//! for, whoever it was that came back from the provider; a refused proof changes neither the browser's session nor the
//! machine's. A proof that was given anew gets a new cookie: who has seen the old one gains nothing by it.

use axum::{
    extract::Path,
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    doors::{DoorsError, StepUpPage, SteppedUp, Sufficient},
    event::{IdentityAction, Who},
    fault::Fault,
    layout::{self, Place},
    oidc, passkey, sign_in,
    visit::{Link, Next, Person, Posted, Visit, WithCookies},
    words,
};
use crate::identity::{
    Proof, SignedIn,
    local::{Account, Credential, PasswordStep, SignInError},
    random::Token,
};

#[derive(Deserialize)]
pub(super) struct Secrets {
    password: String,
    #[serde(default)]
    code: String,
}

#[derive(Deserialize)]
pub(super) struct Answer {
    credential: String,
}

fn link(text: &str) -> Result<(Link, Token), Fault> {
    let link = Link::parse(text).ok_or(Fault::NotFound)?;
    Ok((link, link.token()))
}

pub(super) async fn show(visit: Visit, Path(secret): Path<String>) -> Result<Response, Fault> {
    let (link, token) = link(&secret)?;
    let person = visit.signed_in(Next::StepUp(link))?;
    let page = look_up(&person, &token).await?;
    Ok(question(&person, link, &page, None).await?.into_response())
}

/// Looks a page up within the limits; every look-up counts.
async fn look_up(person: &Person, token: &Token) -> Result<StepUpPage, Fault> {
    let visit = &person.visit;
    if let Err(wait) = visit.pages.limits.codes_by.take(&person.key(), visit.now) {
        visit.audit(Some(Who::of(&person.who)), IdentityAction::RateLimited { page: "step-up" }).await?;
        return Err(wait.into());
    }
    visit.pages.web.doors.step_up(token, &person.who).await.map_err(gone)
}

/// A page that is not there any more needs other words than a join code.
fn gone(error: DoorsError) -> Fault {
    match error {
        DoorsError::Expired | DoorsError::NotFound => Fault::StepUpExpired,
        other @ (DoorsError::Changed | DoorsError::NotPermitted(_) | DoorsError::Unavailable(_)) => other.into(),
    }
}

/// The sign-in of this browser is enough as it is.
pub(super) async fn confirm(Path(secret): Path<String>, posted: Posted<sign_in::NoFields>) -> Result<Response, Fault> {
    let (link, token) = link(&secret)?;
    let person = posted.visit.signed_in(Next::StepUp(link))?;
    look_up(&person, &token).await?;
    let done = person.visit.pages.web.doors.confirm_step_up(&token, &person.who).await.map_err(gone)?;
    Ok(opened(&person, &done).into_response())
}

/// Password and code of a local account, given anew.
pub(super) async fn prove(Path(secret): Path<String>, posted: Posted<Secrets>) -> Result<Response, Fault> {
    let (link, token) = link(&secret)?;
    let Posted { visit, fields } = posted;
    let person = visit.signed_in(Next::StepUp(link))?;
    let page = look_up(&person, &token).await?;
    let account = local_account(&person).await?.ok_or(Fault::NotFound)?;
    match proven(&person, &account, &fields).await {
        Ok((proof, account)) => finish(person, proof, Some(&account), link, &page).await,
        Err(error) => {
            let (reason, status, text) = sign_in::explain(error)?;
            person.visit.audit(Some(Who::of(&person.who)), IdentityAction::SignInRefused { reason }).await?;
            let shown = question(&person, link, &page, Some(&text)).await?;
            Ok((status, shown).into_response())
        }
    }
}

/// A passkey of the same person.
pub(super) async fn by_passkey(Path(secret): Path<String>, posted: Posted<Answer>) -> Result<Response, Fault> {
    let (link, token) = link(&secret)?;
    let Posted { visit, fields } = posted;
    let person = visit.signed_in(Next::StepUp(link))?;
    let page = look_up(&person, &token).await?;
    local_account(&person).await?.ok_or(Fault::NotFound)?;
    let account = passkey::answered(&person.visit, &person.cookie, &fields.credential).await?;
    let proof = person.visit.pages.web.accounts.prove_passkey(&account, person.visit.address, person.visit.now).await;
    let proof = proof.map_err(|_| Fault::StartOver)?;
    finish(person, proof, Some(&account), link, &page).await
}

async fn local_account(person: &Person) -> Result<Option<Account>, Fault> {
    let accounts = &person.visit.pages.web.accounts;
    let is_off = person.visit.pages.web.ways.local == super::LocalAccounts::Off;
    if is_off || person.who.issuer() != accounts.issuer() {
        return Ok(None);
    }
    Ok(accounts.find_by_id(person.who.subject()).await?)
}

async fn proven(person: &Person, account: &Account, given: &Secrets) -> Result<(Proof, Account), SignInError> {
    let (accounts, visit) = (&person.visit.pages.web.accounts, &person.visit);
    let step = accounts.check_password(&account.login, &given.password, visit.address, visit.now).await?;
    let (account, second) = match step {
        PasswordStep::SecondFactor(account) => {
            accounts.check_code(&account, &given.code, visit.now).await?;
            (account, Credential::Set)
        }
        PasswordStep::Done(account) => (account, Credential::Missing),
    };
    let proof = accounts.prove(&account, second, visit.address, visit.now).await?;
    Ok((proof, account))
}

/// Takes a fresh proof over: into the browser's session, under a new cookie, and into the machine's.
async fn finish(
    mut person: Person,
    proof: Proof,
    account: Option<&Account>,
    link: Link,
    page: &StepUpPage,
) -> Result<Response, Fault> {
    let (cookie, who) = renew(&person.visit, &person.cookie, &person.who, proof, account).await?;
    let done = person.visit.pages.web.doors.confirm_step_up(&link.token(), &who).await;
    person.who = who;
    person.cookie = cookie;
    let shown = match done {
        Ok(done) => opened(&person, &done).into_response(),
        Err(DoorsError::NotPermitted(why)) => {
            (StatusCode::FORBIDDEN, question(&person, link, page, Some(&why)).await?).into_response()
        }
        Err(other) => return Err(gone(other)),
    };
    Ok(shown.with_session(&person.cookie, &person.who, person.visit.now))
}

/// Gives a browser's session the proof that the same person has just given anew, under a new cookie.
pub(super) async fn renew(
    visit: &Visit,
    cookie: &Token,
    who: &SignedIn,
    mut proof: Proof,
    account: Option<&Account>,
) -> Result<(Token, SignedIn), Fault> {
    if (proof.issuer.as_str(), proof.subject.as_str()) != (who.issuer(), who.subject()) {
        visit.audit(Some(Who::of(who)), IdentityAction::SignInRefused { reason: "step_up_other_person" }).await?;
        return Err(Fault::NotPermitted(format!(
            "You are signed in here as {}, and proved that you are somebody else. Nothing was changed.",
            who.name()
        )));
    }
    // What the provider does not say anew stays: a logout still finds the session.
    proof.sid = proof.sid.or_else(|| who.provider_session().map(str::to_owned));
    let sessions = &visit.pages.web.sessions;
    let renewed = sessions.renew(cookie, proof).await?;
    let (token, who) = renewed.ok_or(Fault::SignInFirst(Next::Home))?;
    if !sign_in::still_stands(visit, &who, account).await? {
        sessions.close(&token).await?;
        return Err(Fault::NotPermitted("Your account was changed meanwhile. Sign in again.".into()));
    }
    sign_in::admitted(visit, &token, &who).await?;
    let event = IdentityAction::ProvenAnew { session: who.session(), amr: who.amr().to_vec() };
    if let Err(fault) = visit.audit(Some(Who::of(&who)), event).await {
        sessions.close(&token).await?;
        return Err(fault);
    }
    Ok((token, who))
}

/// Sends the person to their provider, which is asked to have them prove who they are anew.
pub(super) async fn to_provider(visit: Visit, Path(secret): Path<String>) -> Result<Response, Fault> {
    let (link, token) = link(&secret)?;
    let person = visit.signed_in(Next::StepUp(link))?;
    let page = look_up(&person, &token).await?;
    oidc::prove_anew(person, Next::StepUp(link), &page.demand).await
}

async fn question(person: &Person, link: Link, page: &StepUpPage, alert: Option<&str>) -> Result<Markup, Fault> {
    let account = local_account(person).await?;
    let now = person.visit.now;
    let here = format!("/step-up/{link}");
    Ok(layout::page_with_passkeys(
        person,
        Place::Elsewhere,
        "Is it you?",
        html! {
            div.narrow {
                h1 { "Is it you?" }
                p.lead { strong { (page.machine) } " wants to reach " strong { (page.resource) } ", which needs "
                    (page.demand.words()) "." }
                @if let Some(text) = alert { (layout::alert(text)) }
                dl.facts {
                    dt { "Machine" } dd.name { (page.machine) }
                    @if let Some(address) = page.address {
                        dt { "Speaks from" } dd {
                            code { (address) }
                            @if address == person.visit.address { span.tag.good { "your address" } }
                            @else { span.tag.care { "not your address" } }
                        }
                    }
                    dt { "Resource" } dd { (page.resource) @for service in &page.services { " " span.tag { (service) } } }
                    dt { "Rule" } dd { (page.rule) }
                    dt { "Asked" } dd { (words::ago(page.asked_at, now)) ", until " (words::until(page.expires, now)) }
                }
                div.warning role="note" {
                    p { strong { "Confirm only what you are just doing on that machine." } }
                    p { "If somebody sent you this link, close the page: the machine would be let in as you." }
                }
                @match (page.sufficient, &account) {
                    (Sufficient::Yes, _) => form method="post" action=(here) {
                        (layout::token(&person.form_token()))
                        button.wide { "Yes, it is me" }
                    },
                    (Sufficient::No, Some(account)) => (local_form(person, account, &here)),
                    (Sufficient::No, None) => @match &person.visit.pages.web.ways.provider {
                        Some(provider) => p { a.button.wide href={ (here) "/provider" } { "Confirm with " (provider.label()) } },
                        None => p { "There is no way to prove it. Tell your administrator." },
                    },
                }
            }
        },
    ))
}

fn local_form(person: &Person, account: &Account, here: &str) -> Markup {
    let passkey = passkey::offer(&person.visit, &person.cookie);
    html! {
        @if let Some(options) = passkey {
            @let hidden = layout::token(&person.form_token());
            (passkey::form(&options, &format!("{here}/passkey"), hidden, "Confirm with a passkey"))
        }
        form method="post" action={ (here) "/prove" } {
            (layout::token(&person.form_token()))
            label for="password" { "Password" }
            input #password name="password" type="password" required maxlength="256" autocomplete="current-password" autofocus;
            @if account.second_factor == Credential::Set {
                label for="code" { "Code from your authenticator" }
                input.code #code name="code" required maxlength="12" inputmode="numeric" autocomplete="one-time-code"
                    pattern="[0-9 ]{6,8}" placeholder="123 456";
            }
            button.wide { "Confirm" }
        }
        @if account.second_factor == Credential::Missing {
            p.hint { "You have no second factor yet. " a href="/second-factor" { "Set one up" } ", then come back." }
        }
    }
}

fn opened(person: &Person, done: &SteppedUp) -> Markup {
    layout::page(
        person,
        Place::Elsewhere,
        "It is open",
        html! {
            div.narrow {
                h1 { (done.resource) " is open" }
                p.lead { "Go on at " strong { (done.machine) } ": what you tried there goes through now. You can close this page." }
                p { a.button.secondary href="/" { "Your resources" } }
            }
        },
    )
}

/// Returns to the page after the provider; what it proved shows there.
pub(super) fn back(link: Link) -> Redirect {
    Next::StepUp(link).redirect()
}
