//! Claims about the cache of published keys, in virtual time.

use std::sync::{
    Mutex as StdMutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use ed25519_dalek::{Signer, SigningKey};
use postern_common::time::WallTime;
use serde_json::json;
use tokio::sync::Notify;

use super::*;

const ED: CoreJwsSigningAlgorithm = CoreJwsSigningAlgorithm::EdDsa;
const TEXT: &str = "what is signed";

/// What a test publishes: an answer of bytes, or nobody answers.
#[derive(Default)]
struct Shelf {
    answer: StdMutex<Option<Vec<u8>>>,
    reads: AtomicUsize,
    holds: AtomicBool,
    go_on: Notify,
}

impl Shelf {
    fn publishes(&self, answer: Option<Value>) {
        *self.answer.lock().expect("not poisoned") = answer.map(|answer| answer.to_string().into_bytes());
    }

    fn reads(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

impl Source for Arc<Shelf> {
    type Found = CoreJsonWebKeySet;

    async fn read(&self) -> Result<CoreJsonWebKeySet, String> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.holds.load(Ordering::SeqCst) {
            self.go_on.notified().await;
        }
        let answer = self.answer.lock().expect("not poisoned").clone();
        usable(&answer.ok_or("nobody answers")?)
    }
}

fn at(seconds: u64) -> Now {
    let wall = WallTime::from_millis(1_795_424_400_000 + i64::try_from(seconds).expect("small") * 1_000);
    Now { monotonic: Monotonic::from_millis((1_000 + seconds) * 1_000), wall }
}

fn jwk(seed: u8, name: Option<&str>) -> Value {
    let x = URL_SAFE_NO_PAD.encode(SigningKey::from_bytes(&[seed; 32]).verifying_key().as_bytes());
    let mut key = json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": "EdDSA", "x": x});
    if let Some(name) = name {
        key["kid"] = name.into();
    }
    key
}

fn one(seed: u8, name: &str) -> Option<Value> {
    Some(json!({"keys": [jwk(seed, Some(name))]}))
}

fn cache() -> (Arc<Shelf>, Keys<Arc<Shelf>>) {
    let shelf = Arc::new(Shelf::default());
    (shelf.clone(), Keys::new(shelf))
}

/// Asks about a token of that key, under that name.
async fn ask(keys: &Keys<Arc<Shelf>>, seed: u8, name: Option<&str>, now: Now) -> &'static str {
    let signature = SigningKey::from_bytes(&[seed; 32]).sign(TEXT.as_bytes()).to_bytes();
    match keys.signed(Signed { algorithm: &ED, key: name, text: TEXT, signature: &signature }, now).await {
        Signature::Good(_) => "good",
        Signature::Unknown => "unknown",
        Signature::Unread(_) => "unread",
        Signature::Unavailable(_) => "unavailable",
    }
}

#[tokio::test]
async fn keys_are_kept_for_an_hour_and_where_they_cannot_be_read_for_a_day_and_no_longer() {
    let (shelf, keys) = cache();
    assert_eq!(ask(&keys, 1, Some("a"), at(0)).await, "unavailable", "nobody answers, and nothing is known");
    shelf.publishes(one(1, "a"));
    assert_eq!((ask(&keys, 1, Some("a"), at(10)).await, shelf.reads()), ("good", 2));
    assert_eq!((ask(&keys, 1, Some("a"), at(3_609)).await, shelf.reads()), ("good", 2), "within the hour");
    shelf.publishes(None);
    assert_eq!((ask(&keys, 1, Some("a"), at(3_610)).await, shelf.reads()), ("good", 3), "the last good ones");
    assert_eq!(ask(&keys, 1, Some("a"), at(86_409)).await, "good");
    assert_eq!(ask(&keys, 1, Some("a"), at(86_410)).await, "unavailable", "a day old");
    shelf.publishes(one(2, "b"));
    assert_eq!(ask(&keys, 1, Some("a"), at(86_500)).await, "unknown", "it was taken back meanwhile");
    assert_eq!(ask(&keys, 2, Some("b"), at(86_500)).await, "good");
}

#[tokio::test]
async fn a_clock_on_the_wall_makes_keys_neither_older_nor_younger() {
    let (shelf, keys) = cache();
    shelf.publishes(one(1, "a"));
    assert_eq!(ask(&keys, 1, Some("a"), at(0)).await, "good");
    let back = Now { wall: WallTime::from_millis(0), ..at(90_000) };
    shelf.publishes(None);
    assert_eq!(ask(&keys, 1, Some("a"), back).await, "unavailable", "a clock that was set back kept old keys");
    let (shelf, keys) = cache();
    shelf.publishes(one(1, "a"));
    assert_eq!(ask(&keys, 1, Some("a"), at(0)).await, "good");
    let ahead = Now { wall: at(1_000_000).wall, ..at(1) };
    assert_eq!((ask(&keys, 1, Some("a"), ahead).await, shelf.reads()), ("good", 1));
}

#[tokio::test]
async fn what_is_published_without_a_key_is_a_rotation_to_none() {
    for none in [
        json!({"keys": []}),
        json!({"keys": [{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}]}), // none that can be used
    ] {
        let (shelf, keys) = cache();
        shelf.publishes(one(1, "a"));
        assert_eq!(ask(&keys, 1, Some("a"), at(0)).await, "good");
        shelf.publishes(Some(none.clone()));
        assert_eq!(ask(&keys, 1, Some("a"), at(3_599)).await, "good", "nobody has looked yet");
        assert_eq!(ask(&keys, 1, Some("a"), at(3_600)).await, "unknown", "{none}");
        assert_eq!(ask(&keys, 1, None, at(3_600)).await, "unknown");
        shelf.publishes(one(2, "b"));
        assert_eq!(ask(&keys, 2, Some("b"), at(3_700)).await, "good", "it is over when there is one");
        assert_eq!(ask(&keys, 1, Some("a"), at(3_700)).await, "unknown");
    }
}

#[tokio::test]
async fn an_answer_that_is_no_key_set_leaves_the_last_good_keys() {
    for broken in [json!({}), json!({"keys": {}}), json!([]), json!("busy"), json!(null)] {
        let (shelf, keys) = cache();
        shelf.publishes(one(1, "a"));
        assert_eq!(ask(&keys, 1, Some("a"), at(0)).await, "good");
        shelf.publishes(Some(broken.clone()));
        assert_eq!((ask(&keys, 1, Some("a"), at(4_000)).await, shelf.reads()), ("good", 2), "{broken}");
    }
}

#[tokio::test]
async fn a_new_key_is_found_by_one_look_also_under_an_old_name() {
    let (shelf, keys) = cache();
    shelf.publishes(one(1, "a"));
    assert_eq!(ask(&keys, 1, Some("a"), at(0)).await, "good");
    shelf.publishes(one(2, "b"));
    assert_eq!((ask(&keys, 2, Some("b"), at(1)).await, shelf.reads()), ("good", 2));
    shelf.publishes(one(3, "b"));
    assert_eq!((ask(&keys, 3, Some("b"), at(2)).await, shelf.reads()), ("good", 3));
    assert_eq!(ask(&keys, 2, Some("b"), at(3)).await, "unknown", "its key is gone");
}

#[tokio::test]
async fn invented_names_do_not_become_requests_and_what_may_be_a_new_key_is_not_called_wrong() {
    let (shelf, keys) = cache();
    shelf.publishes(one(1, "a"));
    assert_eq!(ask(&keys, 1, Some("a"), at(0)).await, "good");
    for number in 0..200 {
        let said = ask(&keys, 9, Some(&format!("u{number}")), at(0)).await;
        assert_eq!(said, if number < 5 { "unknown" } else { "unread" }, "{number}");
    }
    assert_eq!(shelf.reads(), 6);
    assert_eq!(ask(&keys, 9, Some("a"), at(0)).await, "unknown", "a key of today, which did not sign it");
    assert_eq!(ask(&keys, 9, Some("a"), at(60)).await, "unknown", "asked again");
    assert_eq!(ask(&keys, 1, Some("a"), at(60)).await, "good");
    // Nobody answers: what names a key of some time ago may be of a newer one.
    shelf.publishes(None);
    assert_eq!(ask(&keys, 9, Some("a"), at(200)).await, "unread");
    assert_eq!(ask(&keys, 1, Some("a"), at(200)).await, "good");
    assert!(shelf.reads() <= 8);
}

#[tokio::test]
async fn one_look_serves_all_who_wait_and_who_is_known_waits_for_nobody() {
    let (shelf, keys) = cache();
    shelf.publishes(one(1, "a"));
    assert_eq!(ask(&keys, 1, Some("a"), at(0)).await, "good");
    shelf.holds.store(true, Ordering::SeqCst);
    shelf.publishes(one(2, "b"));
    let waiting = futures_util::future::join_all((0..WAITERS).map(|_| ask(&keys, 2, Some("b"), at(1))));
    let meanwhile = async {
        while shelf.reads() < 2 {
            tokio::task::yield_now().await;
        }
        assert_eq!(ask(&keys, 1, Some("a"), at(1)).await, "good", "its key is known");
        assert_eq!(ask(&keys, 1, Some("a"), at(5_000)).await, "good", "out of date, while somebody reads");
        assert_eq!(ask(&keys, 2, Some("b"), at(1)).await, "unread", "one more than may wait");
        shelf.holds.store(false, Ordering::SeqCst);
        shelf.go_on.notify_one();
    };
    let (said, ()) = tokio::join!(waiting, meanwhile);
    assert!(said.iter().all(|said| *said == "good"), "{said:?}");
    assert_eq!(shelf.reads(), 2);
}

#[tokio::test]
async fn a_token_without_a_name_means_an_only_key() {
    let (shelf, keys) = cache();
    shelf.publishes(Some(json!({"keys": [jwk(1, None)]})));
    assert_eq!(ask(&keys, 1, None, at(0)).await, "good");
    assert_eq!(ask(&keys, 1, Some("a"), at(0)).await, "unknown", "a name that no key has");
    let (shelf, keys) = cache();
    let rsa = json!({"kty": "RSA", "kid": "r", "use": "sig", "e": "AQAB", "n": URL_SAFE_NO_PAD.encode([0xff; 256])});
    shelf.publishes(Some(json!({"keys": [jwk(1, Some("a")), rsa]})));
    assert_eq!(ask(&keys, 1, None, at(0)).await, "good", "the only one of its kind");
    let (shelf, keys) = cache();
    shelf.publishes(Some(json!({"keys": [jwk(1, Some("a")), jwk(2, Some("b"))]})));
    assert_eq!(ask(&keys, 1, None, at(0)).await, "unknown", "nobody has every key tried");
}

#[tokio::test]
async fn a_key_signs_what_it_is_for() {
    for (name, value, expected) in [
        ("use", json!("sig"), "good"),
        ("use", json!("enc"), "unknown"),
        ("alg", json!("EdDSA"), "good"),
        ("alg", json!("ES256"), "unknown"),
        ("alg", json!("RSA-OAEP"), "unknown"),
    ] {
        let (shelf, keys) = cache();
        let mut key = jwk(1, Some("a"));
        key[name] = value.clone();
        shelf.publishes(Some(json!({"keys": [key]})));
        assert_eq!(ask(&keys, 1, Some("a"), at(0)).await, expected, "{name}: {value}");
    }
}

#[test]
fn keys_that_cannot_sign_safely_are_left_out() {
    let rsa =
        |bytes: usize| json!({"kty": "RSA", "kid": "r", "e": "AQAB", "n": URL_SAFE_NO_PAD.encode(vec![0xff; bytes])});
    let of = |keys: Value| usable(json!({ "keys": keys }).to_string().as_bytes()).map(|set| set.keys().len());
    for (keys, left) in [
        (json!([]), 0),
        (json!([{"kty": "oct", "kid": "s", "k": "c2VjcmV0"}]), 0),
        (json!([rsa(128)]), 0),
        (json!([rsa(2_048)]), 0),
        (json!([{"kty": "new"}]), 0),
        (json!([{"kty": "OKP"}, 7, null]), 0),
        (json!([rsa(256), rsa(128)]), 1),
        (json!(vec![rsa(256); 100]), 64),
    ] {
        assert_eq!(of(keys.clone()), Ok(left), "{keys}");
    }
    assert!(of(json!("keys")).is_err() && usable(b"not JSON").is_err());
}

#[tokio::test]
async fn keys_are_read_again_at_half_their_age_so_that_no_token_waits_for_them() {
    let (shelf, keys) = cache();
    keys.freshen(at(0)).await;
    assert_eq!(shelf.reads(), 0, "nobody has asked for them");
    shelf.publishes(one(1, "a"));
    assert_eq!(ask(&keys, 1, Some("a"), at(0)).await, "good");
    keys.freshen(at(1_799)).await;
    assert_eq!(shelf.reads(), 1);
    shelf.publishes(one(2, "b"));
    keys.freshen(at(1_800)).await;
    assert_eq!((shelf.reads(), ask(&keys, 2, Some("b"), at(5_399)).await, shelf.reads()), (2, "good", 2));
    shelf.publishes(None);
    keys.freshen(at(5_400)).await;
    assert_eq!(ask(&keys, 2, Some("b"), at(5_400)).await, "good", "the last good ones stay");
}
