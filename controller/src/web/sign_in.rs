//! Sign in and out.

use std::sync::Arc;

use axum::{
    extract::{Query, State},
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    HalfSignIn, LocalAccounts, Pages,
    doors::TurnedAway,
    event::{IdentityAction, Who},
    fault::Fault,
    layout, passkey,
    visit::{Next, Posted, Visit, WithCookies},
    words,
};
use crate::{
    identity::{
        Proof, SignedIn,
        local::{Account, AccountStatus, Credential, PasswordStep, SignInError},
        random::Token,
    },
    signals::provider::Vouching,
};

#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    next: String,
}

#[derive(Deserialize)]
pub(super) struct Credentials {
    login: String,
    password: String,
    #[serde(default)]
    next: String,
}

pub(super) async fn show(visit: Visit, Query(asked): Query<Asked>) -> Response {
    let next = Next::parse(&asked.next);
    if visit.session.is_some() {
        return next.redirect().into_response();
    }
    let (token, new) = visit.form_token();
    let passkey = new.as_ref().or(visit.visit.as_ref()).and_then(|cookie| passkey::offer(&visit, cookie));
    let page = form(&visit.pages, &token, next, "", None, passkey.as_deref());
    match new {
        Some(cookie) => page.with_visit(&cookie),
        None => page.into_response(),
    }
}

fn form(pages: &Pages, token: &str, next: Next, login: &str, alert: Option<&str>, passkey: Option<&str>) -> Markup {
    let why = match next {
        Next::Join(_) => "to let a machine in",
        Next::StepUp(_) => "to confirm that it is you",
        Next::Requests => "to decide about requests",
        Next::Home | Next::WireGuard | Next::SecondFactor | Next::Passkeys => "to see what you may reach",
    };
    layout::door_with_passkeys(
        if alert.is_some() { "Not signed in" } else { "Sign in" },
        html! {
            h1 { "Sign in" }
            p.lead { (why) }
            @if let Some(provider) = &pages.web.ways.provider {
                p { a.button.wide href={ "/oidc/start?next=" (next.encoded()) } { "Sign in with " (provider.label()) } }
            }
            @if pages.web.ways.local != LocalAccounts::Off {
                @if pages.web.ways.provider.is_some() { p.or { span { "or with a local account" } } }
                @if let Some(text) = alert { (layout::alert(text)) }
                form method="post" action="/sign-in" {
                    (layout::token(token))
                    input type="hidden" name="next" value=(next.path());
                    label for="login" { "Login" }
                    input #login name="login" value=(login) required maxlength="120" autocomplete="username"
                        autocapitalize="none" spellcheck="false" autofocus[login.is_empty()];
                    label for="password" { "Password" }
                    input #password name="password" type="password" required maxlength="256"
                        autocomplete="current-password" autofocus[!login.is_empty()];
                    button.wide { "Sign in" }
                }
                @if let Some(options) = passkey {
                    @let hidden = html! { (layout::token(token)) input type="hidden" name="next" value=(next.path()); };
                    (passkey::form(options, "/sign-in/passkey", hidden, "Sign in with a passkey"))
                }
            } @else if pages.web.ways.provider.is_none() {
                p { "No way to sign in is set up. Tell your administrator." }
            }
        },
    )
}

pub(super) async fn submit(posted: Posted<Credentials>) -> Result<Response, Fault> {
    let Posted { visit, fields } = posted;
    let pages = visit.pages.clone();
    let next = Next::parse(&fields.next);
    if pages.web.ways.local == LocalAccounts::Off {
        return Err(Fault::NotFound);
    }
    let step = pages.web.accounts.check_password(&fields.login, &fields.password, visit.address, visit.now).await;
    let account = match step {
        Ok(PasswordStep::Done(account)) if pages.web.ways.local == LocalAccounts::SecondFactorRequired => {
            // A password alone must not choose the second factor of an account that has one.
            if pages.web.accounts.has_passkey(&account.id).await? {
                return refused(&visit, next, &fields.login, SignInError::Passkey).await;
            }
            let enrolment = Some(pages.web.accounts.begin_enrolment(account.clone()));
            return Ok(half_way(&visit, HalfSignIn { account, enrolment, next }));
        }
        Ok(PasswordStep::SecondFactor(account)) => {
            return Ok(half_way(&visit, HalfSignIn { account, enrolment: None, next }));
        }
        Ok(PasswordStep::Done(account)) => account,
        Err(error) => return refused(&visit, next, &fields.login, error).await,
    };
    match pages.web.accounts.prove(&account, Credential::Missing, visit.address, visit.now).await {
        Ok(proof) => finish(&visit, proof, Vouched::ByAccount(&account), next).await,
        Err(error) => refused(&visit, next, &fields.login, error).await,
    }
}

/// Keeps a sign-in whose password was right under a new visit cookie, and asks for the second factor.
fn half_way(visit: &Visit, half: HalfSignIn) -> Response {
    let cookie = Token::draw();
    visit.pages.half.put(&cookie, half, visit.now);
    Redirect::to("/sign-in/code").with_visit(&cookie)
}

/// Who vouches for a sign-in.
#[derive(Clone, Copy)]
pub(super) enum Vouched<'a> {
    /// The local account as its password was given.
    ByAccount(&'a Account),
    /// The provider, which can be asked again.
    ByProvider(&'a Vouching),
}

/// Notes what the provider handed over beside the proof.
pub(super) async fn note(visit: &Visit, who: &SignedIn, vouching: &Vouching) -> Result<(), Fault> {
    let vouchers = &visit.pages.web.vouchers;
    Ok(vouchers.put(who.session(), (who.issuer(), who.subject()), vouching, visit.now).await?)
}

/// Opens a session with a new cookie; it is in the audit log before the cookie is handed out.
pub(super) async fn finish(visit: &Visit, proof: Proof, vouched: Vouched<'_>, next: Next) -> Result<Response, Fault> {
    let sessions = &visit.pages.web.sessions;
    if let Some((old, who)) = &visit.session {
        sessions.close(old).await?;
        visit.pages.web.doors.signed_out(who).await?;
    }
    let (token, who) = sessions.open(proof, visit.now).await?;
    let account = match vouched {
        Vouched::ByAccount(account) => Some(account),
        Vouched::ByProvider(vouching) => {
            if let Err(fault) = note(visit, &who, vouching).await {
                sessions.close(&token).await?;
                return Err(fault);
            }
            None
        }
    };
    if !still_stands(visit, &who, account).await? {
        sessions.close(&token).await?;
        visit.audit(Some(Who::of(&who)), IdentityAction::SignInRefused { reason: "changed" }).await?;
        return Err(Fault::NotPermitted("Your account was changed while you signed in. Sign in again.".into()));
    }
    admitted(visit, &token, &who).await?;
    let event = IdentityAction::SignedIn { session: who.session(), amr: who.amr().to_vec() };
    if let Err(fault) = visit.audit(Some(Who::of(&who)), event).await {
        sessions.close(&token).await?;
        return Err(fault);
    }
    Ok(next.redirect().with_session(&token, &who, visit.now))
}

/// Turns away whom the provider or an administrator keeps out, and whose sign-in comes from before something that ended it. It is asked after
/// the session is in the store: somebody who is put out meanwhile either shows here, or their session is found and ended.
pub(super) async fn admitted(visit: &Visit, cookie: &Token, who: &SignedIn) -> Result<(), Fault> {
    let why = match visit.pages.web.doors.admit(who).await {
        Ok(None) => return Ok(()),
        Ok(Some(why)) => Ok(why),
        Err(error) => Err(error),
    };
    visit.pages.web.sessions.close(cookie).await?;
    let why = why?;
    visit.audit(Some(Who::of(who)), IdentityAction::SignInRefused { reason: why.word() }).await?;
    Err(match why {
        TurnedAway::NotProvisioned(why) | TurnedAway::Stopped(why) => {
            Fault::NotPermitted(format!("You may not sign in here: {why}. Ask your administrator."))
        }
        TurnedAway::Overtaken(why) => Fault::Overtaken(why),
    })
}

/// Tells whether a local account is still what was proven, after its session is in the store: an administrator's change
/// either shows here or finds the session and ends it.
pub(super) async fn still_stands(visit: &Visit, who: &SignedIn, before: Option<&Account>) -> Result<bool, Fault> {
    let accounts = &visit.pages.web.accounts;
    if who.issuer() != accounts.issuer() {
        return Ok(true); // the provider vouched for them
    }
    let account = accounts.find_by_id(who.subject()).await?;
    Ok(account.is_some_and(|now| {
        now.status == AccountStatus::Enabled
            && Some(&now.groups) == who.groups()
            && before.is_some_and(|before| now.has_password_of(before))
    }))
}

/// Shows the form again with the refusal, and records it.
async fn refused(visit: &Visit, next: Next, login: &str, error: SignInError) -> Result<Response, Fault> {
    let (reason, status, text) = explain(error)?;
    let name: String = login.chars().filter(|c| !c.is_control()).take(120).collect();
    let who = Who { issuer: visit.pages.web.accounts.issuer().to_owned(), subject: String::new(), name };
    visit.audit(Some(who), IdentityAction::SignInRefused { reason }).await?;
    let login: String = login.chars().take(120).collect();
    let (token, _) = visit.form_token();
    let passkey = visit.visit.as_ref().and_then(|cookie| passkey::offer(visit, cookie));
    Ok((status, form(&visit.pages, &token, next, &login, Some(&text), passkey.as_deref())).into_response())
}

/// Tells a refusal as a constant word for the log, a status, and a text for the person.
pub(super) fn explain(error: SignInError) -> Result<(&'static str, StatusCode, String), Fault> {
    Ok(match error {
        SignInError::Wrong => (
            "password",
            StatusCode::FORBIDDEN,
            "Login or password is wrong. After some tries there is a pause; your administrator can send you a link to \
             set a new password."
                .into(),
        ),
        SignInError::Code => (
            "code",
            StatusCode::FORBIDDEN,
            "This code is wrong, expired, or was used already. Wait for the next one and type it.".into(),
        ),
        SignInError::Changed => (
            "changed",
            StatusCode::FORBIDDEN,
            "The password was changed after you gave it. Start over with the new one.".into(),
        ),
        SignInError::Passkey => (
            "passkey_wanted",
            StatusCode::FORBIDDEN,
            "The password alone is not enough here: sign in with your passkey.".into(),
        ),
        SignInError::Disabled => {
            ("disabled", StatusCode::FORBIDDEN, "This account is disabled. Ask your administrator.".into())
        }
        SignInError::TooMany(wait) => (
            "too_many",
            StatusCode::TOO_MANY_REQUESTS,
            format!("Too many attempts. Wait {} and try again.", words::span(wait.retry_after)),
        ),
        SignInError::Store(error) => return Err(error.into()),
    })
}

pub(super) async fn sign_out(State(_): State<Arc<Pages>>, posted: Posted<NoFields>) -> Result<Response, Fault> {
    let visit = posted.visit;
    if let Some((cookie, who)) = &visit.session {
        visit.pages.web.sessions.close(cookie).await?;
        visit.pages.web.doors.signed_out(who).await?;
        visit.audit(Some(Who::of(who)), IdentityAction::SignedOut { session: who.session() }).await?;
    }
    let page = layout::door(
        "Signed out",
        html! {
            h1 { "Signed out" }
            p { "This browser is signed out, and stock WireGuard clients that you let in from it are closed." }
            p { "Machines that you confirmed stay signed in until their session ends; run " code { "postern logout" } " there." }
            p { a.button href="/sign-in" { "Sign in again" } }
        },
    );
    Ok(page.without_session())
}

/// A form with nothing but its token.
#[derive(Deserialize)]
pub(super) struct NoFields {}
