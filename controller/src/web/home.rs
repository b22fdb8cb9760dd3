//! My resources, and my machines.

use axum::response::{IntoResponse, Redirect, Response};
use maud::{Markup, html};
use postern_common::{
    id::{DeviceId, SessionId},
    net::{Protocol, Service},
};
use serde::Deserialize;

use super::{
    doors::{DeviceKind, DoorsError, GroupsKnown, Portal, PortalDevice, PortalResource, Presence, Reach, StockClients},
    fault::Fault,
    layout::{self, Place},
    second_factor,
    visit::{Next, Person, Posted, Visit},
    words,
};

#[derive(Deserialize)]
pub(super) struct ChosenSession {
    session: String,
}

#[derive(Deserialize)]
pub(super) struct ChosenDevice {
    device: String,
}

pub(super) async fn show(visit: Visit) -> Result<Markup, Fault> {
    let person = visit.signed_in(Next::Home)?;
    let portal = person.visit.pages.web.doors.portal(&person.who).await?;
    let without_second_factor = second_factor::account_without(&person).await?.is_some();
    Ok(layout::page(
        &person,
        Place::Home,
        "Your resources",
        html! {
            (resources(&person, &portal))
            (devices(&person, &portal))
            @if person.who.issuer() == person.visit.pages.web.accounts.issuer() {
                section.aside {
                    h2 { "Passkeys" }
                    p { "Sign in with your fingerprint, face or PIN: it cannot be guessed or phished." }
                    p { a.button.secondary href="/passkeys" { "Your passkeys" } }
                }
            }
            @if without_second_factor {
                section.aside {
                    h2 { "Make your sign-in stronger" }
                    p { "A password alone can be guessed or given away. Some resources ask for more." }
                    p { a.button.secondary href="/second-factor" { "Set up a second factor" } }
                }
            }
        },
    ))
}

fn resources(person: &Person, portal: &Portal) -> Markup {
    html! {
        section aria-labelledby="resources" {
            h1 #resources { "Your resources" }
            @match portal.groups {
                GroupsKnown::Enough => {},
                GroupsKnown::Missing => {
                    p.hint { "Your sign-in did not say in which groups you are, so rules for groups give you nothing. "
                        "Tell your administrator that the groups are missing from your sign-in." }
                },
            }
            @if portal.resources.is_empty() {
                p.empty { "No rule names you yet, so there is nothing to reach. Ask the owner of what you need, or your administrator." }
            } @else {
                ul.rows { @for resource in &portal.resources { (row(person, resource)) } }
            }
        }
    }
}

fn row(person: &Person, resource: &PortalResource) -> Markup {
    let open = matches!(&resource.reach, Reach::Open(from) if !from.is_empty());
    html! {
        li.row.open[open] {
            div.what {
                h2 { span.dot.on[open] aria-hidden="true" {} (resource.name) }
                p.where {
                    @match web_address(resource) {
                        Some(url) if open => a href=(url) rel="noreferrer" { (resource.host) },
                        _ => code { (resource.host) },
                    }
                    @for service in &resource.services { " " span.tag { (service) } }
                }
            }
            div.state {
                @match &resource.reach {
                    Reach::Open(from) if from.is_empty() => {
                        p { "Open to you, from no machine yet" }
                        p.hint { a href="/join" { "Add a machine" } }
                    },
                    Reach::Open(from) => @for place in from {
                        p { "Open from " strong { (place.machine) } }
                        p.hint { "Lease until " (words::until(place.until, person.visit.now)) "; renewed by itself" }
                    },
                    Reach::Closed { reason, fix } => {
                        p { strong { "Closed" } " · " (reason) }
                        @if let Some(fix) = fix { p.hint { (words::commands(fix)) } }
                    },
                }
            }
            details.more {
                summary { "Details" }
                dl.facts.small {
                    dt { "Rule" } dd { (resource.rule) }
                    @if !resource.addresses.is_empty() {
                        dt { "Addresses" } dd { @for address in &resource.addresses { code { (address) } " " } }
                    }
                }
            }
        }
    }
}

/// Returns the address that a browser can open, if the resource has one of the web's ports.
fn web_address(resource: &PortalResource) -> Option<String> {
    let has = |port: u16| resource.services.iter().any(|service: &Service| service.contains(Protocol::Tcp, port));
    match (has(443), has(80)) {
        (true, _) => Some(format!("https://{}/", resource.host)),
        (false, true) => Some(format!("http://{}/", resource.host)),
        (false, false) => None,
    }
}

fn devices(person: &Person, portal: &Portal) -> Markup {
    html! {
        section aria-labelledby="machines" {
            div.heading {
                h2 #machines { "Your machines" }
                div.actions {
                    @if portal.stock_clients == StockClients::Permitted {
                        a.button.secondary.small href="/wireguard" { "WireGuard client" }
                    }
                    a.button.secondary.small href="/join" { "Add a machine" }
                }
            }
            @if portal.devices.is_empty() {
                p.empty { "None yet. On a machine of yours, run "
                    code { "postern up " (person.visit.pages.web.join_link) } "." }
            } @else {
                ul.cards { @for device in &portal.devices { (card(person, device)) } }
            }
        }
    }
}

fn card(person: &Person, device: &PortalDevice) -> Markup {
    let now = person.visit.now;
    html! {
        li.card {
            h3 {
                (device.machine)
                @match device.kind {
                    DeviceKind::Agent => {},
                    DeviceKind::StockClient => { " " span.tag { "WireGuard client" } },
                }
            }
            p.presence {
                @match device.presence {
                    Presence::Connected => { span.dot.on aria-hidden="true" {} span { "Connected" } },
                    Presence::LastHeard(Some(at)) => { span.dot aria-hidden="true" {} span { "Last heard " (words::ago(at, now)) } },
                    Presence::LastHeard(None) => { span.dot aria-hidden="true" {} span { "Not heard yet" } },
                }
            }
            p.session {
                @match &device.session {
                    Some(session) => { "Signed in until " (words::until(session.until, now)) },
                    None => { "Signed out" },
                }
            }
            details.more {
                summary { "Details" }
                dl.facts.small {
                    dt { "Key" } dd { code.fingerprint { (device.fingerprint) } }
                    @if !device.addresses.is_empty() {
                        dt { "Addresses" } dd { @for address in &device.addresses { code { (address) } " " } }
                    }
                    @if let Some(session) = &device.session { dt { "Signed in" } dd { (words::ago(session.began, now)) } }
                }
            }
            div.actions {
                @if let Some(session) = &device.session {
                    form method="post" action="/sessions/end" {
                        (layout::token(&person.form_token()))
                        input type="hidden" name="session" value=(session.session);
                        button.secondary.small aria-label={ "Sign out " (device.machine) } { "Sign out" }
                    }
                }
                details.confirm {
                    summary aria-label={ "Remove " (device.machine) } { "Remove…" }
                    div {
                        p { "Its connections are cut, and it must be added again to come back." }
                        form method="post" action="/devices/remove" {
                            (layout::token(&person.form_token()))
                            input type="hidden" name="device" value=(device.device);
                            button.danger.small { "Remove " (device.machine) }
                        }
                    }
                }
            }
        }
    }
}

pub(super) async fn end_session(posted: Posted<ChosenSession>) -> Result<Response, Fault> {
    let person = posted.visit.signed_in(Next::Home)?;
    let session: SessionId = posted.fields.session.parse().map_err(|_| Fault::BadForm)?;
    already_gone(person.visit.pages.web.doors.end_session(session, &person.who).await)?;
    Ok(Redirect::to("/").into_response())
}

pub(super) async fn remove_device(posted: Posted<ChosenDevice>) -> Result<Response, Fault> {
    let person = posted.visit.signed_in(Next::Home)?;
    let device: DeviceId = posted.fields.device.parse().map_err(|_| Fault::BadForm)?;
    already_gone(person.visit.pages.web.doors.remove_device(device, &person.who).await)?;
    Ok(Redirect::to("/").into_response())
}

/// What has ended by itself meanwhile is as the person wanted it.
fn already_gone(done: Result<(), DoorsError>) -> Result<(), Fault> {
    match done {
        Ok(()) | Err(DoorsError::Expired) => Ok(()),
        Err(other) => Err(other.into()),
    }
}
