//! A configuration for a stock WireGuard client.
//!
//! The person pastes a public key, or lets the page's script make the pair in the browser; the private key then stays
//! in the browser and is put into the configuration there. What is shown holds pre-shared keys: it is never cached.

use std::fmt::Write;

use axum::{
    http::StatusCode,
    response::{IntoResponse, Response},
};
use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use maud::{Markup, html};
use postern_common::{id::MachineName, key::WireGuardPublicKey};
use serde::Deserialize;

use super::{
    doors::{DoorsError, StockClients, StockConfiguration, StockRequest},
    fault::Fault,
    layout::{self, Place},
    visit::{Next, Person, Posted, Visit},
    words,
};

/// What stands in the configuration where the private key belongs.
pub const PRIVATE_KEY_PLACE: &str = "PASTE-YOUR-PRIVATE-KEY-HERE";

#[derive(Deserialize)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) public_key: String,
}

/// Writes a configuration as `wg-quick` and the WireGuard apps read it.
pub fn configuration(told: &StockConfiguration) -> String {
    let list = |parts: Vec<String>| parts.join(", ");
    let mut text = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| {
        let written = text.write_fmt(args).and_then(|()| text.write_char('\n'));
        written.expect("a String takes all text");
    };
    line(format_args!("# {} for Postern, closes {}", told.machine, told.until));
    line(format_args!("[Interface]"));
    line(format_args!("PrivateKey = {PRIVATE_KEY_PLACE}"));
    let addresses = told.addresses.iter().map(|address| ipnet::IpNet::from(*address).to_string()).collect();
    line(format_args!("Address = {}", list(addresses)));
    line(format_args!("MTU = {}", told.mtu));
    for peer in &told.peers {
        let resources = peer.resources.iter().map(ToString::to_string).collect();
        line(format_args!("\n# {}: {}", peer.machine, list(resources)));
        line(format_args!("[Peer]"));
        line(format_args!("PublicKey = {}", peer.public_key));
        line(format_args!("PresharedKey = {}", peer.preshared_key.to_base64()));
        if let Some(endpoint) = peer.endpoint {
            line(format_args!("Endpoint = {endpoint}"));
        }
        line(format_args!("AllowedIPs = {}", list(peer.allowed_ips.iter().map(ToString::to_string).collect())));
    }
    text
}

pub(super) async fn show(visit: Visit) -> Result<Markup, Fault> {
    let person = visit.signed_in(Next::WireGuard)?;
    let portal = person.visit.pages.web.doors.portal(&person.who).await?;
    Ok(match portal.stock_clients {
        StockClients::Permitted => form(&person, "", "", None),
        StockClients::NotPermitted => not_offered(&person),
    })
}

fn not_offered(person: &Person) -> Markup {
    layout::page(
        person,
        Place::WireGuard,
        "WireGuard client",
        html! {
            div.narrow {
                h1 { "WireGuard client" }
                p.lead { "No rule for you permits stock WireGuard clients." }
                p { "They cannot report on the machine they run on, so each rule has to permit them by itself. With \
                     Postern’s own agent you reach all that you may: " a href="/join" { "add a machine" } "." }
            }
        },
    )
}

fn form(person: &Person, name: &str, key: &str, alert: Option<&str>) -> Markup {
    layout::page_with_script(
        person,
        Place::WireGuard,
        if alert.is_some() { "Check the key" } else { "WireGuard client" },
        html! {
            div.narrow {
                h1 { "WireGuard client" }
                p.lead { "For a phone, a Mac or a PC without Postern’s agent. It reaches only resources whose rule permits it, \
                     and closes when you sign out here, when this browser is not used for two hours, or after some hours." }
                @if let Some(text) = alert { (layout::alert(text)) }
                form #wireguard method="post" action="/wireguard" {
                    (layout::token(&person.form_token()))
                    label for="name" { "Name of the machine" }
                    input #name name="name" value=(name) required maxlength="63" pattern="[A-Za-z0-9][A-Za-z0-9._\\-]*"
                        placeholder="my-phone" autocomplete="off" spellcheck="false" autofocus
                        aria-describedby="name-rule";
                    p.hint #name-rule { "Letters, digits, dot, hyphen and underscore." }
                    div #make hidden {
                        button.wide type="button" #make-keys { "Make a key in this browser" }
                        p.hint { "The private key stays in this browser. Postern never sees it." }
                        p.or { span { "or use a key of your own" } }
                        p #make-alert role="alert" hidden {}
                    }
                    label for="public_key" { "Public key" }
                    input.key #public_key name="public_key" value=(key) required maxlength="44" minlength="44"
                        autocomplete="off" autocapitalize="none" spellcheck="false" aria-describedby="key-rule";
                    p.hint #key-rule { "44 characters; " code { "wg genkey | tee private | wg pubkey" } " makes one." }
                    button.secondary.wide { "Get the configuration" }
                }
            }
        },
    )
}

pub(super) async fn submit(posted: Posted<Wanted>) -> Result<Response, Fault> {
    let person = posted.visit.signed_in(Next::WireGuard)?;
    let Wanted { name, public_key } = posted.fields;
    let again = |text: &str| {
        let (name, key): (String, String) = (name.chars().take(63).collect(), public_key.chars().take(44).collect());
        (StatusCode::UNPROCESSABLE_ENTITY, form(&person, &name, &key, Some(text))).into_response()
    };
    let Ok(machine) = name.trim().parse::<MachineName>() else {
        return Ok(again(
            "A name has 1 to 63 letters, digits, dots, hyphens and underscores, and begins with a letter or digit.",
        ));
    };
    let Ok(key) = public_key.parse::<WireGuardPublicKey>() else {
        return Ok(again("That is not a WireGuard public key: 44 characters of base 64, ending in “=”."));
    };
    person.visit.pages.limits.stock.take(&person.key(), person.visit.now)?;
    let asked = StockRequest { name: machine, public_key: key };
    match person.visit.pages.web.doors.stock_client(asked, &person.who).await {
        Ok(told) => Ok(result(&person, &told).into_response()),
        Err(DoorsError::NotPermitted(why)) => Ok(again(&why)),
        Err(other) => Err(other.into()),
    }
}

fn result(person: &Person, told: &StockConfiguration) -> Markup {
    let text = configuration(told);
    let file = format!("{}.conf", interface_name(&told.machine));
    let unreachable = told.peers.iter().any(|peer| peer.endpoint.is_none());
    layout::page_with_script(
        person,
        Place::WireGuard,
        "Your WireGuard configuration",
        html! {
            h1 { "Configuration for " (told.machine) }
            p.lead { "Open until " (words::until(told.until, person.visit.now)) ", or until you sign out in this browser or leave it unused for two hours." }
            div.warning role="note" {
                p { strong { "Shown once." } " Save it now, or come back for a new one. Who has it gets in as you." }
            }
            @if unreachable {
                (layout::alert("Some machine has not reported an address yet, so its peer has no endpoint. Take a new configuration in a minute."))
            }
            div.configuration #result data-public-key=(told.public_key) data-place=(PRIVATE_KEY_PLACE) {
                div {
                    pre #text tabindex="0" aria-label="Configuration" { (text) }
                    div.actions {
                        a.button #download download=(file)
                            href={ "data:text/plain;charset=utf-8;base64," (BASE64.encode(&text)) } { "Download " (file) }
                        button.secondary #copy type="button" hidden { "Copy" }
                    }
                    p.hint #paste-hint { "Put your private key where it says " code { (PRIVATE_KEY_PLACE) } "." }
                    p.hint #status role="status" {}
                }
                figure #scan hidden {
                    div #qr {}
                    figcaption { "Scan with the WireGuard app" }
                }
            }
        },
    )
}

/// Cuts a name to what Linux takes as an interface's: 15 characters.
fn interface_name(machine: &MachineName) -> String {
    let short: String = machine.as_str().chars().take(15).collect();
    short.trim_end_matches(['.', '-', '_']).to_owned()
}

#[cfg(test)]
mod tests {
    use postern_common::{id::DeviceId, key::PresharedKey, time::WallTime};

    use super::{super::doors::StockPeer, *};

    #[test]
    fn a_configuration_reads_as_wg_quick_wants_it() {
        let told = StockConfiguration {
            device: DeviceId::from_bytes([1; 16]),
            machine: "my-phone".parse().expect("a name"),
            public_key: WireGuardPublicKey::from_bytes([2; 32]),
            addresses: ["fd00::7", "100.64.0.7"].map(|text| text.parse().expect("an address")).into(),
            mtu: 1_280,
            peers: vec![StockPeer {
                machine: "payroll-1".parse().expect("a name"),
                public_key: WireGuardPublicKey::from_bytes([3; 32]),
                preshared_key: PresharedKey::from_bytes([4; 32]),
                endpoint: Some("[2001:db8::1]:51820".parse().expect("an endpoint")),
                allowed_ips: ["fd00::3/128", "100.64.0.3/32"].map(|text| text.parse().expect("a prefix")).into(),
                resources: vec!["payroll-app".parse().expect("a name")],
            }],
            until: WallTime::from_millis(0),
        };
        let expected = "# my-phone for Postern, closes 1970-01-01T00:00:00Z\n[Interface]\n\
            PrivateKey = PASTE-YOUR-PRIVATE-KEY-HERE\nAddress = fd00::7/128, 100.64.0.7/32\nMTU = 1280\n\n\
            # payroll-1: payroll-app\n[Peer]\nPublicKey = AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=\n\
            PresharedKey = BAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQ=\nEndpoint = [2001:db8::1]:51820\n\
            AllowedIPs = fd00::3/128, 100.64.0.3/32\n";
        assert_eq!(configuration(&told), expected);
    }
}
