//! Claims about signed documents.

use super::*;

const NODE: DeviceId = DeviceId::from_bytes([1; 16]);
const ASKED: Nonce = Nonce::from_bytes([9; 16]);

fn controller() -> ControllerSigningKey {
    ControllerSigningKey::from_seed(&[5; 32])
}

fn own<T>() -> OwnGrant<T> {
    OwnGrant {
        name: "payroll-1".parse().expect("a name"),
        subject: SubjectId::from_bytes([2; 16]),
        subject_name: "service:payroll".into(),
        tags: vec![],
        addresses: vec![],
        overlay: vec![],
        domain: "internal".into(),
        keys: vec![],
        session_until: None,
        quarantine: None,
        step_up: vec![],
        scan: None,
    }
}

fn peer(until: Lifetime) -> PeerGrant<Lifetime> {
    PeerGrant {
        device: DeviceId::from_bytes([3; 16]),
        name: "laptop".parse().expect("a name"),
        subject: SubjectId::from_bytes([4; 16]),
        subject_name: "alice".into(),
        tags: vec![],
        addresses: vec!["fd00::3".parse().expect("an address")],
        pairs: vec![],
        endpoints: vec![],
        inbound: vec![Permission {
            rule: "payroll".parse().expect("a name"),
            resource: "payroll-app".parse().expect("a name"),
            lease: LeaseId::from_bytes([6; 16]),
            services: vec!["tcp/443".parse().expect("a service")],
            until,
            on_deny: OnDeny::Drop,
            mode: Mode::Enforce,
            limits: Default::default(),
        }],
        outbound: vec![],
        scan: None,
    }
}

fn document(generation: u64, previous: Option<u64>) -> GrantDocument {
    let until = Lifetime { remaining_ms: 600_000, not_after: WallTime::from_millis(1_000_000) };
    GrantDocument {
        version: DOCUMENT_VERSION,
        audience: NODE,
        position: Position { epoch: 1, generation },
        nonce: ASKED,
        issued_at: WallTime::from_millis(0),
        policy_revision: 1,
        change: match previous {
            None => Change::Snapshot { own: own(), peers: vec![peer(until)] },
            Some(previous) => Change::Delta { previous, own: None, upsert: vec![peer(until)], remove: vec![] },
        },
    }
}

fn verifier() -> GrantVerifier {
    let mut verifier = GrantVerifier::new(NODE, controller().public());
    verifier.remember_nonce(ASKED, Monotonic::from_millis(50));
    verifier
}

#[test]
fn a_delayed_document_does_not_live_longer() {
    let verified = verifier().verify(&sign(&document(1, None), &controller())).expect("verifies");
    let Change::Snapshot { peers, .. } = verified.into_change() else { panic!("a snapshot") };
    assert_eq!(peers[0].inbound[0].until.monotonic, Monotonic::from_millis(600_050));
}

#[test]
fn what_is_not_signed_for_this_node_by_its_controller_is_refused() {
    let other = ControllerSigningKey::from_seed(&[6; 32]);
    assert_eq!(verifier().verify(&sign(&document(1, None), &other)), Err(GrantError::Signature));
    let mut signed = sign(&document(1, None), &controller());
    signed.document = signed.document.replace("tcp/443", "tcp/442");
    assert_eq!(verifier().verify(&signed), Err(GrantError::Signature));
    let mut misdirected = document(1, None);
    misdirected.audience = DeviceId::from_bytes([7; 16]);
    assert_eq!(verifier().verify(&sign(&misdirected, &controller())), Err(GrantError::Audience(misdirected.audience)));
    let mut unasked = document(1, None);
    unasked.nonce = Nonce::from_bytes([8; 16]);
    assert_eq!(verifier().verify(&sign(&unasked, &controller())), Err(GrantError::Nonce));
}

#[test]
fn gaps_forks_and_replays_are_refused_and_a_snapshot_mends_them() {
    let key = controller();
    let mut verifier = verifier();
    let enforced = |generation| Some(Position { epoch: 1, generation });
    assert_eq!(
        verifier.verify(&sign(&document(2, Some(1)), &key)),
        Err(GrantError::Gap { previous: 1, enforced: None })
    );
    assert!(verifier.verify(&sign(&document(4, None), &key)).is_ok());
    assert!(verifier.verify(&sign(&document(5, Some(4)), &key)).is_ok());
    assert!(matches!(verifier.verify(&sign(&document(5, Some(4)), &key)), Err(GrantError::Stale { .. })), "replay");
    assert!(matches!(verifier.verify(&sign(&document(4, None), &key)), Err(GrantError::Stale { .. })), "old snapshot");
    assert_eq!(
        verifier.verify(&sign(&document(8, Some(6)), &key)),
        Err(GrantError::Gap { previous: 6, enforced: enforced(5) })
    );
    assert_eq!(
        verifier.verify(&sign(&document(8, Some(4)), &key)),
        Err(GrantError::Gap { previous: 4, enforced: enforced(5) })
    );
    assert!(verifier.verify(&sign(&document(9, None), &key)).is_ok());
    assert_eq!(verifier.position(), enforced(9));
}

#[test]
fn saved_state_counts_only_in_its_boot_and_only_if_it_is_the_newest() {
    let boot = BootId::from_bytes([1; 16]);
    let position = Position { epoch: 1, generation: 3 };
    let until = Deadline { monotonic: Monotonic::from_millis(1_000), wall: WallTime::NEVER };
    let peer = peer(Lifetime { remaining_ms: 0, not_after: WallTime::NEVER }).map_time(&|_| until);
    let saved = SavedGrants { boot, position, policy_revision: 1, own: own(), peers: vec![peer] };
    let now = |ms| Now { monotonic: Monotonic::from_millis(ms), wall: WallTime::from_millis(0) };
    let peers = |grants: VerifiedGrants| match grants.into_change() {
        Change::Snapshot { peers, .. } => peers.len(),
        Change::Delta { .. } => unreachable!("resuming makes a snapshot"),
    };
    let fresh = || GrantVerifier::new(NODE, controller().public());
    assert_eq!(fresh().resume(saved.clone(), boot, position, now(999)).map(peers), Ok(1));
    assert_eq!(fresh().resume(saved.clone(), boot, position, now(1_000)).map(peers), Ok(0), "expired meanwhile");
    assert_eq!(
        fresh().resume(saved.clone(), BootId::from_bytes([2; 16]), position, now(0)),
        Err(GrantError::NotResumable)
    );
    let newer = Position { epoch: 1, generation: 4 };
    assert_eq!(fresh().resume(saved, boot, newer, now(0)), Err(GrantError::NotResumable));
}

#[test]
fn an_epoch_is_an_order_of_its_own_and_never_goes_back() {
    let key = controller();
    let of_epoch = |epoch, document: GrantDocument| {
        let position = Position { epoch, ..document.position };
        sign(&GrantDocument { position, ..document }, &key)
    };
    let mut verifier = verifier();
    assert!(verifier.verify(&of_epoch(1, document(9, None))).is_ok());
    let enforced = verifier.position();
    assert_eq!(
        verifier.verify(&of_epoch(2, document(10, Some(9)))),
        Err(GrantError::Gap { previous: 9, enforced }),
        "a new epoch continues nothing"
    );
    assert!(verifier.verify(&of_epoch(2, document(1, None))).is_ok(), "it begins with a snapshot, and counts anew");
    assert!(matches!(verifier.verify(&of_epoch(1, document(50, None))), Err(GrantError::Stale { .. })));
    assert!(verifier.verify(&of_epoch(2, document(2, Some(1)))).is_ok());
}

#[test]
fn a_lifetime_counts_from_the_question_that_the_document_answers() {
    let mut verifier = verifier();
    verifier.remember_nonce(Nonce::from_bytes([8; 16]), Monotonic::from_millis(500_000));
    let verified = verifier.verify(&sign(&document(1, None), &controller())).expect("verifies");
    let Change::Snapshot { peers, .. } = verified.into_change() else { panic!("a snapshot") };
    assert_eq!(peers[0].inbound[0].until.monotonic, Monotonic::from_millis(600_050), "not from a later one");
    assert_eq!(peers[0].inbound[0].until.wall, WallTime::from_millis(1_000_000));
    for other in 0..MAX_OUTSTANDING_NONCES {
        let nonce = u128::try_from(other).expect("few").to_be_bytes();
        verifier.remember_nonce(Nonce::from_bytes(nonce), Monotonic::from_millis(600_000));
    }
    assert_eq!(verifier.verify(&sign(&document(2, Some(1)), &controller())), Err(GrantError::Nonce), "old questions");
}

#[test]
fn documents_of_another_version_or_without_a_bound_are_not_read() {
    let newer = GrantDocument { version: DOCUMENT_VERSION + 1, ..document(1, None) };
    let refused = verifier().verify(&sign(&newer, &controller()));
    assert!(matches!(refused, Err(GrantError::Malformed(why)) if why.contains("version")));
    let mut text = sign(&document(1, None), &controller()).document;
    text.push_str(&" ".repeat(MAX_DOCUMENT_BYTES + 1 - text.len()));
    let signature = controller().sign(SigningPurpose::Grant, text.as_bytes());
    let refused = verifier().verify(&SignedDocument { document: text, signature });
    assert_eq!(refused, Err(GrantError::Malformed("too long".into())));
}

#[test]
fn saved_state_is_taken_up_once_and_what_came_before_it_is_old() {
    let (boot, position) = (BootId::from_bytes([1; 16]), Position { epoch: 1, generation: 3 });
    let saved = SavedGrants { boot, position, policy_revision: 1, own: own(), peers: vec![] };
    let now = Now { monotonic: Monotonic::from_millis(0), wall: WallTime::from_millis(0) };
    let mut verifier = verifier();
    assert!(verifier.resume(saved.clone(), boot, position, now).is_ok());
    assert_eq!(verifier.position(), Some(position));
    assert_eq!(verifier.resume(saved, boot, position, now), Err(GrantError::NotResumable), "only before anything else");
    assert!(matches!(verifier.verify(&sign(&document(3, None), &controller())), Err(GrantError::Stale { .. })));
    assert!(verifier.verify(&sign(&document(4, Some(3)), &controller())).is_ok(), "what is newer continues it");
}
