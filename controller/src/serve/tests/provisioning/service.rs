//! The service without its listener: the clock stands still, and a client goes away in the middle.

use axum::{
    Router,
    body::{Body, Bytes},
    extract::ConnectInfo,
    http::{Request as HttpRequest, Response, header},
};
use futures_util::{FutureExt, stream};
use tokio::sync::oneshot;
use tower::ServiceExt;

use super::*;
use crate::{
    identity::{Proof, sessions::WebSessions},
    records::ProvisionedName,
    signals::scim::http,
    store::SqliteStore,
};

const PATCH: &str = "urn:ietf:params:scim:api:messages:2.0:PatchOp";

impl Controller {
    async fn sessions(&self) -> WebSessions {
        WebSessions::new(SqliteStore::pool(&self.config().database()).await.unwrap(), Default::default())
    }

    /// Makes a service of its own beside the one that listens; its clock stands still.
    async fn scim_service(&self) -> Router {
        let now = clock::now().wall;
        let handle = self.running().handle.clone();
        http::router(http::Service::new(handle, self.sessions().await, Arc::new(move || now), "https://127.0.0.1"))
    }
}

fn request(token: Option<&str>, method: &str, path: &str, body: Body) -> HttpRequest<Body> {
    let from: SocketAddr = "203.0.113.9:4711".parse().unwrap();
    let mut request = HttpRequest::builder().method(method).uri(format!("/scim/v2{path}")).extension(ConnectInfo(from));
    if let Some(token) = token {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    request.header(header::CONTENT_TYPE, "application/scim+json").body(body).unwrap()
}

async fn answer(service: &Router, request: HttpRequest<Body>) -> Response<Body> {
    service.clone().oneshot(request).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn strangers_from_the_providers_network_do_not_keep_it_out() {
    let controller = Controller::with_scim().await;
    let (token, service) = (controller.scim_token().await, controller.scim_service().await);
    let get = |token| request(token, "GET", "/Users", Body::empty());
    assert_eq!(answer(&service, get(Some(&token))).await.status(), 200);
    let mut last = 0;
    for _ in 0..601 {
        last = answer(&service, get(Some("pst_scim_GUESS"))).await.status().as_u16();
    }
    assert_eq!(last, 429);
    assert_eq!(answer(&service, get(Some(&token))).await.status(), 200, "the provider is a stranger");
    // A token that is no longer good is one of many.
    let short = crate::records::TokenHash::of(&token).short();
    controller.ask(about(ScimRequest::TokenRevoke { token: short })).await.unwrap();
    assert_eq!(answer(&service, get(Some(&token))).await.status(), 401);
    assert_eq!(answer(&service, get(Some(&token))).await.status(), 429);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_goes_away_in_the_middle_leaves_nobody_signed_in() {
    let controller = Controller::with_scim().await;
    let (token, service) = (controller.scim_token().await, controller.scim_service().await);
    let alice = json!({"schemas": [USER], "userName": "alice@corp.example", "externalId": "alice"});
    let made = controller.asks(&token, "POST", "/Users", &alice).await;
    let target = format!("/Users/{}", made.body["id"].as_str().unwrap());
    let sessions = controller.sessions().await;
    let proof = Proof {
        issuer: "https://idp.example".into(),
        subject: "alice".into(),
        name: "alice@corp.example".into(),
        groups: None,
        acr: None,
        amr: vec![],
        auth_time: None,
        provisioned_as: Some(ProvisionedName { claim: "sub".into(), value: "alice".into() }),
        sid: None,
    };
    let (cookie, _) = sessions.open(proof, clock::now().wall).await.unwrap();

    let off = json!({"schemas": [PATCH], "Operations": [{"op": "replace", "path": "active", "value": false}]});
    let ((reached, at_the_body), (go_on, going_on)) = (oneshot::channel(), oneshot::channel::<()>());
    let body = stream::once(async move {
        reached.send(()).unwrap();
        going_on.await.unwrap();
        Ok::<_, std::io::Error>(Bytes::from(off.to_string()))
    });
    let asked = request(Some(&token), "PATCH", &target, Body::from_stream(body));
    let mut asking = Box::pin(service.clone().oneshot(asked));
    tokio::select! {
        _ = &mut asking => panic!("it is answered before it is read"),
        reached = at_the_body => reached.unwrap(),
    }
    // The core is busy when the command comes to it, and the client goes away before it is done.
    let ((busy, is_busy), (free, freed)) = (oneshot::channel(), std::sync::mpsc::channel::<()>());
    let handle = controller.running().handle.clone();
    let held = tokio::spawn(async move {
        let hold = move |_: &mut crate::serve::actor::Turn<'_>, _| {
            busy.send(()).unwrap();
            freed.recv().unwrap();
        };
        handle.call(hold).await
    });
    is_busy.await.unwrap();
    go_on.send(()).unwrap();
    assert!((&mut asking).now_or_never().is_none(), "it is answered before it is done");
    drop(asking);
    free.send(()).unwrap();
    held.await.unwrap().unwrap();
    let gone = async {
        while sessions.find(&cookie, clock::now().wall).await.unwrap().is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), gone).await.expect("she is still signed in on the pages");
    let user = controller.asks(&token, "GET", &target, &Value::Null).await;
    assert_eq!(user.body["active"], false);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_the_protocol_wants_beside_a_status_is_there() {
    let controller = Controller::with_scim().await;
    let (token, service) = (controller.scim_token().await, controller.scim_service().await);
    let cut_short = stream::iter([Ok(Bytes::from("{")), Err(std::io::Error::other("the client is gone"))]);
    let refused = answer(&service, request(Some(&token), "POST", "/Users", Body::from_stream(cut_short))).await;
    assert_eq!(refused.status(), 400, "it is not too large");
    let refused = answer(&service, request(Some(&token), "DELETE", "/Groups", Body::empty())).await;
    assert_eq!((refused.status().as_u16(), &refused.headers()[header::ALLOW]), (405, &"GET, POST".parse().unwrap()));
    let alice = json!({"schemas": [USER], "userName": "alice", "externalId": "alice"});
    let made = controller.asks(&token, "POST", "/Users", &alice).await;
    let target = format!("/Users/{}", made.body["id"].as_str().unwrap());
    let mut same = request(Some(&token), "GET", &target, Body::empty());
    same.headers_mut().insert(header::IF_NONE_MATCH, "W/\"1\"".parse().unwrap());
    let same = answer(&service, same).await;
    assert_eq!((same.status().as_u16(), &same.headers()[header::ETAG]), (304, &"W/\"1\"".parse().unwrap()));

    // Who is not put out for the sake of another attribute is an alert, through the whole of it.
    let off =
        json!({"schemas": [PATCH], "Operations": [{"op": "replace", "value": {"active": false, "shoeSize": 45}}]});
    let refused = answer(&service, request(Some(&token), "PATCH", &target, Body::from(off.to_string()))).await;
    assert_eq!(refused.status(), 400);
    assert!(controller.audit_text().contains("stays in: the provider's request to put them out was refused"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_client_that_asks_too_often_is_told_when_to_come_again() {
    let controller = Controller::with_scim().await;
    let (token, service) = (controller.scim_token().await, controller.scim_service().await);
    let get = || request(Some(&token), "GET", "/Users", Body::empty());
    for _ in 0..600 {
        assert_eq!(answer(&service, get()).await.status(), 200);
    }
    let refused = answer(&service, get()).await;
    assert_eq!(refused.status(), 429);
    assert_eq!(refused.headers().get(header::RETRY_AFTER).unwrap(), "1");
    let other = controller.scim_token().await;
    let get = request(Some(&other), "GET", "/Users", Body::empty());
    assert_eq!(answer(&service, get).await.status(), 200, "another client has its own allowance");
}
