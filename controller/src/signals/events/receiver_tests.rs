//! Claims about what an event ends in browsers, with a core that works and a database.

use std::sync::Arc;

use postern_common::{key::ControllerSigningKey, time::WallTime};
use serde_json::{Value, json};

use super::*;
use crate::{
    audit::AuditLog,
    identity::{
        Proof, SignedIn,
        local::SealingKey,
        sessions::{SessionLimits, test_pool},
    },
    records::Person,
    serve::actor::Actor,
    signals::provider::Vouching,
    store::{SqliteStore, Store},
    stream::{Core, CoreConfig},
};

const PROVIDER: &str = "https://idp.example";
const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";

struct Scene {
    receiver: Receiver,
    _dir: tempfile::TempDir,
}

async fn scene(transmitter: &str) -> Scene {
    let dir = tempfile::tempdir().expect("a folder");
    let mut store = SqliteStore::open(&dir.path().join("controller.db"), 1).await.expect("a store");
    let loaded = store.load().await.expect("loads");
    let (head, outbox) = store.audit_state().await.expect("a state");
    let (audit, _) = AuditLog::open(&dir.path().join("audit"), 1 << 20, head, &outbox).expect("a log");
    let config = CoreConfig::new(
        "https://ctl.test",
        "fd00:1:2::/48".parse().expect("a prefix"),
        "100.96.0.0/16".parse().expect("a prefix"),
    );
    let policy = Arc::new(crate::serve::parse_policy(std::path::Path::new("policy.toml"), "").expect("a policy"));
    let random = Box::new(|bytes: &mut [u8]| getrandom::fill(bytes).expect("randomness"));
    let meta = loaded.meta.clone();
    let core = Core::new(
        config,
        ControllerSigningKey::from_seed(&[1; 32]),
        policy,
        Arc::new(crate::signals::place::NoMaps),
        loaded,
        random,
        clock::now(),
    );
    let (actor, handle) = Actor::new(core, meta, store, audit, tokio::sync::mpsc::channel(1).0);
    tokio::spawn(actor.run());
    let pool = test_pool().await;
    let around = Around {
        handle,
        sessions: WebSessions::new(pool.clone(), SessionLimits::default()),
        vouchers: Vouchers::new(pool, SealingKey::from_bytes([7; 32])),
        groups_claim: "groups".into(),
    };
    let settings: EventStream = toml::from_str(&format!(
        "name = \"corp\"\nissuer = \"{transmitter}\"\npeople_of = \"{PROVIDER}\"\ndelivery = \"push\"\naudience = \"us\""
    ))
    .expect("settings");
    let receivers = Receivers::open(&[settings], &around).await.expect("opens");
    let receiver = Arc::into_inner(receivers.0.into_values().next().expect("one")).expect("held once");
    Scene { receiver, _dir: dir }
}

impl Scene {
    /// Signs somebody in, in a browser, by a session at the provider.
    async fn sign_in(&self, sub: &str, sid: Option<&str>) -> SignedIn {
        let now = clock::now().wall;
        let proof = Proof {
            issuer: PROVIDER.into(),
            subject: sub.into(),
            name: format!("{sub}@corp.example"),
            groups: None,
            acr: None,
            amr: vec![],
            auth_time: Some(WallTime::from_millis(now.as_millis() - 10_000)),
            provisioned_as: None,
            sid: sid.map(str::to_owned),
        };
        let (_, who) = self.receiver.around.sessions.open(proof, now).await.expect("opens");
        let vouching = Vouching { sid: sid.map(str::to_owned), refresh_token: None };
        let vouchers = &self.receiver.around.vouchers;
        vouchers.put(who.session(), (PROVIDER, sub), &vouching, now).await.expect("noted");
        who
    }

    /// Looks at an event and ends what it ends in browsers.
    async fn end(&self, kind: &str, payload: Value, subject: &Value) -> Whom {
        let now = clock::now().wall;
        let claims = json!({"iss": self.receiver.settings.issuer, "aud": "us", "iat": now.as_millis() / 1_000, "jti": "j",
            "sub_id": subject, "events": {format!("{CAEP}{kind}"): payload}});
        let issuer = self.receiver.settings.issuer.as_str();
        let expected = Expected { issuer, audience: "us", stream_id: None, max_age: 600, stream: "corp" };
        let event = Arc::new(set::read(claims.to_string().as_bytes(), expected, now).expect("an event"));
        let (asked, binding) = (event.clone(), self.receiver.binding.clone());
        let looked = self.receiver.around.handle.call(move |turn, _| turn.core.look_at_event(&binding, &asked)).await;
        let (look, whom) = looked.expect("a core");
        assert_eq!(look, Look::New);
        self.receiver.end_browsers(&event, whom).await.ok().expect("the store works")
    }

    async fn is_over(&self, who: &SignedIn) -> bool {
        let asked = BTreeSet::from([who.session()]);
        !self.receiver.around.sessions.over(asked, clock::now().wall).await.expect("works").is_empty()
    }

    async fn is_turned_away(&self, who: &SignedIn) -> bool {
        let who = Person::from(who);
        self.receiver
            .around
            .handle
            .call(move |turn, now| turn.core.overtaken(&who, now))
            .await
            .expect("a core")
            .is_some()
    }
}

fn person(sub: &str) -> Value {
    json!({"format": "iss_sub", "iss": PROVIDER, "sub": sub})
}

fn opaque(id: &str) -> Value {
    json!({"format": "opaque", "id": id})
}

fn both(user: Value, session: Value) -> Value {
    json!({"format": "complex", "user": user, "session": session})
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_ends_the_browsers_that_it_means_and_no_others() {
    let foreign = |sub: &str| json!({"format": "iss_sub", "iss": "https://evil.example", "sub": sub});
    let email = |name: &str| json!({"format": "email", "email": name});
    // (the subject, which end: alice by session a, alice by session b, bob by session c)
    for (subject, expected) in [
        (person("alice"), [true, true, false]),
        (email("ALICE@corp.example"), [true, true, false]),
        (opaque("alice"), [true, true, false]),
        (opaque("a"), [true, false, false]),
        (both(person("alice"), opaque("a")), [true, false, false]),
        (both(opaque("alice"), opaque("a")), [true, false, false]),
        (both(person("alice"), opaque("unknown here")), [true, true, false]),
        (both(person("alice"), opaque("c")), [true, true, false]),
        // nobody knows who that is: the session decides
        (both(email("who@corp.example"), opaque("a")), [true, false, false]),
        (both(opaque("alice's"), opaque("c")), [false, false, true]),
        (json!({"format": "complex", "session": opaque("c")}), [false, false, true]),
        // somebody else's
        (foreign("alice"), [false; 3]),
        (foreign("a"), [false; 3]),
        (both(foreign("alice"), opaque("a")), [false; 3]),
        (both(person("alice"), foreign("a")), [true, true, false]),
        (json!({"format": "complex", "session": foreign("a")}), [false; 3]),
    ] {
        let scene = scene("https://transmitter.example").await;
        let all = [
            scene.sign_in("alice", Some("a")).await,
            scene.sign_in("alice", Some("b")).await,
            scene.sign_in("bob", Some("c")).await,
        ];
        let whom = scene.end("session-revoked", json!({}), &subject).await;
        let mut over = [false; 3];
        for (over, who) in over.iter_mut().zip(&all) {
            *over = scene.is_over(who).await;
        }
        assert_eq!((over, whom.browsers_ended), (expected, expected.iter().filter(|ends| **ends).count()), "{subject}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_door_is_closed_when_the_rooms_are_empty() {
    let scene = scene(PROVIDER).await;
    let (alice, bob) = (scene.sign_in("alice", None).await, scene.sign_in("bob", None).await);
    scene.end("session-revoked", json!({}), &person("alice")).await;
    // Nothing has been taken yet: whoever asks now, with a session that was opened meanwhile, is turned away.
    assert!(scene.is_turned_away(&alice).await && !scene.is_turned_away(&bob).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_level_that_rises_is_of_the_session_that_it_names_and_ends_nothing() {
    let scene = scene(PROVIDER).await;
    let named = scene.sign_in("alice", Some("a")).await;
    let unnamed = scene.sign_in("alice", None).await;
    let up = json!({"namespace": "NIST-AAL", "current_level": "nist-aal2", "change_direction": "increase"});
    let whom = scene.end("assurance-level-change", up.clone(), &both(person("alice"), opaque("a"))).await;
    assert_eq!(whom.exactly, BTreeSet::from([named.session()]));
    assert_eq!(whom.browsers, Some(BTreeSet::from([named.session(), unnamed.session()])), "that may be it too");
    let whom = scene.end("assurance-level-change", up, &both(person("alice"), opaque("unknown here"))).await;
    assert_eq!(whom.exactly, BTreeSet::new());
    assert!(!scene.is_over(&named).await && !scene.is_over(&unnamed).await && !scene.is_turned_away(&named).await);
}
