//! SCIM over the wire: who is let in, what is too much, and that a large group keeps nobody waiting.

mod service;

use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::{
    admin::scim::ScimRequest,
    identity::SignedIn,
    web::doors::{Doors, StockRequest},
};

/// How many of a large group are signed in.
const SIGNED_IN: usize = 100;

const USER: &str = "urn:ietf:params:scim:schemas:core:2.0:User";
const GROUP: &str = "urn:ietf:params:scim:schemas:core:2.0:Group";

fn about(request: ScimRequest) -> Request {
    Request::Scim { request }
}

/// An answer: status, headers, body.
struct Answer {
    status: u16,
    head: String,
    body: Value,
}

impl Controller {
    async fn with_scim() -> Self {
        Self::with_scim_and("").await
    }

    async fn with_scim_and(policy: &str) -> Self {
        let mut controller = Self::prepare(policy);
        let file = controller.file("controller.toml");
        let text = std::fs::read_to_string(&file).unwrap();
        let oidc = "[oidc]\nissuer = \"https://idp.example\"\nclient_id = \"postern\"\n[oidc.scim]\n";
        std::fs::write(&file, format!("{text}\n{oidc}")).unwrap();
        controller.serve().await.unwrap();
        controller
    }

    async fn scim_token(&self) -> String {
        let made = self.ask(about(ScimRequest::TokenCreate { networks: vec![], ttl_s: 3_600 })).await.unwrap();
        assert_eq!(made["base_url"], "https://127.0.0.1/scim/v2");
        made["token"].as_str().unwrap().to_owned()
    }

    /// Sends one request on a connection of its own.
    async fn scim(&self, method: &str, path: &str, headers: &[&str], body: &[u8]) -> Answer {
        let mut tls = self.tls().await;
        let mut head = format!("{method} /scim/v2{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
        for header in headers {
            head.push_str(&format!("{header}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        tls.write_all(head.as_bytes()).await.unwrap();
        drop(tls.write_all(body).await); // it may be refused before it has arrived
        let mut answer = Vec::new();
        drop(timeout(PATIENCE, tls.read_to_end(&mut answer)).await.unwrap());
        let at = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8_lossy(&answer[..at]).to_lowercase();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        let body = serde_json::from_slice(&answer[at + 4..]).unwrap_or_default();
        Answer { status, head, body }
    }

    async fn asks(&self, token: &str, method: &str, path: &str, body: &Value) -> Answer {
        let bearer = format!("Authorization: Bearer {token}");
        let body = if body.is_null() { vec![] } else { body.to_string().into_bytes() };
        self.scim(method, path, &[&bearer, "Content-Type: application/scim+json; charset=utf-8"], &body).await
    }

    fn audit_text(&self) -> String {
        let files = crate::audit::files(&self.config().audit_dir()).unwrap();
        files.iter().map(|(_, path)| std::fs::read_to_string(path).unwrap()).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_good_token_nothing_is_told_read_or_changed() {
    let controller = Controller::with_scim().await;
    let token = controller.scim_token().await;
    let alice = json!({"schemas": [USER], "userName": "alice"}).to_string();
    let right = format!("Authorization: Bearer {token}");
    for headers in [
        &[][..],
        &["Authorization: Bearer"],
        &["Authorization: Bearer pst_scim_GUESS"],
        &["Authorization: Basic cG9zdGVybjpwb3N0ZXJu"],
        &[right.as_str(), right.as_str()],
    ] {
        for (method, path) in
            [("POST", "/Users"), ("GET", "/Users"), ("GET", "/ServiceProviderConfig"), ("GET", "/none")]
        {
            let answer = controller.scim(method, path, headers, alice.as_bytes()).await;
            assert_eq!(answer.status, 401, "{headers:?} {method} {path}");
            assert!(answer.head.contains("www-authenticate: bearer"), "{}", answer.head);
            assert_eq!(answer.body["status"], "401");
        }
    }
    let listed = controller.asks(&token, "GET", "/Users", &Value::Null).await;
    assert_eq!((listed.status, &listed.body["totalResults"]), (200, &json!(0)));
    let status = controller.ask(about(ScimRequest::Status)).await.unwrap();
    assert_eq!(status["refused"], 20);
    let log = controller.audit_text();
    assert_eq!(log.matches("signal_refused").count(), 2, "{log}");
    assert!(!log.contains(&token) && !log.contains("GUESS"));

    let short = controller.ask(about(ScimRequest::TokenList)).await.unwrap()[0]["short"].as_str().unwrap().to_owned();
    controller.ask(about(ScimRequest::TokenRevoke { token: short })).await.unwrap();
    assert_eq!(controller.asks(&token, "GET", "/Users", &Value::Null).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_of_another_type_or_no_json_is_refused_in_the_words_of_scim() {
    let controller = Controller::with_scim().await;
    let token = controller.scim_token().await;
    let bearer = format!("Authorization: Bearer {token}");
    let ask = async |kind: &str, body: &[u8]| {
        controller.scim("POST", "/Users", &[&bearer, &format!("Content-Type: {kind}")], body).await
    };
    for (kind, body, status) in [
        ("application/scim+json", &vec![b'x'; (8 << 20) + 1][..], 413),
        ("text/plain", b"{}", 415),
        ("application/json", b"{", 400),
        ("application/json", b"[]", 400),
        ("application/scim+json", "[".repeat(100_000).as_bytes(), 400),
    ] {
        let answer = ask(kind, body).await;
        assert_eq!(
            (answer.status, answer.body["status"].as_str().map(str::to_owned)),
            (status, Some(status.to_string()))
        );
    }
    assert!(controller.audit_text().contains("\"reason\":\"too large\""));
    // Without [oidc.scim] there is no such service.
    let plain = Controller::start("").await;
    assert_eq!(plain.scim("GET", "/Users", &[&bearer], b"").await.status, 404);
    let refused = plain.ask(about(ScimRequest::TokenCreate { networks: vec![], ttl_s: 60 })).await.unwrap_err();
    assert!(refused.to_string().contains("[oidc.scim]"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_of_ten_thousand_keeps_nobody_waiting_and_is_there_after_a_restart() {
    let policy = POLICY.replace("\"service:app\"", "\"group:staff\"") + "stock_clients = true\n";
    let mut controller = Controller::with_scim_and(&policy).await;
    let token = controller.scim_token().await;
    let mut database = Machine::new("db-1", 1);
    database.enrol(&controller, &controller.token("db", "db", 1).await).await;
    let _stream = database.hello(&controller).await;
    // The people come in through the actor, as requests do, without their round trips.
    let handle = controller.running().handle.clone();
    let hash = crate::records::TokenHash::of(&token);
    let from: std::net::IpAddr = "127.0.0.1".parse().unwrap();
    let mut ids = Vec::new();
    for portion in 0..100 {
        let made = handle.call(move |turn, now| {
            let client = turn.core.scim_client(Some(hash), from, now).unwrap();
            let one = |n: usize| {
                let name = format!("user-{portion}-{n}");
                let body = json!({"schemas": [USER], "userName": format!("{name}@corp.example"), "externalId": name});
                let body = body.to_string();
                let asked = crate::signals::scim::Request {
                    method: "POST",
                    path: "/Users",
                    query: "",
                    if_match: None,
                    if_none_match: None,
                    body: body.as_bytes(),
                };
                let command = crate::signals::scim::parse(&asked).unwrap();
                let (answer, _) = turn.core.scim(&client, command, from, now).unwrap();
                answer.render("").body.unwrap()["id"].clone()
            };
            (0..100).map(one).collect::<Vec<Value>>()
        });
        ids.extend(made.await.unwrap());
    }
    // A hundred of them are signed in, and may open something.
    let staff: Vec<Value> = ids[..SIGNED_IN].iter().map(|id| json!({"value": id})).collect();
    let staff = json!({"schemas": [GROUP], "displayName": "staff", "members": staff});
    assert_eq!(controller.asks(&token, "POST", "/Groups", &staff).await.status, 201);
    let who = |n: usize| SignedIn::for_test("https://idp.example", &format!("user-0-{n}"), &format!("user-{n}"), &[]);
    for n in 0..SIGNED_IN {
        let (name, mut key) = (format!("phone-{n}").parse().unwrap(), [0x77; 32]);
        key[0] = u8::try_from(n).unwrap();
        let asked = StockRequest { name, public_key: WireGuardPublicKey::from_bytes(key) };
        Doors::stock_client(&handle, asked, &who(n)).await.unwrap();
    }
    let decisions = async |handle: &crate::serve::actor::Handle| {
        handle.call(|turn, _| turn.core.status().counters.decisions).await.unwrap()
    };
    let before = decisions(&handle).await;
    let asking = handle.clone();
    let members: Vec<Value> = ids.iter().map(|id| json!({"value": id, "display": "somebody with a name"})).collect();
    let group = json!({"schemas": [GROUP], "displayName": "everybody", "members": members});
    // Somebody else asks all the time, while the group is made and while it is emptied.
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let until = Arc::clone(&over);
    let waited = tokio::spawn(async move {
        let (mut worst, mut asks) = (Duration::ZERO, 0);
        while !until.load(std::sync::atomic::Ordering::Relaxed) {
            let asked = std::time::Instant::now();
            asking.call(|_, _| ()).await.unwrap();
            worst = worst.max(asked.elapsed());
            asks += 1;
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        (worst, asks)
    });
    let made = controller.asks(&token, "POST", "/Groups?excludedAttributes=members", &group).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let emptied = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
        "Operations": [{"op": "remove", "path": "members", "value": members[..9_999]}]});
    let target = format!("/Groups/{}", made.body["id"].as_str().unwrap());
    let whole = controller.asks(&token, "GET", &target, &Value::Null).await;
    assert_eq!(whole.body["members"].as_array().map(Vec::len), Some(10_000));
    assert_eq!(controller.asks(&token, "PATCH", &target, &emptied).await.status, 204);
    let done = async || handle.call(|turn, now| turn.core.scim_view(now).waiting == 0).await.unwrap();
    while !done().await {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let decided = usize::try_from(decisions(&handle).await - before).unwrap();
    assert!(decided >= SIGNED_IN, "{decided} decisions: the members who are signed in were not decided anew");
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    let (worst, asks) = waited.await.unwrap();
    assert!(worst < Duration::from_secs(2) && asks > 10, "somebody waited for {worst:?}, of {asks} asks");
    println!("the longest wait of {asks} beside a group of 10,000: {worst:?}");
    let off = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"],
        "Operations": [{"op": "replace", "path": "active", "value": false}]});
    let leaver = format!("/Users/{}", ids[0].as_str().unwrap());
    assert_eq!(controller.asks(&token, "PATCH", &leaver, &off).await.status, 200);
    drop(handle);
    controller.stop().await;
    controller.serve().await.unwrap();
    let out = async |n: usize| {
        let person = crate::records::Person::from(&who(n));
        controller.running().handle.call(move |turn, _| turn.core.turned_away(&person)).await.unwrap()
    };
    assert_eq!((out(0).await.is_some(), out(1).await), (true, None), "who is deactivated is so after a restart");
    let whole = controller.asks(&token, "GET", &target, &Value::Null).await;
    assert_eq!(whole.body["members"].as_array().map(Vec::len), Some(1));
    assert_eq!(
        controller.ask(about(ScimRequest::Groups)).await.unwrap(),
        json!([{"name": "staff", "people": 100}, {"name": "everybody", "people": 1}])
    );
}
