//! Claims about people who leave: nobody gets what was theirs, nobody stays in unseen, and somebody hears when they do.

use super::*;
use crate::signals::alerts::AlertKind;

impl Corp {
    fn told_of(&self) -> Vec<String> {
        let alerts = self.world.store.alerts.iter().filter(|alert| alert.kind == AlertKind::Provisioning);
        alerts.map(|alert| alert.text.clone()).collect()
    }

    fn audited(&self, words: &str) -> bool {
        let of = |event: &AuditEvent| matches!(event, AuditEvent::Provisioned { what, .. } if what.contains(words));
        self.world.audit.iter().any(of)
    }
}

#[test]
fn who_gets_a_leavers_address_gets_none_of_their_groups() {
    let mut corp = Corp::new(31, settings(GroupSource::Scim, Admission::Anybody));
    corp.activate("alice", false);
    // The client finds the old record by `userName`, as Entra does by default, and makes it the newcomer's.
    let newcomer = json!([
        {"op": "Add", "path": "externalId", "value": "sub-newcomer"},
        {"op": "Replace", "path": "active", "value": "True"},
    ]);
    corp.change("/Users", "alice", &newcomer);
    assert!(corp.audited("externalId was `sub-alice`; somebody else now, so out of 2 groups: `payroll`, `staff`"));
    let node = corp.world.laptop("new-laptop", &person("newcomer", &[]));
    corp.world.run(seconds(2));
    assert_eq!(corp.reaches(node), (false, false));
    assert!(corp.confirms("old", &person("alice", &[])).expect_err("out").to_string().contains("removed"));
    // What is given to the newcomer is.
    let user = corp.id("/Users", "alice");
    corp.change("/Groups", "staff", &json!([{"op": "Add", "path": "members", "value": [{"value": user}]}]));
    corp.world.run(seconds(2));
    assert_eq!(corp.reaches(node), (true, false));
}

#[test]
fn who_has_no_name_by_the_claim_is_out_until_they_sign_in_with_one() {
    let mut corp = Corp::new(32, settings(GroupSource::Claims, Admission::Anybody));
    let badge = |value: &str| Person { provisioned_as: told("badge", value), ..person("carl", &["staff"]) };
    let carl = corp.world.laptop("carl-laptop", &badge("sub-bob"));
    corp.world.run(seconds(1));
    assert!(corp.world.passes(carl, corp.wiki, "tcp/80"));
    // What he said by another claim is somebody else's name here.
    corp.world.config.scim.as_mut().expect("settings").claim = "employee".into();
    corp.world.restart();
    assert!(corp.world.core.list_sessions().is_empty(), "nobody's last sign-in told who they are");
    let reason = |corp: &Corp| {
        let subjects = corp.world.core.list_subjects();
        let of = subjects.iter().find(|view| view.record.name == "carl@corp.example").expect("known");
        of.provisioned.clone().expect("provisioning is about him")
    };
    assert!(reason(&corp).contains("sign in again") && reason(&corp).contains("`employee`"), "{}", reason(&corp));
    assert!(corp.confirms("no", &badge("sub-carl")).is_err());
    let employee = Person { provisioned_as: told("employee", "sub-carl"), ..person("carl", &["staff"]) };
    assert_eq!(corp.confirms("yes", &employee), Ok(()));
    assert!(reason(&corp).contains("not provisioned"));
}

#[test]
fn a_deactivation_that_concerns_nobody_says_so() {
    let mut corp = Corp::new(33, settings(GroupSource::Scim, Admission::Anybody));
    assert_eq!(corp.world.core.scim_view(corp.world.now).unmatched, 0);
    corp.user("nina");
    assert_eq!(corp.world.core.scim_view(corp.world.now).unmatched, 1);
    corp.activate("alice", false);
    assert!(!corp.audited("nobody who signed in here"));
    corp.activate("nina", false);
    assert!(corp.audited("deactivated `nina` (externalId `sub-nina`); nobody who signed in here goes by that name"));
    assert_eq!(corp.world.core.scim_view(corp.world.now).unmatched, 0);
}

#[test]
fn a_refused_deactivation_is_told_to_people_once() {
    let mut corp = Corp::new(34, settings(GroupSource::Scim, Admission::Anybody));
    let (alice, bob) = (corp.id("/Users", "alice"), corp.id("/Users", "bob"));
    corp.activate("bob", false);
    let client = corp.world.core.scim_client(Some(corp.token), from(), corp.world.now).expect("good");
    let off = r#"{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[
        {"op":"Replace","path":"shoeSize","value":"45"},{"op":"Replace","path":"active","value":"False"}]}"#;
    for _ in 0..20 {
        for id in [&alice, &bob] {
            let path = format!("/Users/{id}");
            let asked = Request {
                method: "PATCH",
                path: &path,
                query: "",
                if_match: None,
                if_none_match: None,
                body: off.as_bytes(),
            };
            let refusal = scim::parse(&asked).expect_err("no such attribute");
            let leaver = scim::leaver(&asked);
            assert!(leaver.is_some());
            corp.world.core.scim_refused(&client, from(), &refusal, leaver, corp.world.now);
        }
        corp.world.pump();
    }
    assert_eq!(corp.told_of().len(), 1, "{:?}", corp.told_of());
    assert!(corp.told_of()[0].contains("`alice`") && corp.told_of()[0].contains("shoeSize"), "{:?}", corp.told_of());
    assert!(corp.audited("`alice` (externalId `sub-alice`) stays in"));
}

#[test]
fn a_request_that_wants_somebody_out_is_known_however_it_says_so() {
    let id = "01020304-0506-0708-090a-0b0c0d0e0f10";
    let user = format!("/Users/{id}");
    let wants = |method: &str, path: &str, body: &str| {
        let asked = Request { method, path, query: "", if_match: None, if_none_match: None, body: body.as_bytes() };
        scim::leaver(&asked).is_some()
    };
    for body in [
        r#"{"Operations":[{"op":"x","path":"ACTIVE","value":"FALSE"}]}"#,
        r#"{"operations":[{"op":"replace","value":{"a":1,"Active":false}}]}"#,
        r#"{"Operations":[{"path":"urn:ietf:params:scim:schemas:core:2.0:User:active","value":false}]}"#,
        r#"{"active":"false"}"#,
    ] {
        assert!(wants("PATCH", &user, body) && wants("PUT", &user, body), "{body}");
        assert!(!wants("POST", "/Users", body) && !wants("PATCH", &format!("/Groups/{id}"), body), "{body}");
    }
    assert!(wants("DELETE", &user, ""));
    for body in
        ["", "[]", "{", r#"{"Operations":[{"path":"active","value":true}]}"#, r#"{"Operations":[7,{"value":false}]}"#]
    {
        assert!(!wants("PATCH", &user, body), "{body}");
    }
}

#[test]
fn a_provider_that_comes_in_vain_or_not_at_all_is_an_alert() {
    let mut config = settings(GroupSource::Scim, Admission::Anybody);
    config.scim.as_mut().expect("settings").silent_after = seconds(900);
    let mut corp = Corp::new(35, config);
    let networks = vec!["198.51.100.0/24".parse().expect("a network")];
    let (bound, _) = corp.world.core.create_scim_token(networks, seconds(60), "root", corp.world.now).expect("a token");
    for _ in 0..50 {
        let tries = [TokenHash::of(&bound), TokenHash::of("pst_scim_guess")];
        for token in tries {
            assert!(corp.world.core.scim_client(Some(token), from(), corp.world.now).is_err());
        }
    }
    corp.world.pump();
    let told = corp.told_of();
    assert!(matches!(&told[..], [one] if one.contains("a network that the token is not for")), "{told:?}");
    corp.world.run(seconds(100));
    assert!(corp.world.core.scim_client(Some(TokenHash::of(&bound)), from(), corp.world.now).is_err());
    corp.world.pump();
    assert!(corp.told_of().len() == 2 && corp.told_of()[1].contains("has expired"), "{:?}", corp.told_of());

    // Since a request that was good, not since one that was refused; also if the controller was restarted meanwhile.
    let heard = corp.world.core.scim_view(corp.world.now).last_heard;
    corp.world.restart();
    assert!(heard.is_some() && corp.world.core.scim_view(corp.world.now).last_heard.is_some());
    corp.world.run(seconds(700));
    assert_eq!(corp.told_of().len(), 2);
    corp.world.run(seconds(200));
    assert!(corp.told_of().len() == 3 && corp.told_of()[2].contains("was not heard for"), "{:?}", corp.told_of());
    corp.world.run(seconds(300));
    assert_eq!(corp.told_of().len(), 3, "it is said once");
    corp.id("/Users", "alice");
    assert!(corp.told_of().len() == 4 && corp.told_of()[3].contains("heard again"), "{:?}", corp.told_of());
    assert!(corp.world.core.scim_view(corp.world.now).token_until.is_some());
    corp.world.run(seconds(3_600));
    assert_eq!(corp.world.core.scim_view(corp.world.now).token_until, None);
}
