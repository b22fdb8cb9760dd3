//! Bodies of the fuzz targets: plain functions, so that the ordinary test command replays the kept corpus.
//!
//! Each takes bytes as an outsider would send them and checks what must hold for any bytes, beyond not panicking.
//! `fuzz/` holds the targets for `cargo fuzz` and the corpus.

use std::time::Duration;

use crate::{
    diagnostics,
    grant::{Change, GrantVerifier, SignedDocument},
    id::{DeviceId, Nonce},
    key::{ControllerSigningKey, DeviceSigningKey, SigningPurpose},
    policy::{
        Assurance, Audience, Destination, Policy, RequestContext, Subject, TargetNode, Targets, Truth, UserIdentity,
    },
    posture::{Facts, PostureVerifier, Report, Requirement, SignedPosture},
    probe::{ClaimedProbe, ProbeKey},
    protocol::{FromNode, ToNode},
    time::{Monotonic, WallTime},
};

/// Reads bytes as a policy document. A good one is then asked about; a bad one is shown.
pub fn fuzz_policy(bytes: &[u8]) {
    let parsed = diagnostics::decode("policy.toml", bytes).and_then(|text| Policy::parse("policy.toml", text));
    let policy = match parsed {
        Ok(policy) => policy,
        Err(mistakes) => {
            let shown = mistakes.to_string();
            assert!(!mistakes.is_empty() && shown.starts_with("error: "), "a refusal names a mistake");
            assert!(!shown.chars().any(|c| c.is_control() && c != '\n' && c != '\t'), "nothing reaches the terminal");
            return;
        }
    };
    let targets = Targets::new(
        policy.resources().iter().take(50).flat_map(|resource| resource.nodes()).enumerate().map(|(index, node)| {
            let mut device = [0; 16];
            device[..8].copy_from_slice(&(index as u64).to_be_bytes());
            let (name, tags) = match node {
                crate::policy::NodeSelector::Name(name) => (name.clone(), Default::default()),
                crate::policy::NodeSelector::Tag(tag) => {
                    ("m".parse().expect("a name of one letter"), [tag.clone()].into())
                }
            };
            TargetNode { device: DeviceId::from_bytes(device), name, tags }
        }),
    );
    let user = |groups: Option<&[&str]>| RequestContext {
        subject: Subject::User {
            identity: UserIdentity::Local { name: "alice".into() },
            display_name: "alice".into(),
            groups: groups.map(|groups| groups.iter().map(|group| (*group).to_owned()).collect()),
            assurance: Assurance::default(),
        },
        device: None,
        machine: None,
        tags: Default::default(),
        posture: None,
        attested: None,
        machine_approved: true,
        approved: vec![],
        restraints: vec![],
        address: None,
        place: Default::default(),
        also: vec![],
        now: WallTime::from_millis(1_795_424_400_000),
        instead: None,
    };
    let contexts = [user(None), user(Some(&["staff", "payroll"])), user(Some(&[]))];
    for context in &contexts {
        for entitlement in policy.entitlements(context, &targets) {
            assert!(entitlement.valid_until > context.now && !entitlement.nodes.is_empty());
            let written = |service: &crate::net::Service| service.to_string().parse() == Ok(*service);
            assert!(!entitlement.services.is_empty() && entitlement.services.iter().all(written));
        }
        for resource in policy.resources().iter().take(4) {
            let to = Destination::Resource(resource.name().clone());
            policy.explain(context, &targets, &to, None, Audience::Subject);
        }
    }
    assert_eq!(policy.plan(&policy, &contexts, &targets, &targets), [], "the same policy changes nothing");
}

/// Reads bytes as a message of a node, and as one of the controller. What is read prints and reads as itself.
pub fn fuzz_message(bytes: &[u8]) {
    if let Ok(message) = serde_json::from_slice::<FromNode>(bytes) {
        let text = serde_json::to_string(&message).expect("a message has a JSON form");
        assert_eq!(serde_json::from_str::<FromNode>(&text).ok(), Some(message));
    }
    if let Ok(message) = serde_json::from_slice::<ToNode>(bytes) {
        let text = serde_json::to_string(&message).expect("a message has a JSON form");
        assert_eq!(serde_json::from_str::<ToNode>(&text).ok(), Some(message));
    }
}

/// Lets a node verify bytes that its controller signed: as a hostile controller, or one with a fault, could send them.
pub fn fuzz_grants(bytes: &[u8]) {
    let Ok(document) = std::str::from_utf8(bytes) else { return };
    let key = ControllerSigningKey::from_seed(&[5; 32]);
    let signature = key.sign(SigningPurpose::Grant, document.as_bytes());
    let mut verifier = GrantVerifier::new(DeviceId::from_bytes([1; 16]), key.public());
    verifier.remember_nonce(Nonce::from_bytes([9; 16]), Monotonic::from_millis(50));
    let signed = SignedDocument { document: document.to_owned(), signature };
    if let Ok(verified) = verifier.verify(&signed) {
        assert_eq!(verifier.position(), Some(verified.position()));
        assert!(
            matches!(verified.change(), Change::Snapshot { .. }),
            "nothing came before that a delta could continue"
        );
        assert!(verifier.verify(&signed).is_err(), "a replay is refused");
    }
}

/// Reads bytes as a probe: what is believed is what the key made, byte for byte.
pub fn fuzz_probe(bytes: &[u8]) {
    let key = ProbeKey::from_bytes([7; 32]);
    if let Some(probe) = ClaimedProbe::parse(bytes) {
        let made = key.seal(probe.stream, probe.sequence);
        assert_eq!(key.made(&probe), bytes == made);
        let own = ClaimedProbe::parse(&made).expect("our own probe has its shape");
        assert!(key.made(&own) && (own.stream, own.sequence) == (probe.stream, probe.sequence));
    }
    if let Some(key) = std::str::from_utf8(bytes).ok().and_then(|text| ProbeKey::from_base64(text).ok()) {
        assert_eq!(key.to_base64().as_bytes(), bytes, "one way to write a key");
    }
}

/// Lets the controller verify a report that a device signed, whatever is in it: as a hostile device could send it. What is taken is
/// within its bounds, counts once, and can be judged and told.
pub fn fuzz_posture(bytes: &[u8]) {
    let Ok(document) = std::str::from_utf8(bytes) else { return };
    let (key, device, challenge) =
        (DeviceSigningKey::from_seed(&[5; 32]), DeviceId::from_bytes([1; 16]), Nonce::from_bytes([9; 16]));
    let signature = key.sign(SigningPurpose::Posture, document.as_bytes());
    let signed = SignedPosture { document: document.to_owned(), signature };
    let mut verifier = PostureVerifier::new(device, key.public(), challenge);
    let Ok(verified) = verifier.verify(&signed, Duration::from_secs(60)) else { return };
    assert!(verifier.verify(&signed, Duration::from_secs(60)).is_err(), "a replay is refused");
    assert!(verified.facts().within_bounds() && verified.facts().same_state(verified.facts()));
    assert!(verified.facts().changes_since(&Facts::default()).len() <= crate::posture::facts::MAX_NAMED);
    let now = WallTime::from_millis(1_795_424_400_000);
    let report = Report { facts: verified.into_facts(), observed_at: now };
    let requirement = Requirement {
        disk_encrypted: Some(true),
        firewall: Some(true),
        max_security_updates: Some(0),
        agents: report.facts.agents.keys().cloned().collect(),
        checks: report.facts.checks.keys().cloned().collect(),
        ..Requirement::default()
    };
    let verdict = requirement.evaluate(Some(&report), None, now);
    assert_eq!(verdict.truth == Truth::True, verdict.findings.is_empty());
}

#[cfg(test)]
mod tests {
    fn replay(target: &str, body: impl Fn(&[u8])) {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz/corpus/").to_owned() + target;
        let mut count = 0;
        for entry in std::fs::read_dir(&folder).expect("a folder of the corpus") {
            body(&std::fs::read(entry.expect("an entry").path()).expect("a file of the corpus"));
            count += 1;
        }
        assert!(count > 0, "{folder} is empty");
    }

    #[test]
    fn the_kept_corpus_holds() {
        replay("policy", super::fuzz_policy);
        replay("message", super::fuzz_message);
        replay("grants", super::fuzz_grants);
        replay("probe", super::fuzz_probe);
        replay("posture", super::fuzz_posture);
        super::fuzz_policy(include_bytes!("../../configs/policy.toml"));
    }

    #[test]
    fn the_corpus_reaches_what_it_is_for() {
        let text = include_str!("../fuzz/corpus/grants/snapshot");
        let document: crate::grant::GrantDocument = serde_json::from_str(text).expect("a document");
        let key = crate::key::ControllerSigningKey::from_seed(&[5; 32]);
        let mut verifier = crate::grant::GrantVerifier::new(document.audience, key.public());
        verifier.remember_nonce(document.nonce, crate::time::Monotonic::from_millis(1));
        assert!(verifier.verify(&crate::grant::sign(&document, &key)).is_ok());
        assert_eq!(document.audience, crate::id::DeviceId::from_bytes([1; 16]));
        assert_eq!(document.nonce, crate::id::Nonce::from_bytes([9; 16]));
        let report: crate::posture::PostureDocument =
            serde_json::from_str(include_str!("../fuzz/corpus/posture/whole")).expect("a report");
        let key = crate::key::DeviceSigningKey::from_seed(&[5; 32]);
        let (device, challenge) = (document.audience, document.nonce);
        let mut verifier = crate::posture::PostureVerifier::new(device, key.public(), challenge);
        assert!(verifier.verify(&crate::posture::sign_posture(&report, &key), std::time::Duration::ZERO).is_ok());
    }
}
