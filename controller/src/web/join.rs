//! Confirm a machine: the person types the code that the machine shows, sees which machine asks, and decides.
//!
//! The threat is device-code phishing (RFC 8628 §5.4): somebody sends *their* code and hopes that the person confirms
//! it. So nothing is confirmed by following a link; the page names the machine, its key's fingerprint, the address
//! and the time from which it asked, warns, and the form carries the key that was shown, so that no other machine
//! can slip in between.

use axum::{
    extract::Query,
    http::StatusCode,
    response::{IntoResponse, Redirect, Response},
};
use maud::{Markup, html};
use postern_common::key::DevicePublicKey;
use serde::Deserialize;

use super::{
    doors::{Acquaintance, DoorsError, PendingJoin},
    event::{IdentityAction, Who},
    fault::Fault,
    layout::{self, Place},
    visit::{Next, Person, Posted, Visit},
    words,
};
use crate::identity::{rate::AddressPrefix, user_code::UserCode};

#[derive(Deserialize)]
pub(super) struct Asked {
    #[serde(default)]
    code: Option<String>,
}

#[derive(Deserialize)]
pub(super) struct Typed {
    code: String,
}

#[derive(Deserialize)]
pub(super) struct Decision {
    pub(super) code: String,
    /// The key of the machine that was shown, base 64.
    pub(super) key: String,
}

pub(super) async fn show(visit: Visit, Query(asked): Query<Asked>) -> Result<Response, Fault> {
    let typed = asked.code.unwrap_or_default();
    let code = typed.parse::<UserCode>().ok();
    let person = visit.signed_in(Next::Join(code))?;
    match (code, typed.is_empty()) {
        (None, true) => Ok(form(&person, "", None).into_response()),
        (None, false) => Ok(not_a_code(&person, &typed)),
        (Some(code), _) => match look_up(&person, code).await? {
            Ok(join) => Ok(question(&person, code, &join).into_response()),
            Err(refusal) => Ok(refusal),
        },
    }
}

pub(super) async fn submit_code(posted: Posted<Typed>) -> Result<Response, Fault> {
    let person = posted.visit.signed_in(Next::Join(None))?;
    match posted.fields.code.parse::<UserCode>() {
        Ok(code) => Ok(Redirect::to(&Next::Join(Some(code)).path()).into_response()),
        Err(_) => Ok(not_a_code(&person, &posted.fields.code)),
    }
}

fn not_a_code(person: &Person, typed: &str) -> Response {
    let typed: String = typed.chars().take(32).collect();
    let text = "A code has four letters and four digits, like KTRM-4821.";
    (StatusCode::UNPROCESSABLE_ENTITY, form(person, &typed, Some(text))).into_response()
}

/// Looks a code up within the limits; every look-up counts, so that somebody with one good code cannot go on guessing.
async fn look_up(person: &Person, code: UserCode) -> Result<Result<PendingJoin, Response>, Fault> {
    let visit = &person.visit;
    let limits = &visit.pages.limits;
    let taken = limits.codes_by.take(&person.key(), visit.now);
    let taken = taken.and_then(|()| limits.codes_from.take(&AddressPrefix::from(visit.address), visit.now));
    if let Err(wait) = taken {
        visit.audit(Some(Who::of(&person.who)), IdentityAction::RateLimited { page: "join" }).await?;
        return Err(wait.into());
    }
    match visit.pages.web.doors.pending_join(code, &person.who).await {
        Ok(join) => Ok(Ok(join)),
        Err(DoorsError::NotFound) => {
            let text = "No machine waits under this code. Check it, or run postern up again for a new one.";
            Ok(Err((StatusCode::NOT_FOUND, form(person, &code.to_string(), Some(text))).into_response()))
        }
        Err(other) => Err(other.into()),
    }
}

fn form(person: &Person, typed: &str, alert: Option<&str>) -> Markup {
    layout::page(
        person,
        Place::Join,
        if alert.is_some() { "No such code" } else { "Add a machine" },
        html! {
            div.narrow {
                h1 { "Add a machine" }
                p.lead { "Run " code { "postern up " (person.visit.pages.web.join_link) }
                    " on it, and type the code that it shows." }
                @if let Some(text) = alert { (layout::alert(text)) }
                form method="post" action="/join" {
                    (layout::token(&person.form_token()))
                    label for="code" { "Code" }
                    input.code #code name="code" value=(typed) required maxlength="32" autocomplete="off"
                        autocapitalize="characters" spellcheck="false" placeholder="KTRM-4821" autofocus;
                    button.wide { "Look it up" }
                }
            }
        },
    )
}

fn question(person: &Person, code: UserCode, join: &PendingJoin) -> Markup {
    let now = person.visit.now;
    layout::page(
        person,
        Place::Join,
        "Is this your machine?",
        html! {
            div.narrow {
                h1 { "Is this your machine?" }
                p.lead { "It will reach what you may reach, as " strong { (person.who.name()) } "." }
                dl.facts {
                    dt { "Machine" } dd.name { (join.machine) }
                    dt { "Key" } dd { code.fingerprint { (join.device_key.fingerprint()) } }
                    dt { "Asks from" } dd {
                        code { (join.address) }
                        @if join.address == person.visit.address { span.tag.good { "your address" } }
                        @else { span.tag.care { "not your address" } }
                    }
                    dt { "Since" } dd { (words::ago(join.asked_at, now)) }
                    dt { "Code" } dd { code { (code) } ", until " (words::until(join.expires, now)) }
                    dt { "Known" } dd { (match join.acquaintance {
                        Acquaintance::New => "No, it asks for the first time",
                        Acquaintance::Yours => "Yes, as yours",
                        Acquaintance::SomebodyElses => "Yes, as somebody else’s; it becomes yours",
                    }) }
                }
                div.warning role="note" {
                    p { strong { "Confirm only a machine in front of you." } }
                    p { "If somebody sent you this code or this link, refuse: they would get in as you. Compare the key \
                         with the one on the machine’s screen." }
                }
                div.choice {
                    form method="post" action="/join/refuse" {
                        (decision(person, code, join))
                        button.secondary.wide { "Refuse" }
                    }
                    form method="post" action="/join/confirm" {
                        (decision(person, code, join))
                        button.wide { "Yes, let it in" }
                    }
                }
            }
        },
    )
}

fn decision(person: &Person, code: UserCode, join: &PendingJoin) -> Markup {
    html! {
        (layout::token(&person.form_token()))
        input type="hidden" name="code" value=(code);
        input type="hidden" name="key" value=(join.device_key);
    }
}

pub(super) async fn confirm(posted: Posted<Decision>) -> Result<Response, Fault> {
    let person = posted.visit.signed_in(Next::Join(None))?;
    let code: UserCode = posted.fields.code.parse().map_err(|_| Fault::BadForm)?;
    let shown: DevicePublicKey = posted.fields.key.parse().map_err(|_| Fault::BadForm)?;
    limit_decisions(&person).await?;
    let joined = match person.visit.pages.web.doors.confirm_join(code, shown, &person.who).await {
        Err(DoorsError::NotFound) => return Err(Fault::CodeExpired),
        other => other?,
    };
    let now = person.visit.now;
    let page = layout::page(
        &person,
        Place::Join,
        "The machine is in",
        html! {
            div.narrow.done {
                p.tick aria-hidden="true" { "✓" }
                h1 { (joined.machine) " is in" }
                p.lead { "Signed in until " (words::until(joined.until, now)) ". You can close this page and go back to the machine." }
                p { a.button href="/" { "See what it may reach" } }
            }
        },
    );
    Ok(page.into_response())
}

pub(super) async fn refuse(posted: Posted<Decision>) -> Result<Response, Fault> {
    let person = posted.visit.signed_in(Next::Join(None))?;
    let code: UserCode = posted.fields.code.parse().map_err(|_| Fault::BadForm)?;
    limit_decisions(&person).await?;
    match person.visit.pages.web.doors.refuse_join(code, &person.who).await {
        Ok(()) | Err(DoorsError::NotFound | DoorsError::Expired) => {}
        Err(other) => return Err(other.into()),
    }
    let page = layout::page(
        &person,
        Place::Join,
        "Refused",
        html! {
            div.narrow {
                h1 { "Refused" }
                p.lead { "The machine was turned away, and the code is spent." }
                p { "If somebody sent you the code, tell your administrator: they tried to get in as you." }
                p { a.button.secondary href="/" { "Go to your resources" } }
            }
        },
    );
    Ok(page.into_response())
}

/// A decision can be sent without looking first, so it counts as a guess too.
async fn limit_decisions(person: &Person) -> Result<(), Fault> {
    let visit = &person.visit;
    visit.pages.limits.codes_by.take(&person.key(), visit.now)?;
    visit.pages.limits.codes_from.take(&AddressPrefix::from(visit.address), visit.now)?;
    Ok(())
}
