//! Logout tokens of a provider that does not wait.

use std::{pin::pin, time::Duration};

use axum::{Json, extract::State, routing::get};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};
use serde_json::{Value, json};
use tokio::sync::Notify;

use super::*;
use crate::{
    identity::{
        Proof, SignedIn,
        oidc::{Provider, ProviderSettings},
    },
    signals::provider::Vouching,
};

/// A provider whose keys are read slowly: it says when it is asked for them, and answers when it is let.
#[derive(Default)]
struct Slow {
    asked: Notify,
    answers: Notify,
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[1; 32])
}

async fn site_of_slow() -> (Site, Arc<Slow>, String) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let issuer = format!("http://{}", listener.local_addr().expect("an address"));
    let at = issuer.clone();
    let metadata: Value = json!({
        "issuer": at, "authorization_endpoint": format!("{at}/auth"), "token_endpoint": format!("{at}/token"),
        "jwks_uri": format!("{at}/jwks"), "response_types_supported": ["code"],
        "subject_types_supported": ["public"], "id_token_signing_alg_values_supported": ["EdDSA"],
    });
    let keys = async |State(slow): State<Arc<Slow>>| {
        slow.asked.notify_one();
        slow.answers.notified().await;
        let x = base64(key().verifying_key().as_bytes());
        Json(json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": "k1", "x": x}]}))
    };
    let slow = Arc::new(Slow::default());
    let router = Router::new()
        .route("/.well-known/openid-configuration", get(async move || Json(metadata.clone())))
        .route("/jwks", get(keys))
        .with_state(slow.clone());
    tokio::spawn(async move { axum::serve(listener, router).await });
    let settings = ProviderSettings::new(issuer.parse().expect("a URL"), "postern");
    let provider = Provider::new(settings, &OWN.parse().expect("a URL")).expect("a provider");
    let ways = SignInWays { provider: Some(provider), local: LocalAccounts::Off };
    (site_of(ways, Receivers::default()).await, slow, issuer)
}

fn logout_token(issuer: &str, sid: &str, issued: WallTime) -> String {
    let seconds = issued.as_millis() / 1_000;
    let header = json!({"alg": "EdDSA", "typ": "logout+jwt", "kid": "k1"});
    let claims = json!({"iss": issuer, "aud": "postern", "iat": seconds, "exp": seconds + 120, "jti": "j", "sub": "p",
        "sid": sid, "events": {"http://schemas.openid.net/event/backchannel-logout": {}}});
    let text = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
    format!("{text}.{}", base64(key().sign(text.as_bytes()).to_bytes()))
}

impl Site {
    async fn signed_in(&self, issuer: &str, sid: &str) -> SignedIn {
        let proof = Proof {
            issuer: issuer.to_owned(),
            subject: "p".into(),
            name: "p@corp.example".into(),
            groups: None,
            acr: None,
            amr: vec![],
            auth_time: None,
            provisioned_as: None,
            sid: Some(sid.into()),
        };
        let now = system_clock()();
        let (_, who) = self.web.sessions.open(proof, now).await.expect("opens");
        let vouching = Vouching { sid: Some(sid.into()), refresh_token: None };
        self.web.vouchers.put(who.session(), (issuer, "p"), &vouching, now).await.expect("put");
        who
    }

    async fn is_over(&self, who: &SignedIn) -> bool {
        !self.web.sessions.over([who.session()].into(), system_clock()()).await.expect("asked").is_empty()
    }
}

#[tokio::test]
async fn a_logout_whose_provider_does_not_wait_for_the_answer_is_done_to_its_end() {
    let (site, slow, issuer) = site_of_slow().await;
    let (who, elsewhere) = (site.signed_in(&issuer, "s-1").await, site.signed_in(&issuer, "s-2").await);
    let token = logout_token(&issuer, "s-1", system_clock()());
    let form = [("logout_token", &*token)];
    {
        let mut told = pin!(site.post_from("", "/oidc/backchannel-logout", "", &form));
        tokio::select! {
            page = &mut told => panic!("answered before the keys were there: {} {}", page.status, page.text),
            () = slow.asked.notified() => {}
        }
    } // the provider hangs up, and with its connection the handler is dropped
    slow.answers.notify_one();
    let ended = async {
        while !site.is_over(&who).await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), ended).await.expect("signed out at last");
    assert!(!site.is_over(&elsewhere).await, "another session at the provider");
}

#[tokio::test]
async fn a_logout_token_of_another_time_ends_nothing_and_is_told_to_those_who_set_clocks() {
    let (site, slow, issuer) = site_of_slow().await;
    slow.answers.notify_one();
    let who = site.signed_in(&issuer, "s-1").await;
    let earlier = WallTime::from_millis(system_clock()().as_millis() - 600_000);
    let token = logout_token(&issuer, "s-1", earlier);
    let page = site.post_from("", "/oidc/backchannel-logout", "", &[("logout_token", &*token)]).await;
    assert_eq!(page.status, StatusCode::SERVICE_UNAVAILABLE, "it may be told again");
    assert_eq!(site.doors.not_of_now.load(std::sync::atomic::Ordering::SeqCst), 1);
    assert!(!site.is_over(&who).await, "an old token counts as nothing");
}
