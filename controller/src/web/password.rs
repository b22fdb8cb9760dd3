//! Setting a password by a one-time link.

use axum::{
    extract::Path,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use maud::{Markup, html};
use serde::Deserialize;

use super::{
    LocalAccounts,
    event::{IdentityAction, Who},
    fault::Fault,
    layout,
    visit::{Posted, Visit, WithCookies},
};
use crate::identity::{
    local::{Account, AccountError, password},
    random::{self, Token},
    rate::AddressPrefix,
};

#[derive(Deserialize)]
pub(super) struct NewPassword {
    password: String,
    again: String,
}

fn link(visit: &Visit, text: &str) -> Result<Token, Fault> {
    if visit.pages.web.ways.local == LocalAccounts::Off {
        return Err(Fault::NotFound);
    }
    visit.pages.limits.links.take(&AddressPrefix::from(visit.address), visit.now)?;
    Token::presented(text).ok_or(Fault::LinkExpired)
}

fn fault(error: AccountError) -> Fault {
    match error {
        AccountError::Link | AccountError::Unknown(_) => Fault::LinkExpired,
        AccountError::Store(error) => error.into(),
        AccountError::Login(_) | AccountError::Group(_) | AccountError::Taken(_) | AccountError::Weak(_) => {
            Fault::Bug("setting a password by a link met an error of another request")
        }
    }
}

pub(super) async fn show(visit: Visit, Path(text): Path<String>) -> Result<Response, Fault> {
    let link = link(&visit, &text)?;
    let account = visit.pages.web.accounts.look_at_link(&link, visit.now).await.map_err(fault)?;
    let (token, new) = visit.form_token();
    let page = form(&account, &link, &token, None);
    Ok(match new {
        Some(cookie) => page.with_visit(&cookie),
        None => page.into_response(),
    })
}

/// Who closes the window must not keep those in who knew the old password: what was begun is done to its end.
pub(super) async fn submit(Path(text): Path<String>, posted: Posted<NewPassword>) -> Result<Response, Fault> {
    let done = super::to_its_end(set(text, posted)).await;
    done.unwrap_or(Err(Fault::Bug("setting a password by a link broke off")))
}

async fn set(text: String, posted: Posted<NewPassword>) -> Result<Response, Fault> {
    let Posted { visit, fields } = posted;
    let link = link(&visit, &text)?;
    let accounts = &visit.pages.web.accounts;
    let set = if random::same(&fields.password, &fields.again) {
        accounts.set_password_by_link(&link, &fields.password, visit.now).await
    } else {
        accounts.look_at_link(&link, visit.now).await.map_err(fault)?;
        return again(&visit, &link, "The two passwords differ.").await;
    };
    match set {
        Ok((account, passkeys)) => {
            let who = Who { issuer: accounts.issuer().to_owned(), subject: account.id, name: account.login };
            // Whoever knew the old password may have let machines and stock clients in.
            visit.pages.web.doors.credentials_set(&who.issuer, &who.subject).await?;
            // A sign-in that was ending at the same moment.
            visit.pages.web.sessions.end_proven_until(&who.issuer, &who.subject, visit.now).await?;
            visit.audit(Some(who), IdentityAction::PasswordSet { passkeys_removed: passkeys }).await?;
            let page = layout::door(
                "Password set",
                html! {
                    h1 { "Password set" }
                    p { "The link is used up. Where you were signed in before, in browsers and on machines, you are signed out now." }
                    @if passkeys > 0 {
                        p { "Your passkeys were removed, because somebody who knew the old password may have added one. Add yours again once you are signed in." }
                    }
                    p { a.button href="/sign-in" autofocus { "Sign in" } }
                },
            );
            Ok(page.without_session())
        }
        Err(AccountError::Weak(why)) => again(&visit, &link, &capitalised(&why.to_string())).await,
        Err(error) => Err(fault(error)),
    }
}

async fn again(visit: &Visit, link: &Token, why: &str) -> Result<Response, Fault> {
    let account = visit.pages.web.accounts.look_at_link(link, visit.now).await.map_err(fault)?;
    let (token, _) = visit.form_token();
    Ok((StatusCode::UNPROCESSABLE_ENTITY, form(&account, link, &token, Some(why))).into_response())
}

/// Makes a sentence of an error's words.
fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|c| c.to_uppercase().to_string()).unwrap_or_default();
    format!("{first}{}.", letters.as_str())
}

fn form(account: &Account, link: &Token, token: &str, alert: Option<&str>) -> Markup {
    layout::door(
        if alert.is_some() { "Choose another password" } else { "Choose a password" },
        html! {
            h1 { "Choose a password" }
            p.lead { "for " strong { (account.login) } }
            @if let Some(text) = alert { (layout::alert(text)) }
            form method="post" action={ "/password/" (link.expose()) } {
                (layout::token(token))
                input type="hidden" name="username" value=(account.login) autocomplete="username";
                label for="password" { "New password" }
                input #password name="password" type="password" required minlength=(password::MIN_CHARS)
                    maxlength=(password::MAX_BYTES) autocomplete="new-password" aria-describedby="rule" autofocus;
                p.hint #rule { "At least " (password::MIN_CHARS) " characters. A few words make a good one." }
                label for="again" { "Once more" }
                input #again name="again" type="password" required maxlength=(password::MAX_BYTES)
                    autocomplete="new-password";
                button.wide { "Set password" }
            }
        },
    )
}
