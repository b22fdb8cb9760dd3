//! Whole lives of people and groups as providers send them, and what has to hold whatever is sent.

use postern_common::time::WallTime;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{directory::*, request::*, *};
use crate::records::{ScimId, ScimKey};

mod attacks;

const BASE: &str = "https://ctl.corp.example/scim/v2";
const ISSUER: &str = "https://idp.example";

/// A realm and its clock.
#[derive(Default)]
struct Office {
    realm: Realm,
    now: i64,
    key: Option<ScimKey>,
}

impl Office {
    fn ask(&mut self, method: &str, target: &str, body: &str) -> Result<Rendered, Refusal> {
        self.ask_if(method, target, body, None, None)
    }

    fn ask_if(
        &mut self,
        method: &str,
        target: &str,
        body: &str,
        if_match: Option<&str>,
        if_none_match: Option<&str>,
    ) -> Result<Rendered, Refusal> {
        self.now += 1_000;
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let asked = Request { method, path, query, if_match, if_none_match, body: body.as_bytes() };
        let command = parse(&asked)?;
        let mut random = [0; 10];
        random[2..].copy_from_slice(&self.now.to_be_bytes());
        let now = WallTime::from_millis(self.now);
        let key = self.key.unwrap_or(ScimKey::ExternalId);
        let done = self.realm.run(command, Moment { issuer: ISSUER, key, now, random });
        self.realm.check();
        Ok(done?.answer.render(BASE))
    }

    fn made(&mut self, target: &str, body: &Value) -> String {
        let made = self.ask("POST", target, &body.to_string()).expect("made");
        made.body.expect("a body")["id"].as_str().expect("an identifier").to_owned()
    }

    fn user(&mut self, name: &str) -> String {
        self.made("/Users", &json!({"schemas": [schema::USER], "userName": name, "externalId": format!("x-{name}")}))
    }

    fn group(&mut self, name: &str, members: &[&String]) -> String {
        let members: Vec<Value> = members.iter().map(|id| json!({"value": id})).collect();
        self.made("/Groups", &json!({"schemas": [schema::GROUP], "displayName": name, "members": members}))
    }

    fn patch(&mut self, target: &str, operations: &Value) -> Result<Rendered, (u16, &'static str)> {
        let body = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": operations});
        self.ask("PATCH", target, &body.to_string()).map_err(|refusal| (refusal.status, refusal.word()))
    }

    fn groups_of(&self, id: &str) -> Vec<String> {
        self.realm.groups_of(id.parse().expect("an identifier")).into_iter().collect()
    }
}

/// Tells what of `expected` an answer does not hold. Lists are compared whole, `"ABSENT"` is for what must not be there.
fn missing(expected: &Value, answer: &Value, at: &str) -> Option<String> {
    match (expected, answer) {
        (Value::Object(expected), Value::Object(answer)) => expected.iter().find_map(|(key, value)| {
            let there = answer.get(key).unwrap_or(&Value::Null);
            match value == "ABSENT" {
                true => (!there.is_null()).then(|| format!("{at}.{key} is there")),
                false => missing(value, there, &format!("{at}.{key}")),
            }
        }),
        (Value::Array(expected), Value::Array(answer)) if expected.len() == answer.len() => {
            expected.iter().zip(answer).find_map(|(expected, answer)| missing(expected, answer, &format!("{at}[]")))
        }
        _ => (expected != answer).then(|| format!("{at} is {answer}, not {expected}")),
    }
}

/// Plays a file of requests and checks every answer.
fn play(name: &str, text: &str) {
    let mut office = Office::default();
    let mut names: Vec<(String, String)> = Vec::new();
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    let text = lines.join("\n");
    for exchange in text.split("\n> ").skip(1) {
        let exchange = names.iter().fold(exchange.to_owned(), |text, (name, id)| text.replace(name, id));
        let (head, rest) = exchange.split_once('\n').expect("a request");
        let (body, answer) = rest.split_once("< ").expect("an answer");
        let (status, expected) = answer.split_once('\n').unwrap_or((answer, ""));
        let (status, called) = status.split_once(" as ").map_or((status, None), |(status, name)| (status, Some(name)));
        let (method, target) = head.split_once(' ').expect("a target");
        let target = target.replace('+', "%20");
        let (got, body) = match office.ask(method, &target, body) {
            Ok(rendered) => (rendered.status, rendered.body),
            Err(refusal) => (refusal.status, Some(refusal.body())),
        };
        let shown = body.clone().unwrap_or_default();
        assert_eq!(got.to_string(), status.trim(), "{name}: {head}: {shown}");
        if !expected.trim().is_empty() {
            let expected: Value = serde_json::from_str(expected).unwrap_or_else(|error| panic!("{head}: {error}"));
            assert_eq!(missing(&expected, &shown, ""), None, "{name}: {head}");
        }
        if let Some(called) = called {
            let id = shown["id"].as_str().expect("an identifier").to_owned();
            names.push((format!("{{{}}}", called.trim()), id));
        }
    }
    assert!(names.len() >= 2, "{name} was played");
}

#[test]
fn whole_lives_as_entra_and_okta_send_them() {
    play("entra", include_str!("../../../tests/scim/entra.http"));
    play("okta", include_str!("../../../tests/scim/okta.http"));
}

#[test]
fn two_people_never_have_one_name_and_two_groups_neither() {
    let mut office = Office::default();
    let (alice, bob) = (office.user("alice"), office.user("bob"));
    for (target, body) in [
        ("/Users", json!({"schemas": [schema::USER], "userName": "ALICE"})),
        ("/Users", json!({"schemas": [schema::USER], "userName": "carol", "externalId": "x-alice"})),
    ] {
        let refused = office.ask("POST", target, &body.to_string()).expect_err("taken");
        assert_eq!((refused.status, refused.word()), (409, "uniqueness"));
    }
    for (path, value) in [("userName", "Alice"), ("externalId", "x-alice")] {
        let refused = office.patch(&format!("/Users/{bob}"), &json!([{"op": "replace", "path": path, "value": value}]));
        assert_eq!(refused, Err((409, "uniqueness")));
    }
    let staff = office.group("staff", &[&alice]);
    office.group("ops", &[]);
    let body = json!({"schemas": [schema::GROUP], "displayName": "Staff"});
    assert_eq!(office.ask("POST", "/Groups", &body.to_string()).expect_err("taken").status, 409);
    let renamed =
        office.patch(&format!("/Groups/{staff}"), &json!([{"op": "Replace", "path": "displayName", "value": "OPS"}]));
    assert_eq!(renamed, Err((409, "uniqueness")));
    assert_eq!(office.groups_of(&alice), ["staff"]);
}

#[test]
fn a_refused_request_changes_nothing_of_what_it_asked_for() {
    let mut office = Office::default();
    let alice = office.user("alice");
    let staff = office.group("staff", &[&alice]);
    let stranger = ScimId::new(WallTime::from_millis(1), [9; 10]).to_string();
    for (operations, expected) in [
        (
            json!([{"op": "replace", "path": "displayName", "value": "x"}, {"op": "add", "path": "members", "value": [{"value": stranger}]}]),
            "invalidValue",
        ),
        (
            json!([{"op": "remove", "path": "members"}, {"op": "add", "path": "members", "value": [{"value": "nobody"}]}]),
            "invalidValue",
        ),
        (
            json!([{"op": "remove", "path": "members"}, {"op": "add", "path": "members", "value": [{"value": staff, "type": "Group"}]}]),
            "invalidValue",
        ),
        (json!([{"op": "remove", "path": "members"}, {"op": "replace", "value": {"id": stranger}}]), "mutability"),
        (json!([{"op": "remove", "path": "members"}, {"op": "move", "path": "members"}]), "invalidSyntax"),
        (json!([{"op": "remove", "path": "members"}, {"op": "remove", "path": "displayName"}]), "mutability"),
        (json!([{"op": "remove"}]), "noTarget"),
        (json!([{"op": "add", "path": "members[value eq \"1\"]", "value": []}]), "invalidFilter"),
        (json!([{"op": "remove", "path": "members", "shoe": 1}]), "invalidSyntax"),
        (json!([]), "invalidSyntax"),
    ] {
        let refused = office.patch(&format!("/Groups/{staff}"), &operations);
        assert_eq!(refused.map_err(|(_, word)| word), Err(expected), "{operations}");
        assert_eq!(office.groups_of(&alice), ["staff"], "{operations}");
    }
    for (operations, expected) in [
        (
            json!([{"op": "replace", "path": "active", "value": false}, {"op": "replace", "path": "userName", "value": ""}]),
            "invalidValue",
        ),
        (
            json!([{"op": "replace", "path": "active", "value": false}, {"op": "remove", "path": "userName"}]),
            "mutability",
        ),
        (json!([{"op": "remove", "path": "active"}]), "mutability"),
        (json!([{"op": "replace", "path": "active"}]), "invalidValue"),
        (json!([{"op": "replace", "path": "active", "value": "perhaps"}]), "invalidValue"),
        (json!([{"op": "replace", "path": "password", "value": "x"}]), "mutability"),
        (json!([{"op": "replace", "path": "groups", "value": []}]), "mutability"),
        (json!([{"op": "replace", "path": "emails.value", "value": "x"}]), "invalidPath"),
        (json!([{"op": "replace", "value": "x"}]), "invalidValue"),
        (json!([{"op": "replace", "value": {"shoeSize": 1}}]), "invalidPath"),
    ] {
        let refused = office.patch(&format!("/Users/{alice}"), &operations);
        assert_eq!(refused.map_err(|(_, word)| word), Err(expected), "{operations}");
        assert!(matches!(office.realm.standing(ScimKey::ExternalId, "x-alice"), Standing::Active(_)), "{operations}");
    }
}

#[test]
fn who_was_taken_away_stays_out_until_somebody_is_provisioned_under_that_name() {
    let mut office = Office::default();
    let alice = office.user("alice");
    let stands = |office: &Office, name: &str| office.realm.standing(ScimKey::ExternalId, name);
    assert_eq!(stands(&office, "x-bob"), Standing::Unknown);
    office.ask("DELETE", &format!("/Users/{alice}"), "").expect("deleted");
    assert_eq!(stands(&office, "x-alice"), Standing::Gone);
    assert_eq!(office.realm.standing(ScimKey::UserName, "ALICE"), Standing::Gone);
    let again = office.user("alice");
    assert_ne!(again, alice, "an identifier is never given to another");
    assert!(matches!(stands(&office, "x-alice"), Standing::Active(_)));
    // Whoever takes another name does not leave the old one open.
    let renamed = json!([{"op": "replace", "path": "externalId", "value": "y"}, {"op": "replace", "path": "active", "value": false}]);
    office.patch(&format!("/Users/{again}"), &renamed).expect("renamed");
    assert_eq!((stands(&office, "x-alice"), stands(&office, "y")), (Standing::Gone, Standing::Inactive));
    let unnamed = office.patch(&format!("/Users/{again}"), &json!([{"op": "remove", "path": "externalId"}]));
    assert_eq!((unnamed.map(drop), stands(&office, "y")), (Err((400, "invalidValue")), Standing::Inactive));
}

#[test]
fn a_request_for_an_older_version_is_refused_and_nothing_changes() {
    let mut office = Office::default();
    let target = format!("/Users/{}", office.user("alice"));
    let off = r#"{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{"op":"replace","path":"active","value":false}]}"#;
    for stale in ["W/\"7\"", "\"7\", W/\"8\"", "rubbish"] {
        let refused = office.ask_if("PATCH", &target, off, Some(stale), None).expect_err("stale");
        assert_eq!(refused.status, 412);
    }
    assert!(matches!(office.realm.standing(ScimKey::ExternalId, "x-alice"), Standing::Active(_)));
    let done = office.ask_if("PATCH", &target, off, Some("W/\"1\""), None).expect("of this version");
    assert_eq!(done.etag.as_deref(), Some("W/\"2\""));
    let same = office.ask_if("GET", &target, "", None, Some("W/\"2\"")).expect("unchanged");
    assert_eq!((same.status, same.body, same.etag.as_deref()), (304, None, Some("W/\"2\"")));
    assert_eq!(office.ask_if("GET", &target, "", None, Some("W/\"1\"")).map(|r| r.status), Ok(200));
    assert_eq!(office.ask_if("DELETE", &target, "", Some("W/\"1\""), None).expect_err("stale").status, 412);
    assert_eq!(office.ask_if("DELETE", &target, "", Some("*"), None).map(|r| r.status), Ok(204));
}

#[test]
fn pages_come_in_one_order_and_never_too_long() {
    let mut office = Office::default();
    let all: Vec<String> = (0..25).map(|n| office.user(&format!("user-{n:02}"))).collect();
    let mut seen = Vec::new();
    for start in [1, 11, 21, 31] {
        let page = office.ask("GET", &format!("/Users?startIndex={start}&count=10"), "").expect("a page");
        let page = page.body.expect("a body");
        assert_eq!(page["totalResults"], 25);
        let listed = page["Resources"].as_array().expect("a list").clone();
        assert_eq!(page["itemsPerPage"], listed.len());
        seen.extend(listed.iter().map(|user| user["id"].as_str().expect("an id").to_owned()));
    }
    assert_eq!(seen, all);
    let ask = |office: &mut Office, query: &str| office.ask("GET", &format!("/Users?{query}"), "");
    assert_eq!(ask(&mut office, "count=0").expect("none").body.expect("a body")["itemsPerPage"], 0);
    assert_eq!(ask(&mut office, "startIndex=-5&count=-1").expect("none").body.expect("a body")["startIndex"], 1);
    for wrong in
        ["count=ten", "sortBy=userName", "cursor=x", "filter=title%20eq%20%22x%22", "filter=active%20eq%20true"]
    {
        assert_eq!(ask(&mut office, wrong).expect_err("refused").status, 400, "{wrong}");
    }
    // A page of groups ends before it shows too many members, and never with nothing.
    let members: Vec<&String> = all.iter().collect();
    for n in 0..3 {
        office.group(&format!("group-{n}"), &members);
    }
    let listed = office.ask("GET", "/Groups?attributes=displayName", "").expect("a page").body.expect("a body");
    assert_eq!(
        listed["Resources"][0],
        json!({
            "schemas": [schema::GROUP], "id": listed["Resources"][0]["id"], "displayName": "group-0"
        })
    );
}

#[test]
fn what_is_not_served_is_said_not_to_be() {
    let mut office = Office::default();
    for (method, target, status) in [
        ("POST", "/Bulk", 501),
        ("GET", "/Me", 501),
        ("POST", "/.search", 501),
        ("GET", "/", 404),
        ("GET", "/Shoes", 404),
        ("GET", "/Users/x/y", 404),
        ("DELETE", "/Users", 405),
        ("POST", "/Schemas", 405),
        ("TRACE", "/Users", 405),
        ("GET", "/Schemas/urn:x", 404),
        ("PATCH", "/Users/00000000-0000-0000-0000-000000000000", 400),
        ("DELETE", "/Users/00000000-0000-0000-0000-000000000000", 404),
        ("DELETE", "/Groups/../Users", 404),
    ] {
        let refused = office.ask(method, target, "").expect_err("refused");
        assert_eq!(refused.status, status, "{method} {target}");
        assert_eq!(refused.allow.is_some(), status == 405, "{method} {target}");
    }
    assert_eq!(office.ask("PUT", "/Users", "").expect_err("refused").allow, Some("GET, POST"));
    for kind in ["User", "Group"] {
        assert_eq!(office.ask("GET", &format!("/ResourceTypes/{kind}"), "").map(|r| r.status), Ok(200));
    }
}

/// JSON with the words that mean something here, in every wrong place.
fn strange() -> impl Strategy<Value = Value> {
    let word = prop::sample::select(vec![
        "active",
        "userName",
        "externalId",
        "displayName",
        "members",
        "emails",
        "name",
        "value",
        "type",
        "primary",
        "op",
        "path",
        "add",
        "replace",
        "remove",
        "Operations",
        "schemas",
        "id",
        "{user}",
        "{group}",
        "False",
        "",
        "name.givenName",
        "emails[type eq \"work\"].value",
        "members[value eq \"{user}\"]",
        schema::USER,
        schema::GROUP,
        schema::ENTERPRISE,
        "urn:ietf:params:scim:api:messages:2.0:PatchOp",
        "manager",
        "work",
    ]);
    let leaf = prop_oneof![
        word.clone().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        Just(Value::Null),
    ];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner), 0..5).prop_map(|pairs| Value::Object(
                pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
            )),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Any JSON, as a whole body and as an operation, does no harm: the fuzz target's own claims hold.
    #[test]
    fn no_body_is_too_strange(
        method in prop::sample::select(vec!["GET", "POST", "PUT", "PATCH", "DELETE"]),
        path in prop::sample::select(vec!["/Users", "/Groups", "/Users/{user}", "/Groups/{group}", "/Users/{group}", "/Schemas"]),
        verb in prop::sample::select(vec!["add", "Replace", "REMOVE"]),
        at in strange(),
        body in strange(),
    ) {
        let operation = json!({"op": verb, "path": at, "value": body});
        let patch = json!({"schemas": ["urn:ietf:params:scim:api:messages:2.0:PatchOp"], "Operations": [operation]});
        let user = json!({"schemas": [schema::USER], "userName": "carol", "name": body, "emails": at});
        for body in [&body, &patch, &user] {
            fuzzing::fuzz_scim(format!("{method}\n{path}\n\n{body}").as_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Whatever comes in whatever order: the indexes agree ([`Realm::check`] after every request), and who is in a group is what a
    /// plain list of what was accepted says.
    #[test]
    fn any_sequence_of_changes_leaves_what_a_plain_list_says(
        steps in prop::collection::vec((0..6_u8, 0..5_usize, 0..3_usize), 1..60)
    ) {
        let mut office = Office::default();
        let mut users: Vec<Option<String>> = (0..5).map(|n| Some(office.user(&format!("u{n}")))).collect();
        let groups: Vec<String> = (0..3).map(|n| office.group(&format!("g{n}"), &[])).collect();
        let mut members = std::collections::BTreeSet::new();
        for (what, user, group) in steps {
            let target = format!("/Groups/{}", groups[group]);
            match (what, &users[user]) {
                (0, Some(id)) => {
                    office.patch(&target, &json!([{"op": "Add", "path": "members", "value": [{"value": id}]}])).expect("added");
                    members.insert((group, user));
                }
                (1, Some(id)) => {
                    office.patch(&target, &json!([{"op": "remove", "path": format!("members[value eq \"{id}\"]")}])).expect("removed");
                    members.remove(&(group, user));
                }
                (2, Some(id)) => {
                    let whole = json!([{"op": "replace", "path": "members", "value": [{"value": id}]}]);
                    office.patch(&target, &whole).expect("replaced");
                    members.retain(|(g, _)| *g != group);
                    members.insert((group, user));
                }
                (3, Some(id)) => {
                    office.ask("DELETE", &format!("/Users/{id}"), "").expect("deleted");
                    members.retain(|(_, u)| *u != user);
                    users[user] = None;
                }
                (4, None) => users[user] = Some(office.user(&format!("u{user}"))),
                (5, Some(id)) => {
                    let target = format!("/Users/{id}");
                    let flip = if group == 0 { "True" } else { "false" };
                    office.patch(&target, &json!([{"op": "replace", "path": "active", "value": flip}])).expect("flipped");
                }
                _ => {}
            }
            for (n, id) in users.iter().enumerate() {
                let expected: Vec<String> = members.iter().filter(|(_, u)| *u == n).map(|(g, _)| format!("g{g}")).collect();
                if let Some(id) = id {
                    prop_assert_eq!(office.groups_of(id), expected);
                }
            }
        }
    }
}
