//! Requests that would let somebody in, leave somebody in, take out more than was named, or take too long.

use serde_json::{Value, json};

use super::{super::*, *};

#[test]
fn a_record_that_becomes_somebody_elses_leaves_every_group() {
    for key in [ScimKey::ExternalId, ScimKey::UserName] {
        let mut office = Office { key: Some(key), ..Office::default() };
        let (alice, bob) = (office.user("alice"), office.user("bob"));
        office.group("staff", &[&alice, &bob]);
        office.group("payroll", &[&alice]);
        let target = format!("/Users/{alice}");
        office.patch(&target, &json!([{"op": "replace", "path": "active", "value": false}])).expect("gone");
        // A new name for people alone is a marriage.
        office.patch(&target, &json!([{"op": "replace", "path": "userName", "value": "alice.b"}])).expect("renamed");
        assert_eq!(office.groups_of(&alice), ["payroll", "staff"]);
        let newcomer = json!([{"op": "replace", "value": {"externalId": "x-newcomer", "active": true}}]);
        office.patch(&target, &newcomer).expect("taken over");
        assert!(office.groups_of(&alice).is_empty(), "by {key:?}");
        assert_eq!(office.groups_of(&bob), ["staff"]);
    }
}

#[test]
fn a_user_by_whom_nobody_can_be_found_is_refused() {
    let mut office = Office::default();
    let bare = json!({"schemas": [schema::USER], "userName": "alice"}).to_string();
    let refused = office.ask("POST", "/Users", &bare).expect_err("nobody");
    assert_eq!((refused.status, refused.word()), (400, "invalidValue"));
    assert!(refused.detail.contains("externalId is missing") && refused.detail.contains("map"), "{}", refused.detail);
    office.key = Some(ScimKey::UserName);
    let alice = office.made("/Users", &serde_json::from_str(&bare).expect("JSON"));
    // By another configuration than when they came: out they may go.
    office.key = None;
    let target = format!("/Users/{alice}");
    let nick = office.patch(&target, &json!([{"op": "replace", "path": "nickName", "value": "al"}]));
    assert_eq!(nick.map(drop), Err((400, "invalidValue")));
    office.patch(&target, &json!([{"op": "replace", "path": "active", "value": false}])).expect("out");
}

#[test]
fn nobody_comes_in_for_whose_leaving_there_would_be_no_room() {
    let mut office = Office::default();
    office.realm.room.gone = 8;
    let people: Vec<String> = (0..4).map(|n| office.user(&format!("user-{n}"))).collect();
    let another = json!({"schemas": [schema::USER], "userName": "eve", "externalId": "x-eve"}).to_string();
    assert_eq!(office.ask("POST", "/Users", &another).expect_err("full").status, 507);
    let renamed = json!([{"op": "replace", "path": "userName", "value": "other"}]);
    assert_eq!(office.patch(&format!("/Users/{}", people[0]), &renamed).map(drop), Err((507, "full")));
    let off = json!([{"op": "replace", "path": "active", "value": false}]);
    office.patch(&format!("/Users/{}", people[0]), &off).expect("who is there can be put out");
    // Also by a request that says more of them: they go out, and the answer shows what was not taken over.
    for value in [json!({"active": false, "userName": "other"}), json!({"active": false, "title": "x".repeat(200)})] {
        office
            .patch(&format!("/Users/{}", people[1]), &json!([{"op": "replace", "value": {"active": true}}]))
            .expect("in");
        office.realm.room.bytes = office.realm.bytes + 100;
        let done = office.patch(&format!("/Users/{}", people[1]), &json!([{"op": "replace", "value": value}]));
        let shown = done.expect("out").body.expect("as they are");
        assert_eq!((&shown["active"], &shown["userName"], shown.get("title")), (&json!(false), &json!("user-1"), None));
    }
    for (n, id) in people.iter().enumerate() {
        assert_eq!(office.ask("DELETE", &format!("/Users/{id}"), "").map(|done| done.status), Ok(204));
        assert_eq!(office.realm.standing(ScimKey::ExternalId, &format!("x-user-{n}")), Standing::Gone);
    }
    assert_eq!(office.ask("POST", "/Users", &another).expect_err("still full").status, 507);
    // Under their own names they come back.
    office.realm.room.gone = 10;
    office.user("user-0");
}

#[test]
fn what_one_request_costs_is_bounded() {
    let mut office = Office::default();
    let alice = office.user("alice");
    let target = format!("/Users/{alice}");
    let one = json!({"op": "replace", "path": "title", "value": "x"});
    assert_eq!(office.patch(&target, &vec![one.clone(); 100].into()).map(|done| done.status), Ok(200));
    assert_eq!(office.patch(&target, &vec![one; 101].into()).map(drop), Err((413, "too large")));
    // Too large in between is too large, also if it would be small in the end.
    let large = json!({"op": "add", "path": "photos", "value": [{"value": "x".repeat(8_000)}, {"value": "y".repeat(8_000)}, {"value": "z"}]});
    let more = json!({"op": "add", "path": "roles", "value": [{"value": "z".repeat(8_000)}]});
    let emptied = json!([large, more, {"op": "remove", "path": "photos"}]);
    assert_eq!(office.patch(&target, &emptied).map(drop), Err((413, "too large")));
    let body =
        json!({"schemas": [schema::USER], "userName": "bob", "externalId": "x-bob", "password": "x".repeat(256 << 10)});
    assert_eq!(office.ask("POST", "/Users", &body.to_string()).expect_err("a long body").status, 413);

    // Not more members in one request than a group may have, in however many operations.
    let staff = office.group("staff", &[]);
    let add = |count: usize| json!({"op": "add", "path": "members", "value": vec![json!({"value": alice}); count]});
    assert_eq!(
        office.patch(&format!("/Groups/{staff}"), &json!([add(10_000), add(10_000)])).map(|d| d.status),
        Ok(204)
    );
    let refused = office.patch(&format!("/Groups/{staff}"), &json!([add(10_000), add(10_001)]));
    assert_eq!(refused.map(drop), Err((413, "too large")));

    // Nor more of everybody together; whoever is there can be changed as long as they do not grow.
    office.realm.room.bytes = office.realm.bytes + 100;
    let long = json!([{"op": "replace", "path": "title", "value": "x".repeat(200)}]);
    assert_eq!(office.patch(&target, &long).map(drop), Err((507, "full")));
    assert_eq!(
        office.patch(&target, &json!([{"op": "replace", "path": "active", "value": false}])).map(|d| d.status),
        Ok(200)
    );
}

#[test]
fn a_group_is_gone_through_once_however_often_it_is_emptied() {
    let mut office = Office::default();
    let people: Vec<String> = (0..400).map(|n| office.user(&format!("user-{n}"))).collect();
    let everybody = office.group("everybody", &people.iter().collect::<Vec<_>>());
    let target = format!("/Groups/{everybody}");
    // As slow as one operation, not as a thousand: the fastest of a few, because other work may be in the way.
    let fastest = |count: usize| {
        let named: Vec<_> = people.iter().map(|id| id.parse().expect("an identifier")).collect();
        let mut operations = vec![patch::GroupOperation::Members(vec![]); count];
        operations.push(patch::GroupOperation::Members(named));
        let took = |_| {
            let (mut realm, began) = (office.realm.clone(), std::time::Instant::now());
            let id = everybody.parse().expect("an identifier");
            let what = What::PatchGroup { id, operations: operations.clone(), only_if: None };
            let command = Command { what, shown: Shown::All };
            let now = WallTime::from_millis(1);
            let at = Moment { issuer: ISSUER, key: ScimKey::ExternalId, now, random: [0; 10] };
            realm.run(command, at).expect("changed");
            began.elapsed()
        };
        (0..7).map(took).min().expect("some")
    };
    let (one, many) = (fastest(1), fastest(999));
    assert!(many < one * 30, "{many:?} for a thousand, {one:?} for one");
    let emptied = vec![json!({"op": "remove", "path": "members"}); 999];
    let mut operations = emptied.clone();
    operations.push(json!({"op": "add", "path": "members", "value": [{"value": people[7]}]}));
    assert_eq!(office.patch(&target, &operations.into()).map(|done| done.status), Ok(204));
    let left =
        |office: &Office| people.iter().filter(|id| !office.groups_of(id).is_empty()).cloned().collect::<Vec<_>>();
    assert_eq!(left(&office), [people[7].clone()]);
    let several = json!([
        {"op": "replace", "path": "members", "value": [{"value": people[1]}, {"value": people[2]}]},
        {"op": "remove", "path": format!("members[value eq \"{}\"]", people[1])},
        {"op": "add", "path": "members", "value": [{"value": people[3]}]},
    ]);
    office.patch(&target, &several).expect("in order");
    assert_eq!(left(&office), [people[2].clone(), people[3].clone()]);
}

#[test]
fn what_is_removed_is_what_was_named_and_nothing_else() {
    let mut office = Office::default();
    let (alice, bob) = (office.user("alice"), office.user("bob"));
    let staff = office.group("staff", &[&alice, &bob]);
    let target = format!("/Groups/{staff}");
    for (operation, word) in [
        (json!({"op": "remove", "path": "members[value eq \"BAD\"]"}), "invalidValue"),
        (json!({"op": "remove", "path": "members", "value": null}), "invalidValue"),
        (json!({"op": "replace", "path": "members", "value": null}), "invalidValue"),
    ] {
        assert_eq!(office.patch(&target, &json!([operation])).map(drop), Err((400, word)), "{operation}");
    }
    let put =
        |members: Value| json!({"schemas": [schema::GROUP], "displayName": "staff", "members": members}).to_string();
    assert_eq!(office.ask("PUT", &target, &put(Value::Null)).expect_err("null").status, 400);
    let named = json!({"schemas": [schema::GROUP], "displayName": "staff"}).to_string();
    assert_eq!(office.ask("PUT", &target, &named).map(|done| done.status), Ok(200));
    assert_eq!(
        (office.groups_of(&alice), office.groups_of(&bob)),
        (vec!["staff".to_owned()], vec!["staff".to_owned()])
    );
    // In whatever case an identifier comes back.
    let loud = alice.to_uppercase();
    office.patch(&target, &json!([{"op": "remove", "path": format!("members[value eq \"{loud}\"]")}])).expect("found");
    assert_eq!((office.groups_of(&alice), office.groups_of(&bob)), (vec![], vec!["staff".to_owned()]));
    assert_eq!(office.ask("PUT", &target, &put(json!([]))).map(|done| done.status), Ok(200));
    assert!(office.groups_of(&bob).is_empty());

    let target = format!("/Users/{}", alice.to_uppercase());
    let (home, work) = (json!({"type": "home", "locality": "Bonn"}), json!({"type": "work", "locality": "Berlin"}));
    office.patch(&target, &json!([{"op": "add", "path": "addresses", "value": [home, work]}])).expect("moved in");
    let moved = json!([{"op": "remove", "path": "addresses", "value": [home]}]);
    let left = office.patch(&target, &moved).expect("moved out").body.expect("a body");
    assert_eq!(left["addresses"], json!([work]));
}

#[test]
fn the_schemas_say_what_is_enforced() {
    let mut office = Office::default();
    let listed = office.ask("GET", "/Schemas", "").expect("schemas").body.expect("a body");
    let attribute = |schema: &str, name: &str| {
        let all = listed["Resources"].as_array().expect("schemas").iter();
        let found = all.clone().find(|one| one["id"] == schema).expect("the schema")["attributes"].as_array().cloned();
        found.expect("attributes").into_iter().find(|one| one["name"] == name).expect("the attribute")
    };
    for (schema, name, required, uniqueness) in [
        (schema::USER, "userName", true, "server"),
        (schema::USER, "externalId", false, "server"),
        (schema::USER, "displayName", false, "none"),
        (schema::GROUP, "displayName", true, "server"),
        (schema::GROUP, "externalId", false, "none"),
    ] {
        let said = attribute(schema, name);
        assert_eq!((&said["required"], &said["uniqueness"]), (&required.into(), &uniqueness.into()), "{name}");
    }
    assert_eq!(attribute(schema::USER, "groups")["returned"], "never");
}
