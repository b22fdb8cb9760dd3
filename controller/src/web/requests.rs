//! Requests for access that wait for this person's decision.

use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use postern_common::{diagnostics::HumanDuration, id::RequestId, protocol::AccessRequestState};
use serde::Deserialize;

use super::{
    doors::DoorsError,
    fault::Fault,
    layout::{self, Place},
    visit::{Next, Person, Posted, Visit},
    words,
};
use crate::stream::{Decision, RequestView};

#[derive(Deserialize)]
pub(super) struct Decided {
    request: String,
    decision: String,
    reason: String,
}

pub(super) async fn show(visit: Visit) -> Result<Markup, Fault> {
    let person = visit.signed_in(Next::Requests)?;
    page(&person, None).await
}

async fn page(person: &Person, alert: Option<&str>) -> Result<Markup, Fault> {
    let waiting = person.visit.pages.web.doors.requests(&person.who).await?;
    Ok(layout::page(
        person,
        Place::Requests,
        "Requests",
        html! {
            h1 { "Requests for you to decide" }
            p.lead { "What waits for an answer, and what was given and can be taken back." }
            @if let Some(text) = alert { (layout::alert(text)) }
            @if waiting.is_empty() {
                p.empty { "No request waits for your decision. People ask with " code { "postern request" } " on their machine." }
            } @else {
                ul.cards { @for view in &waiting { (card(person, view)) } }
            }
        },
    ))
}

fn card(person: &Person, view: &RequestView) -> Markup {
    let record = &view.record;
    let label = format!("reason-{}", record.id);
    let given = match &record.state {
        AccessRequestState::Approved { by, until, .. } => Some((by, *until)),
        AccessRequestState::Waiting { .. } | AccessRequestState::Refused { .. } => None,
    };
    html! {
        li.card {
            h3 { (view.subject_name) " asks for " (record.resource) }
            p { "On " strong { (view.machine) } ", for " strong { (HumanDuration::rounded(record.length())) }
                ", asked " (words::ago(record.asked, person.visit.now)) }
            p { "Reason: " (record.reason) }
            @if let Some((by, until)) = given {
                p { span.tag.good { "approved" } " by " (by) ", ends " (words::until(until, person.visit.now)) }
            }
            p.hint { "Rule: " (record.rule) }
            form method="post" action="/requests/decide" {
                (layout::token(&person.form_token()))
                input type="hidden" name="request" value=(record.id);
                label for=(label) { "Reason (recorded, and shown to the person who asked)" }
                input #(label) name="reason" required maxlength="500" autocomplete="off";
                div.actions {
                    @if given.is_some() {
                        button.danger.small name="decision" value="withdraw" { "Take it back now" }
                    } @else {
                        button.small name="decision" value="approve" { "Approve" }
                        button.danger.small name="decision" value="refuse" { "Refuse" }
                    }
                }
            }
        }
    }
}

pub(super) async fn decide(posted: Posted<Decided>) -> Result<Response, Fault> {
    let person = posted.visit.signed_in(Next::Requests)?;
    let request: RequestId = posted.fields.request.parse().map_err(|_| Fault::BadForm)?;
    let decision = match posted.fields.decision.as_str() {
        "approve" => Decision::Approve,
        "refuse" => Decision::Refuse,
        "withdraw" => Decision::Withdraw,
        _ => return Err(Fault::BadForm),
    };
    let decided = person.visit.pages.web.doors.decide_request(request, decision, posted.fields.reason, &person.who);
    match decided.await {
        Ok(()) => Ok(Redirect::to("/requests").into_response()),
        Err(DoorsError::NotPermitted(why)) => Ok(page(&person, Some(&why)).await?.into_response()),
        Err(DoorsError::Expired) => Ok(page(&person, Some("That request is over.")).await?.into_response()),
        Err(other) => Err(other.into()),
    }
}
