use postern_common::{
    grant::{GrantError, GrantVerifier, OwnGrant},
    id::{DeviceId, SubjectId},
    key::{ControllerSigningKey, WireGuardPrivateKey},
    time::{Monotonic, Now, WallTime},
};

use super::*;
use crate::agent::core::{
    identity::{DeviceSeed, Enrolment, Login, Wanted},
    keyring::Keyring,
};

const BOOT: BootId = BootId::from_bytes([1; 16]);
const NOW: Now = Now { monotonic: Monotonic::from_millis(0), wall: WallTime::from_millis(0) };

struct Places(tempfile::TempDir);

impl Places {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a temporary directory"))
    }

    fn state(&self) -> PathBuf {
        self.0.path().join("state")
    }

    fn runtime(&self) -> PathBuf {
        self.0.path().join("run")
    }

    fn open(&self) -> Result<State, StateError> {
        State::open(&self.state(), &self.runtime())
    }
}

fn identity() -> Identity {
    let mut keyring = Keyring::default();
    keyring.propose(WireGuardPrivateKey::from_bytes([3; 32]), WallTime::from_millis(5));
    Identity {
        device_seed: DeviceSeed::from_bytes([7; 32]),
        keyring,
        enrolment: Some(Enrolment {
            controller: "https://ctl.corp.example".parse().expect("a target"),
            device: DeviceId::from_bytes([2; 16]),
            name: "payroll-1".parse().expect("a name"),
            subject_name: "service:payroll".into(),
            controller_key: ControllerSigningKey::from_seed(&[5; 32]).public(),
            login: Login::Service,
            overlay: vec!["fd5a::/48".parse().expect("a prefix")],
        }),
        wanted: Wanted::Up,
        farewell: None,
    }
}

fn saved(generation: u64) -> SavedGrants {
    SavedGrants {
        boot: BOOT,
        position: Position { epoch: 1, generation },
        policy_revision: 1,
        own: OwnGrant {
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
        },
        peers: vec![],
    }
}

fn resume(found: Found, boot: BootId) -> Result<(), GrantError> {
    let key = ControllerSigningKey::from_seed(&[5; 32]).public();
    let mut verifier = GrantVerifier::new(DeviceId::from_bytes([2; 16]), key);
    let (Some(saved), Some(mark)) = (found.saved, found.mark) else { return Err(GrantError::NotResumable) };
    verifier.resume(saved, boot, mark, NOW).map(drop)
}

#[test]
fn a_directory_in_which_others_may_write_is_not_used() {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    let places = Places::new();
    let victim = places.0.path().join("victim");
    std::fs::write(&victim, "precious").expect("writes");
    std::fs::create_dir(places.runtime()).expect("makes a folder");
    symlink(&victim, places.runtime().join(".grants.new")).expect("makes a link");
    for mode in [0o777, 0o1777, 0o775] {
        std::fs::set_permissions(places.runtime(), std::fs::Permissions::from_mode(mode)).expect("changes the mode");
        let error = places.open().expect_err("refused").to_string();
        assert!(error.contains("others may write") && error.contains("chmod go-w"), "{error}");
    }
    std::fs::set_permissions(places.runtime(), std::fs::Permissions::from_mode(0o755)).expect("changes the mode");
    if chown(places.runtime(), Some(4_242), None).is_ok() {
        let error = places.open().expect_err("refused").to_string();
        assert!(error.contains("belongs to user 4242"), "{error}");
    }
    assert_eq!(std::fs::read_to_string(&victim).expect("reads"), "precious");
}

#[test]
fn the_identity_survives_a_restart_and_no_secret_is_readable_in_its_file() {
    let places = Places::new();
    places.open().expect("opens").write_identity(&identity()).expect("writes");
    let found = places.open().expect("opens").load().expect("loads").identity.expect("an identity");
    assert_eq!(found.enrolment, identity().enrolment);
    assert_eq!(found.device_seed.0, [7; 32]);
    assert_eq!(found.keyring.public_keys(), identity().keyring.public_keys());
    let bytes = std::fs::read(places.state().join("identity")).expect("the file");
    for secret in [[7u8; 16], [3; 16]] {
        assert!(!bytes.windows(16).any(|window| window == secret));
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    assert!(!text.contains("BwcHBwcH") && !text.contains("payroll"), "base 64 or clear text");
    use std::os::unix::fs::PermissionsExt;
    let mode = std::fs::metadata(places.state().join("identity")).expect("the file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn two_agents_never_run_on_one_state() {
    let places = Places::new();
    let first = places.open().expect("opens");
    assert!(is_locked(&places.state()));
    assert!(matches!(places.open(), Err(StateError::Locked(_))));
    drop(first);
    assert!(places.open().is_ok());
}

#[test]
fn saved_grants_resume_in_the_same_boot_with_their_mark() {
    let places = Places::new();
    places.open().expect("opens").write_grants(&saved(3)).expect("writes");
    let found = places.open().expect("opens").load().expect("loads");
    assert_eq!(resume(found, BOOT), Ok(()));
    let found = places.open().expect("opens").load().expect("loads");
    assert_eq!(resume(found, BootId::from_bytes([9; 16])), Err(GrantError::NotResumable), "a new boot");
}

#[test]
fn removed_grants_are_on_no_disk_any_more() {
    let places = Places::new();
    let state = places.open().expect("opens");
    state.write_grants(&saved(3)).expect("writes");
    state.remove_grants().expect("removes");
    assert!(!places.runtime().join("grants").exists() && !places.state().join("position").exists());
    let found = state.load().expect("loads");
    assert!(found.saved.is_none() && found.mark.is_none());
}

#[test]
fn an_old_copy_of_either_directory_put_back_means_closed() {
    for which in ["grants", "position"] {
        let places = Places::new();
        let path = if which == "grants" { places.runtime() } else { places.state() }.join(which);
        places.open().expect("opens").write_grants(&saved(3)).expect("writes");
        let old = std::fs::read(&path).expect("the file");
        places.open().expect("opens").write_grants(&saved(4)).expect("writes");
        std::fs::write(&path, old).expect("put back");
        let found = places.open().expect("opens").load().expect("loads");
        assert_eq!(resume(found, BOOT), Err(GrantError::NotResumable), "old {which}");
    }
}

#[test]
fn a_changed_or_swapped_file_counts_for_nothing_and_is_kept() {
    let places = Places::new();
    let state = places.open().expect("opens");
    state.write_grants(&saved(3)).expect("writes");
    state.write_identity(&identity()).expect("writes");
    drop(state);
    // One file passed off as another: the same key sealed it.
    std::fs::copy(places.state().join("position"), places.runtime().join("grants")).expect("swaps");
    let found = places.open().expect("opens").load().expect("loads");
    assert!(found.saved.is_none() && found.ignored.len() == 1, "{found:?}");
    let path = places.state().join("identity");
    let mut bytes = std::fs::read(&path).expect("the file");
    *bytes.last_mut().expect("not empty") ^= 1;
    std::fs::write(&path, &bytes).expect("tampers");
    let error = places.open().expect("opens").load().expect_err("tampered");
    let StateError::Corrupt { kept, .. } = &error else { panic!("{error}") };
    assert_eq!(std::fs::read(kept).expect("kept"), bytes, "nothing is lost");
    assert!(error.to_string().contains("postern up"), "{error}");
}

#[test]
fn a_lost_sealing_key_is_reported_and_not_replaced() {
    let places = Places::new();
    places.open().expect("opens").write_identity(&identity()).expect("writes");
    let key = places.state().join("sealing/key");
    std::fs::remove_file(&key).expect("lose it");
    assert!(matches!(places.open(), Err(StateError::KeyMissing { .. })));
    assert!(!key.exists());
    std::fs::write(&key, b"short").expect("damage it");
    assert!(matches!(places.open(), Err(StateError::Corrupt { .. })));
}

#[test]
fn what_was_cut_off_by_a_crash_leaves_the_former_file() {
    let places = Places::new();
    let state = places.open().expect("opens");
    state.write_identity(&identity()).expect("writes");
    std::fs::write(places.state().join(".identity.new"), b"postern sealed v1\nhalf").expect("a crash's remains");
    assert!(state.load().expect("loads").identity.is_some());
    state.write_identity(&identity()).expect("the next write replaces the remains");
}
