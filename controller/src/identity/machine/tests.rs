//! Issuers that a test runs, and tokens of them: good ones, and one thing wrong at a time.

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};
use hmac::{Hmac, Mac};
use postern_common::time::{Monotonic, WallTime};
use serde_json::{Value, json};
use sha2::Sha256;

use super::*;
use crate::identity::machine::settings::Match;

const AUDIENCE: &str = "https://ctl.example/prod";
const NOW: i64 = 1_795_424_400;

/// An issuer in this process.
struct Cluster {
    issuer: String,
    key: Mutex<(SigningKey, String)>,
    fetches: AtomicUsize,
    hangs: AtomicBool,
    /// What it says that its issuer is.
    claimed: Mutex<Option<String>>,
    away: Mutex<bool>,
}

fn base64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn key_set(key: &SigningKey, kid: &str) -> Value {
    let x = base64(key.verifying_key().as_bytes());
    json!({"keys": [{"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "kid": kid, "x": x}]})
}

fn sign(key: &SigningKey, header: &Value, claims: &Value) -> String {
    let text = format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
    format!("{text}.{}", base64(key.sign(text.as_bytes()).to_bytes()))
}

impl Cluster {
    async fn start() -> Arc<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let cluster = Arc::new(Self {
            issuer: format!("http://{}", listener.local_addr().expect("an address")),
            key: Mutex::new((SigningKey::from_bytes(&[1; 32]), "k1".into())),
            fetches: AtomicUsize::new(0),
            hangs: AtomicBool::new(false),
            claimed: Mutex::default(),
            away: Mutex::default(),
        });
        async fn document(State(of): State<Arc<Cluster>>) -> axum::response::Response {
            if *of.away.lock().expect("not poisoned") {
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            }
            let claimed = of.claimed.lock().expect("not poisoned").clone().unwrap_or_else(|| of.issuer.clone());
            // What a Kubernetes API server says: no authorization endpoint, no token endpoint.
            Json(json!({"issuer": claimed, "jwks_uri": format!("{}/openid/v1/jwks", of.issuer),
                "response_types_supported": ["id_token"], "subject_types_supported": ["public"],
                "id_token_signing_alg_values_supported": ["EdDSA"]}))
            .into_response()
        }
        async fn keys(State(of): State<Arc<Cluster>>) -> Json<Value> {
            of.fetches.fetch_add(1, Ordering::SeqCst);
            if of.hangs.load(Ordering::SeqCst) {
                std::future::pending::<()>().await;
            }
            let (key, kid) = &*of.key.lock().expect("not poisoned");
            Json(key_set(key, kid))
        }
        let router = Router::new()
            .route("/.well-known/openid-configuration", get(document))
            .route("/openid/v1/jwks", get(keys))
            .with_state(Arc::clone(&cluster));
        tokio::spawn(async move { axum::serve(listener, router).await });
        cluster
    }

    fn claims(&self) -> Value {
        claims(&self.issuer)
    }

    fn token(&self, claims: &Value) -> PlatformToken {
        let (key, kid) = &*self.key.lock().expect("not poisoned");
        PlatformToken::new(&sign(key, &json!({"alg": "EdDSA", "kid": kid}), claims))
    }

    fn rotate(&self, seed: u8, kid: &str) {
        *self.key.lock().expect("not poisoned") = (SigningKey::from_bytes(&[seed; 32]), kid.into());
    }

    fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }
}

fn claims(issuer: &str) -> Value {
    json!({
        "iss": issuer, "aud": [AUDIENCE], "iat": NOW - 30, "nbf": NOW - 30, "exp": NOW + 3_000, "jti": "t-1",
        "sub": "system:serviceaccount:pay:billing",
        "kubernetes.io": {
            "namespace": "pay", "node": {"name": "n1", "uid": "node-1"}, "pod": {"name": "billing-x", "uid": "pod-1"},
            "serviceaccount": {"name": "billing", "uid": "sa-1"},
        },
    })
}

fn settings(issuer: &str, keys_file: Option<PathBuf>) -> MachineIssuer {
    let text = |text: &str| vec![text.to_owned()];
    let claims = [
        ("kubernetes.io.namespace", text("pay")),
        ("kubernetes.io.serviceaccount.name", text("billing")),
        ("kubernetes.io.serviceaccount.uid", text("sa-1")),
        ("kubernetes.io.node.uid", vec!["node-1".into(), "node-2".into()]),
    ];
    MachineIssuer {
        name: "prod".into(),
        platform: Platform::Kubernetes,
        issuer: issuer.to_owned(),
        audience: AUDIENCE.into(),
        keys_file,
        ca_file: None,
        algorithms: vec![],
        max_lifetime: Duration::from_secs(3_600),
        forget_after: Duration::from_secs(3_600),
        matches: vec![Match {
            service: "billing".parse().expect("a name"),
            tags: ["billing".parse().expect("a tag")].into(),
            machine: None,
            claims: claims.map(|(path, texts)| (path.to_owned(), texts)).into(),
        }],
    }
}

fn at(seconds: i64) -> Now {
    let monotonic = Monotonic::from_millis(u64::try_from(1_000_000 + seconds * 1_000).expect("after the start"));
    Now { monotonic, wall: WallTime::from_millis((NOW + seconds) * 1_000) }
}

fn issuers(all: &[MachineIssuer]) -> Issuers {
    Issuers::new(all).expect("good settings")
}

fn why(refusal: &TokenRefusal) -> &str {
    match refusal {
        TokenRefusal::Refused { why, .. } | TokenRefusal::Unavailable(why) => why,
    }
}

#[tokio::test]
async fn a_projected_token_stands_for_its_service_and_every_claim_that_is_another_for_nobody() {
    let cluster = Cluster::start().await;
    let issuers = issuers(&[settings(&cluster.issuer, None)]);
    let workload = issuers.verify(&cluster.token(&cluster.claims()), at(0)).await.expect("good");
    assert_eq!((workload.service.as_str(), workload.issuer.as_str()), ("billing", "prod"));
    assert_eq!(workload.expires.as_millis(), (NOW + 3_000) * 1_000);
    assert_eq!((workload.issued.as_millis(), workload.instance.as_str()), ((NOW - 30) * 1_000, "pod-1"));
    type Change = (&'static [&'static str], Value);
    let changes: [Change; 15] = [
        (&["iss"], json!("https://other.example")),
        (&["aud"], json!(["https://kubernetes.default.svc"])),
        (&["aud"], json!([AUDIENCE, "https://other.example"])),
        (&["exp"], json!(NOW)),
        (&["exp"], json!(NOW + 86_400)),
        (&["iat"], json!(NOW + 3_600)),
        (&["nbf"], json!(NOW + 3_600)),
        (&["sub"], json!("")),
        (&["kubernetes.io", "namespace"], json!("default")),
        (&["kubernetes.io", "serviceaccount", "name"], json!("other")),
        (&["kubernetes.io", "serviceaccount", "uid"], json!("sa-2")),
        (&["kubernetes.io", "serviceaccount", "uid"], json!(["sa-1"])),
        (&["kubernetes.io", "serviceaccount"], json!({"name": "billing"})),
        (&["kubernetes.io", "node", "uid"], json!("node-3")),
        (&["kubernetes.io.serviceaccount.uid"], json!("sa-1")),
    ];
    for (path, value) in changes {
        let mut claims = cluster.claims();
        let place = path.iter().fold(&mut claims, |place, key| &mut place[*key]);
        *place = value.clone();
        assert!(issuers.verify(&cluster.token(&claims), at(0)).await.is_err(), "{path:?}: {value}");
    }
    let mut other = cluster.claims();
    other["kubernetes.io"]["serviceaccount"]["uid"] = json!("sa-2");
    let refused = issuers.verify(&cluster.token(&other), at(0)).await.expect_err("another service account");
    assert!(why(&refused).contains("kubernetes.io.serviceaccount.uid is another"), "{refused:?}");
    let TokenRefusal::Refused { told, .. } = refused else { panic!("refused") };
    assert!(!told.contains("serviceaccount.uid"), "what is wanted is not told to whoever tries: {told}");
}

#[tokio::test]
async fn tokens_that_nobody_signed_or_somebody_else_are_refused() {
    let cluster = Cluster::start().await;
    let issuers = issuers(&[settings(&cluster.issuer, None)]);
    let key = SigningKey::from_bytes(&[1; 32]);
    let claims = cluster.claims();
    let text = |header: Value| format!("{}.{}", base64(header.to_string()), base64(claims.to_string()));
    let hmac = |text: &str, secret: &[u8]| {
        let mac = Hmac::<Sha256>::new_from_slice(secret).expect("any length").chain_update(text);
        format!("{text}.{}", base64(mac.finalize().into_bytes()))
    };
    let none = format!("{}.", text(json!({"alg": "none", "kid": "k1"})));
    let symmetric = hmac(&text(json!({"alg": "HS256", "kid": "k1"})), key.verifying_key().as_bytes());
    let other_kind = sign(&key, &json!({"alg": "RS256", "kid": "k1"}), &claims);
    let stranger = sign(&SigningKey::from_bytes(&[9; 32]), &json!({"alg": "EdDSA", "kid": "k1"}), &claims);
    let stranger_key = SigningKey::from_bytes(&[9; 32]);
    let jwk = key_set(&stranger_key, "k1")["keys"][0].clone();
    let brought = sign(&stranger_key, &json!({"alg": "EdDSA", "kid": "k1", "jwk": jwk}), &claims);
    let no_signature = format!("{}.", text(json!({"alg": "EdDSA", "kid": "k1"})));
    let good = sign(&key, &json!({"alg": "EdDSA", "kid": "k1"}), &claims);
    let mut parts: Vec<String> = good.split('.').map(str::to_owned).collect();
    let mut richer = cluster.claims();
    richer["exp"] = json!(NOW + 3_500);
    parts[1] = base64(richer.to_string());
    let tampered = parts.join(".");
    for (what, forged) in [
        ("none", none),
        ("HS256 under the public key", symmetric),
        ("RS256 by an Ed25519 key", other_kind),
        ("a stranger's key under the same name", stranger),
        ("a key that it brings along", brought),
        ("no signature", no_signature),
        ("changed afterwards", tampered),
        ("four parts", format!("{good}.x")),
        ("padding", format!("{good}=")),
    ] {
        let refused = issuers.verify(&PlatformToken::new(&forged), at(0)).await;
        assert!(matches!(refused, Err(TokenRefusal::Refused { .. })), "{what}: {refused:?}");
    }
    assert!(issuers.verify(&PlatformToken::new(&good), at(0)).await.is_ok());
    assert!(cluster.fetches() <= 7, "forged tokens make the controller ask {} times", cluster.fetches());
}

#[tokio::test]
async fn tokens_whose_key_is_known_wait_for_nobody_who_makes_an_issuer_be_asked() {
    let cluster = Cluster::start().await;
    let issuers = issuers(&[settings(&cluster.issuer, None)]);
    assert!(issuers.verify(&cluster.token(&cluster.claims()), at(0)).await.is_ok());
    cluster.hangs.store(true, Ordering::SeqCst);
    let forged = sign(&SigningKey::from_bytes(&[9; 32]), &json!({"alg": "EdDSA", "kid": "k9"}), &cluster.claims());
    let forged = PlatformToken::new(&forged);
    let good = cluster.token(&cluster.claims());
    tokio::select! {
        biased;
        () = async {
            while cluster.fetches() < 2 {
                tokio::task::yield_now().await;
            }
            assert!(issuers.verify(&good, at(0)).await.is_ok());
        } => {}
        refused = issuers.verify(&forged, at(0)) => panic!("the issuer hangs: {refused:?}"),
    }
}

#[tokio::test]
async fn an_issuers_key_is_good_for_its_own_tokens_alone() {
    let (one, other) = (Cluster::start().await, Cluster::start().await);
    other.rotate(2, "k1"); // the same name of another key
    let mut of_other = settings(&other.issuer, None);
    of_other.name = "other".into();
    of_other.matches[0].service = "other".parse().expect("a name");
    let issuers = issuers(&[settings(&one.issuer, None), of_other]);
    let foreign = other.token(&one.claims());
    assert!(issuers.verify(&foreign, at(0)).await.is_err(), "signed by the other cluster");
    let workload = issuers.verify(&other.token(&other.claims()), at(0)).await.expect("its own");
    assert_eq!(workload.service.as_str(), "other");
}

#[tokio::test]
async fn clusters_that_call_themselves_the_same_are_told_apart_by_the_audience() {
    let folder = tempfile::tempdir().expect("a folder");
    let issuer = "https://kubernetes.default.svc.cluster.local";
    let cluster = |name: &str, seed: u8| {
        let key = SigningKey::from_bytes(&[seed; 32]);
        let file = folder.path().join(name);
        std::fs::write(&file, key_set(&key, "k1").to_string()).expect("written");
        let mut settings = settings(issuer, Some(file));
        (settings.name, settings.audience) = (name.into(), format!("https://ctl.example/{name}"));
        settings.matches[0].service = name.parse().expect("a name");
        (key, settings)
    };
    let (key_a, a) = cluster("a", 1);
    let (_, b) = cluster("b", 2);
    let issuers = issuers(&[a, b]);
    let token = |audience: &str| {
        let mut claims = claims(issuer);
        claims["aud"] = json!(audience);
        PlatformToken::new(&sign(&key_a, &json!({"alg": "EdDSA", "kid": "k1"}), &claims))
    };
    let workload = issuers.verify(&token("https://ctl.example/a"), at(0)).await.expect("its own");
    assert_eq!(workload.service.as_str(), "a");
    assert!(issuers.verify(&token("https://ctl.example/b"), at(0)).await.is_err(), "signed by the other cluster");
}

#[tokio::test]
async fn a_new_key_is_found_by_one_look_and_an_old_one_counts_no_more() {
    let cluster = Cluster::start().await;
    let issuers = issuers(&[settings(&cluster.issuer, None)]);
    let old = cluster.token(&cluster.claims());
    assert!(issuers.verify(&old, at(0)).await.is_ok());
    assert_eq!(cluster.fetches(), 1);
    cluster.rotate(2, "k2");
    let fresh = cluster.token(&cluster.claims());
    assert!(issuers.verify(&fresh, at(1)).await.is_ok());
    assert_eq!(cluster.fetches(), 2);
    assert!(issuers.verify(&old, at(2)).await.is_err(), "its key is gone");
    assert_eq!(cluster.fetches(), 3);
}

#[tokio::test]
async fn unknown_keys_do_not_become_a_flood_of_questions_and_good_tokens_go_on() {
    let cluster = Cluster::start().await;
    let issuers = issuers(&[settings(&cluster.issuer, None)]);
    let stranger = SigningKey::from_bytes(&[9; 32]);
    for number in 0..200 {
        let header = json!({"alg": "EdDSA", "kid": format!("u{number}")});
        let forged = PlatformToken::new(&sign(&stranger, &header, &cluster.claims()));
        assert!(issuers.verify(&forged, at(0)).await.is_err());
    }
    assert!(cluster.fetches() <= 6, "{}", cluster.fetches());
    assert!(issuers.verify(&cluster.token(&cluster.claims()), at(0)).await.is_ok());
}

#[tokio::test]
async fn an_issuer_that_is_away_holds_for_a_day_and_one_that_was_never_heard_of_for_nothing() {
    let cluster = Cluster::start().await;
    let issuers = issuers(&[settings(&cluster.issuer, None)]);
    *cluster.away.lock().expect("not poisoned") = true;
    let token = cluster.token(&cluster.claims());
    assert!(matches!(issuers.verify(&token, at(0)).await, Err(TokenRefusal::Unavailable(_))));
    *cluster.away.lock().expect("not poisoned") = false;
    assert!(issuers.verify(&token, at(10)).await.is_ok());
    *cluster.away.lock().expect("not poisoned") = true;
    let later = |seconds: i64| {
        let mut claims = cluster.claims();
        (claims["iat"], claims["nbf"], claims["exp"]) =
            (json!(NOW + seconds), json!(NOW + seconds), json!(NOW + seconds + 3_000));
        cluster.token(&claims)
    };
    assert!(issuers.verify(&later(80_000), at(80_000)).await.is_ok());
    let stale = issuers.verify(&later(90_000), at(90_000)).await;
    assert!(matches!(stale, Err(TokenRefusal::Unavailable(_))), "{stale:?}");
}

#[tokio::test]
async fn a_token_of_a_new_key_that_cannot_be_read_now_is_not_called_forged() {
    let cluster = Cluster::start().await;
    let issuers = issuers(&[settings(&cluster.issuer, None)]);
    assert!(issuers.verify(&cluster.token(&cluster.claims()), at(0)).await.is_ok());
    cluster.rotate(2, "k2");
    let honest = cluster.token(&cluster.claims());
    *cluster.away.lock().expect("not poisoned") = true;
    let away = issuers.verify(&honest, at(1)).await;
    assert!(matches!(away, Err(TokenRefusal::Unavailable(_))), "the issuer is away: {away:?}");
    // A stranger invents keys until they may not be read again for a while.
    let stranger = SigningKey::from_bytes(&[9; 32]);
    for number in 0..10 {
        let header = json!({"alg": "EdDSA", "kid": format!("u{number}")});
        let forged = PlatformToken::new(&sign(&stranger, &header, &cluster.claims()));
        assert!(issuers.verify(&forged, at(2)).await.is_err());
    }
    *cluster.away.lock().expect("not poisoned") = false;
    let used_up = issuers.verify(&honest, at(3)).await;
    assert!(matches!(used_up, Err(TokenRefusal::Unavailable(_))), "a stranger used the looks up: {used_up:?}");
    assert!(issuers.verify(&honest, at(120)).await.is_ok(), "tried again");
}

#[tokio::test]
async fn a_discovery_document_of_another_issuer_lends_no_keys() {
    let cluster = Cluster::start().await;
    let issuers = issuers(&[settings(&cluster.issuer, None)]);
    *cluster.claimed.lock().expect("not poisoned") = Some("https://other.example".into());
    let refused = issuers.verify(&cluster.token(&cluster.claims()), at(0)).await;
    assert!(matches!(refused, Err(TokenRefusal::Unavailable(_))), "{refused:?}");
}

#[test]
fn only_asymmetric_algorithms_have_names_here() {
    for name in ["none", "None", "HS256", "HS384", "HS512", "", "RS1"] {
        assert!(accepted(name).is_none(), "{name}");
    }
    for name in ["RS256", "PS512", "ES256", "ES384", "EdDSA"] {
        assert!(accepted(name).is_some(), "{name}");
    }
}
