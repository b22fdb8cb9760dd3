//! Claims about tokens of events: each part has to hold.

use postern_common::time::WallTime;
use serde_json::{Value, json};

use super::{
    event::{Compliance, CredentialChange, Direction, Level, NewGroups, StreamStatus, Told},
    set::{self, ErrorCode, Expected, SecurityEvent},
};

const NOW: i64 = 1_795_424_400;
const ISSUER: &str = "https://idp.example";
const CAEP: &str = "https://schemas.openid.net/secevent/caep/event-type/";
const SSF: &str = "https://schemas.openid.net/secevent/ssf/event-type/";

fn token(kind: &str, payload: &Value) -> Value {
    json!({"iss": ISSUER, "aud": "https://ctl.example/events/okta", "iat": NOW - 5, "jti": "j-1",
        "sub_id": {"format": "iss_sub", "iss": ISSUER, "sub": "alice"}, "events": {kind: payload}})
}

fn revoked() -> Value {
    token(&format!("{CAEP}session-revoked"), &json!({"event_timestamp": NOW - 9}))
}

fn read(claims: &Value) -> Result<SecurityEvent, set::Refused> {
    read_or_wait(claims).map_err(|unread| match unread {
        set::Unread::Refused(refused) => refused,
        set::Unread::NotYet => panic!("it lies in the future"),
    })
}

fn read_or_wait(claims: &Value) -> Result<SecurityEvent, set::Unread> {
    let audience = "https://ctl.example/events/okta";
    let expected = Expected { issuer: ISSUER, audience, stream_id: Some("s-1"), max_age: 3_600, stream: "okta" };
    set::read(claims.to_string().as_bytes(), expected, WallTime::from_millis(NOW * 1_000))
}

fn told(kind: &str, payload: &Value) -> Result<Told, &'static str> {
    read(&token(kind, payload)).map(|event| event.told).map_err(|refused| refused.why)
}

#[test]
fn every_part_of_a_token_has_to_hold() {
    let event = read(&revoked()).expect("good");
    assert_eq!((event.told, event.at), (Told::SessionRevoked, WallTime::from_millis((NOW - 9) * 1_000)));
    let wrong: [(&str, Value, ErrorCode); 21] = [
        ("iss", json!("https://evil.example"), ErrorCode::InvalidIssuer),
        ("iss", json!(null), ErrorCode::InvalidIssuer),
        ("aud", json!("another"), ErrorCode::InvalidAudience),
        ("aud", json!(["another"]), ErrorCode::InvalidAudience),
        ("aud", json!([]), ErrorCode::InvalidAudience),
        ("aud", json!(vec!["https://ctl.example/events/okta"; 9]), ErrorCode::InvalidAudience),
        ("iat", json!(NOW - 3_601), ErrorCode::InvalidRequest),
        ("iat", json!("now"), ErrorCode::InvalidRequest),
        ("iat", json!(i64::MIN), ErrorCode::InvalidRequest),
        ("jti", json!(""), ErrorCode::InvalidRequest),
        ("jti", json!(7), ErrorCode::InvalidRequest),
        ("jti", json!("x".repeat(256)), ErrorCode::InvalidRequest),
        ("sub", json!("alice"), ErrorCode::InvalidRequest),
        ("exp", json!(NOW + 60), ErrorCode::InvalidRequest),
        ("nonce", json!("n"), ErrorCode::InvalidRequest),
        ("sub_id", json!("alice"), ErrorCode::InvalidRequest),
        ("events", json!({}), ErrorCode::InvalidRequest),
        ("events", json!([revoked()["events"]]), ErrorCode::InvalidRequest),
        ("events", json!({format!("{CAEP}session-revoked"): true}), ErrorCode::InvalidRequest),
        (
            "events",
            json!({format!("{CAEP}session-revoked"): {}, format!("{SSF}verification"): {}}),
            ErrorCode::InvalidRequest,
        ),
        ("events", json!({format!("{CAEP}session-revoked"): {"event_timestamp": "now"}}), ErrorCode::InvalidRequest),
    ];
    for (claim, value, code) in wrong {
        let mut claims = revoked();
        claims[claim] = value.clone();
        assert_eq!(read(&claims).map_err(|refused| refused.code), Err(code), "{claim}: {value}");
    }
    for missing in ["iss", "aud", "iat", "jti", "sub_id", "events"] {
        let mut claims = revoked();
        claims.as_object_mut().expect("an object").remove(missing);
        assert!(read(&claims).is_err(), "without {missing}");
    }
    let mut several = revoked();
    several["aud"] = json!(["https://other.example", "https://ctl.example/events/okta"]);
    assert!(read(&several).is_ok());
}

#[test]
fn the_time_of_an_event_is_never_to_come() {
    let at = |payload: Value| read(&token(&format!("{CAEP}session-revoked"), &payload)).expect("good").at;
    assert_eq!(at(json!({})), WallTime::from_millis((NOW - 5) * 1_000), "when it was issued");
    assert_eq!(at(json!({"event_timestamp": NOW as f64 - 7.5})), WallTime::from_millis(NOW * 1_000 - 7_500));
    for ahead in [json!(NOW + 9), json!(1e300), json!(NOW * 1_000)] {
        assert_eq!(at(json!({"event_timestamp": ahead})), WallTime::from_millis(NOW * 1_000));
    }
}

#[test]
fn what_lies_in_the_future_is_left_with_the_transmitter_and_not_lost() {
    for (ahead, expected) in [(60, None), (61, Some(set::Unread::NotYet)), (86_400, Some(set::Unread::NotYet))] {
        let mut claims = revoked();
        claims["iat"] = json!(NOW + ahead);
        assert_eq!(read_or_wait(&claims).err(), expected, "{ahead}");
    }
}

#[test]
fn two_streams_of_one_transmitter_may_use_one_name() {
    let of = |stream: &str| {
        let audience = "https://ctl.example/events/okta";
        let expected = Expected { issuer: ISSUER, audience, stream_id: None, max_age: 3_600, stream };
        let now = WallTime::from_millis(NOW * 1_000);
        set::read(revoked().to_string().as_bytes(), expected, now).expect("good").hash
    };
    assert_ne!(of("okta"), of("other"));
}

#[test]
fn the_type_and_the_form_are_looked_at_before_anything_else() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    let text = |header: &Value| {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.c2ln", part(header), part(&revoked()))
    };
    for good in ["secevent+jwt", "application/secevent+jwt", "SECEVENT+JWT"] {
        assert!(set::parse(&text(&json!({"alg": "ES256", "typ": good}))).is_ok(), "{good}");
    }
    for bad in [json!({"alg": "ES256"}), json!({"alg": "ES256", "typ": "JWT"}), json!({"typ": "secevent+jwt"})] {
        assert!(set::parse(&text(&bad)).is_err(), "{bad}");
    }
    for typ in ["logout+jwt", "at+jwt"] {
        assert!(set::parse(&text(&json!({"alg": "ES256", "typ": typ}))).is_err(), "{typ}");
    }
    for text in ["", "a.b.c", "....", &"x".repeat(set::MAX_TOKEN + 1)] {
        assert!(set::parse(text).is_err());
    }
}

#[test]
fn every_event_is_read_and_what_it_lacks_is_said() {
    let caep = |name: &str| format!("{CAEP}{name}");
    let level = |namespace: &str, current: &str, direction: Option<&str>| {
        let mut payload = json!({"namespace": namespace, "current_level": current});
        if let Some(direction) = direction {
            payload["change_direction"] = direction.into();
        }
        match told(&caep("assurance-level-change"), &payload) {
            Ok(Told::AssuranceLevelChange { level, direction }) => Some((level, direction)),
            _other => None,
        }
    };
    let credential = json!({"credential_type": "password", "change_type": "update"});
    assert_eq!(
        told(&caep("credential-change"), &credential),
        Ok(Told::CredentialChange { credential: "password".into(), change: CredentialChange::Update })
    );
    assert_eq!(level("NIST-AAL", "nist-aal1", Some("decrease")), Some((Level::OneFactor, Direction::Down)));
    assert_eq!(level("NIST-AAL", "AAL3", None), Some((Level::PhishingResistant, Direction::Unsaid)));
    assert_eq!(level("NIST-AAL", "9", Some("increase")), Some((Level::Higher, Direction::Up)));
    assert_eq!(level("NIST-AAL", "9", None), Some((Level::Nothing, Direction::Unsaid)));
    assert_eq!(level("NIST-IAL", "nist-ial1", Some("decrease")), Some((Level::Elsewhere, Direction::Down)));
    assert_eq!(level("RFC8176", "pwd", None), Some((Level::Method("pwd".into()), Direction::Unsaid)));
    assert_eq!(level("urn:corp", "urn:corp:low", None), Some((Level::Class("urn:corp:low".into()), Direction::Unsaid)));
    assert_eq!(level("NIST-AAL", "nist-aal1", Some("sideways")), None);
    assert_eq!(
        told(&caep("device-compliance-change"), &json!({"current_status": "not-compliant"})),
        Ok(Told::DeviceComplianceChange(Compliance::NotCompliant))
    );
    let Ok(Told::TokenClaimsChange(claims)) =
        told(&caep("token-claims-change"), &json!({"claims": {"roles": ["a"], "acr": "urn:x", "bad": 7}}))
    else {
        panic!("claims")
    };
    assert_eq!(claims.groups("roles"), NewGroups::Now(Some(["a".to_owned()].into())));
    assert_eq!((claims.groups("groups"), claims.groups("bad")), (NewGroups::Unsaid, NewGroups::Now(None)));
    assert_eq!(claims.class(), Some(Level::Class("urn:x".into())));
    assert_eq!(
        told("https://example.com/own", &json!({})),
        Ok(Told::Unknown { kind: "https://example.com/own".into() })
    );
    for (name, payload) in [
        ("credential-change", json!({})),
        ("credential-change", json!({"credential_type": "password", "change_type": "forgot"})),
        ("assurance-level-change", json!({"namespace": "NIST-AAL"})),
        ("device-compliance-change", json!({"current_status": "perhaps"})),
        ("token-claims-change", json!({"claims": {}})),
        ("token-claims-change", json!({"claims": ["groups"]})),
    ] {
        assert!(told(&caep(name), &payload).is_err(), "{name} {payload}");
    }
}

#[test]
fn what_is_said_of_a_stream_is_said_of_this_one() {
    let of = |kind: &str, payload: Value, id: Value| {
        let mut claims = token(&format!("{SSF}{kind}"), &payload);
        claims["sub_id"] = id;
        read(&claims).map(|event| event.told).map_err(|refused| refused.why)
    };
    let own = || json!({"format": "opaque", "id": "s-1"});
    assert_eq!(of("verification", json!({"state": "x"}), own()), Ok(Told::Verification { state: Some("x".into()) }));
    assert_eq!(
        of("stream-updated", json!({"status": "paused", "reason": "late"}), own()),
        Ok(Told::StreamUpdated { status: StreamStatus::Paused, reason: Some("late".into()) })
    );
    for (payload, id) in [
        (json!({}), json!({"format": "opaque", "id": "s-2"})),
        (json!({}), json!({"format": "email", "email": "s-1"})),
        (json!({"state": 7}), own()),
    ] {
        assert!(of("verification", payload.clone(), id.clone()).is_err(), "{payload} {id}");
    }
    assert!(of("stream-updated", json!({"status": "tired"}), own()).is_err());
}
