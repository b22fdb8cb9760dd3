//! The frame of every page.

use axum::http::StatusCode;
use maud::{DOCTYPE, Markup, html};

use super::{assets, visit::Person};

/// Which entry of the navigation is the page itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Home,
    Join,
    WireGuard,
    Requests,
    Elsewhere,
}

fn frame(title: &str, head: Markup, top: Markup, content: Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { (title) " · Postern" }
                link rel="icon" type="image/svg+xml" href=(assets::icon());
                link rel="stylesheet" href=(assets::style());
                (head)
            }
            body {
                a.skip href="#content" { "Skip to content" }
                header.top { div.bar { (top) } }
                main #content tabindex="-1" { (content) }
            }
        }
    }
}

fn brand() -> Markup {
    html! {
        a.brand href="/" {
            svg.mark viewBox="0 0 24 24" aria-hidden="true" {
                path.stone d="M2 22V6h3V3h4v3h6V3h4v3h3v16z" {}
                path.gate d="M8.5 22v-6.5a3.5 3.5 0 0 1 7 0V22z" {}
            }
            "Postern"
        }
    }
}

/// A page before sign-in: a narrow column.
pub(super) fn door(title: &str, content: Markup) -> Markup {
    frame(title, html! {}, brand(), html! { div.door { (content) } })
}

/// A page before sign-in that can ask for a passkey.
pub(super) fn door_with_passkeys(title: &str, content: Markup) -> Markup {
    let script = html! { script src=(assets::passkey_script()) defer {} };
    frame(title, script, brand(), html! { div.door { (content) } })
}

/// A page of somebody who is signed in, which can ask for a passkey.
pub(super) fn page_with_passkeys(person: &Person, place: Place, title: &str, content: Markup) -> Markup {
    with_head(person, place, title, html! { script src=(assets::passkey_script()) defer {} }, content)
}

/// A page of somebody who is signed in.
pub(super) fn page(person: &Person, place: Place, title: &str, content: Markup) -> Markup {
    with_head(person, place, title, html! {}, content)
}

/// A page of somebody who is signed in, with the script that makes keys.
pub(super) fn page_with_script(person: &Person, place: Place, title: &str, content: Markup) -> Markup {
    with_head(person, place, title, html! { script src=(assets::script()) defer {} }, content)
}

fn with_head(person: &Person, place: Place, title: &str, head: Markup, content: Markup) -> Markup {
    let entry = |path: &str, name: &str, here: Place| {
        html! { a href=(path) aria-current=[(place == here).then_some("page")] { (name) } }
    };
    let top = html! {
        (brand())
        nav aria-label="Main" {
            (entry("/", "Resources", Place::Home))
            (entry("/join", "Add a machine", Place::Join))
            (entry("/wireguard", "WireGuard", Place::WireGuard))
            (entry("/requests", "Requests", Place::Requests))
        }
        form.account method="post" action="/sign-out" {
            (token(&person.form_token()))
            span.who title=(person.who.issuer()) { (person.who.name()) }
            button.quiet { "Sign out" }
        }
    };
    frame(title, head, top, content)
}

/// The hidden field of every form.
pub(super) fn token(token: &str) -> Markup {
    html! { input type="hidden" name="token" value=(token); }
}

/// A refusal above a form. It is announced, and the page title tells it too.
pub(super) fn alert(text: &str) -> Markup {
    html! { p.alert role="alert" { (text) } }
}

/// A page for what went wrong.
pub(super) fn fault(status: StatusCode, headline: &str, text: &str, link: (&str, &str)) -> Markup {
    door(
        headline,
        html! {
            p.status { (status.as_u16()) }
            h1 { (headline) }
            p { (text) }
            p { a.button href=(link.0) { (link.1) } }
        },
    )
}
