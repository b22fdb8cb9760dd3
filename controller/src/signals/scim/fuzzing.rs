//! The bodies of the fuzz target, which the ordinary tests replay over the kept corpus.

use postern_common::time::WallTime;
use serde_json::Value;

use super::{
    directory::Realm,
    request::{self, Request},
    service::Moment,
};
use crate::records::ScimKey;

/// Any bytes as a request, in four lines (method, path, query, body): no panic, and what is taken leaves a directory whose indexes
/// agree, in which every name belongs to one person.
pub fn fuzz_scim(bytes: &[u8]) {
    let mut lines = bytes.splitn(4, |byte| *byte == b'\n');
    let mut line = || std::str::from_utf8(lines.next().unwrap_or_default()).unwrap_or_default();
    let (method, path, query) = (line(), line(), line());
    let body = bytes.splitn(4, |byte| *byte == b'\n').nth(3).unwrap_or_default();
    let now = WallTime::from_millis(1_795_424_400_000);
    let mut realm = Realm::default();
    let mut run = |method: &str, path: &str, query: &str, body: &[u8], random: [u8; 10]| {
        let asked = Request { method, path, query, if_match: None, if_none_match: None, body };
        let command = request::parse(&asked)?;
        let done =
            realm.run(command, Moment { issuer: "https://idp.example", key: ScimKey::ExternalId, now, random })?;
        realm.check();
        Ok::<Option<Value>, super::Refusal>(done.answer.render("https://ctl.example/scim/v2").body)
    };
    let alice = br#"{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":"alice","externalId":"1"}"#;
    let made = run("POST", "/Users", "", alice, [1; 10]).expect("a good user").expect("its body");
    let id = made["id"].as_str().unwrap_or_default().to_owned();
    let group = format!(
        r#"{{"schemas":["urn:ietf:params:scim:schemas:core:2.0:Group"],"displayName":"staff","members":[{{"value":"{id}"}}]}}"#
    );
    let made = run("POST", "/Groups", "", group.as_bytes(), [2; 10]).expect("a good group").expect("its body");
    let group = made["id"].as_str().unwrap_or_default().to_owned();
    // The corpus cannot know identifiers: `{user}` and `{group}` stand for them.
    let named = |text: &str| text.replace("{user}", &id).replace("{group}", &group);
    let body = std::str::from_utf8(body).map_or_else(|_| body.to_vec(), |text| named(text).into_bytes());
    match run(method, &named(path), &named(query), &body, [3; 10]) {
        Ok(_) => {}
        Err(refusal) => {
            assert!((400..600).contains(&refusal.status) && !refusal.detail.contains('\n'));
            assert_eq!(refusal.body()["status"], refusal.status.to_string());
        }
    }
}
