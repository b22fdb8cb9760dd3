//! Body of the fuzz target for claims: what a provider signed, and its people may have written.

use postern_common::time::WallTime;

use super::claims::{Claims, TokenAnswer, presentable, proof};

/// Any bytes as the claims of a verified token, as the provider's answer with a token, and as a name in it.
pub fn fuzz_claims(bytes: &[u8]) {
    let _ = serde_json::from_slice::<TokenAnswer>(bytes);
    if let Ok(claims) = serde_json::from_slice::<Claims>(bytes)
        && let Some(proof) = proof(&claims, "groups", Some("oid"), WallTime::NEVER, WallTime::NEVER)
    {
        assert!((1..=255).contains(&proof.subject.len()));
        check_name(&proof.name);
        assert!(proof.amr.len() <= 16);
        let groups = proof.groups.iter().flatten();
        assert!(groups.clone().count() <= 2_000 && groups.clone().all(|group| group.len() <= 256));
    }
    if let Ok(name) = std::str::from_utf8(bytes) {
        check_name(&presentable(name));
    }
}

/// Whatever a provider's person is called, it reads as nothing of ours, and is one short line.
fn check_name(name: &str) {
    assert!(name.chars().count() <= 125 && !name.chars().any(char::is_control));
    for word in ["service:", "user:", "group:", "tag:"] {
        assert!(!name.to_lowercase().starts_with(word), "{name}");
    }
    assert_eq!(name.trim(), name);
}
