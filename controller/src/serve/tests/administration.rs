//! Administration over the socket, starts that cannot succeed, backup and restore.

use std::os::unix::fs::PermissionsExt;

use postern_common::time::WallTime;

use super::*;
use crate::{
    admin::{
        client::ClientError,
        request::{Holdable, Revocable},
    },
    identity::{
        Proof, SignedIn,
        local::{Accounts, SealingKey},
        sessions::{SessionLimits, WebSessions},
    },
    records::Quarantined,
    store::{SqliteStore, backup},
    web::doors::{Doors, DoorsError, StockRequest, TurnedAway},
};

async fn apply(controller: &Controller, text: &str) -> Result<Value, ClientError> {
    controller.ask(Request::PolicyApply { file: "next.toml".into(), text: text.into() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_made_changed_and_removed_and_all_of_it_is_recorded() {
    let controller = Controller::start("").await;
    let add = Request::UserAdd {
        login: "alice@corp.example".into(),
        groups: ["payroll".to_owned()].into(),
        admin: false,
        password: None,
    };
    let made = controller.ask(add.clone()).await.unwrap();
    assert!(made["link"].as_str().unwrap().starts_with("https://127.0.0.1/password/"), "{made}");
    assert!(controller.ask(add).await.unwrap_err().to_string().contains("already"));
    let user = "alice@corp.example".to_owned();
    let groups = ["staff".to_owned()].into();
    controller.ask(Request::UserSetGroups { user: user.clone(), groups }).await.unwrap();
    let disabled = controller.ask(Request::UserDisable { user: user.clone(), reason: "left".into() }).await.unwrap();
    assert_eq!(disabled["account"]["disabled"], true);
    let list = controller.ask(Request::UserList).await.unwrap();
    assert_eq!(list["accounts"][0]["groups"][0], "staff");
    controller.ask(Request::UserRemove { user }).await.unwrap();
    let list = controller.ask(Request::UserList).await.unwrap();
    assert_eq!(list["accounts"].as_array().map(Vec::len), Some(0));

    let log = audit_text(&controller);
    let me = nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name;
    for action in ["user add", "user set-groups", "user disable", "user remove"] {
        assert!(log.contains(&format!("\"action\":\"{action}\",\"by\":\"{me}\"")), "{action}: {log}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_takes_over_what_the_accounts_say_and_the_core_was_not_told() {
    let mut controller = Controller::start("").await;
    let user = "alice@corp.example".to_owned();
    let add = Request::UserAdd { login: user.clone(), groups: [].into(), admin: false, password: None };
    controller.ask(add).await.unwrap();
    controller.ask(Request::UserDisable { user: user.clone(), reason: "left".into() }).await.unwrap();
    controller.stop().await;
    // What is left when the controller is killed after the account was removed and before its core was told.
    let config = controller.config();
    let pool = SqliteStore::pool(&config.database()).await.unwrap();
    let accounts = Accounts::new(pool.clone(), config.url.clone(), SealingKey::from_bytes([0; 32]));
    accounts.remove(&user).await.unwrap();
    pool.close().await;
    controller.serve().await.unwrap();
    let log = audit_text(&controller);
    assert!(log.contains("\"what\":\"removed\"") && log.contains("\"by\":\"start\""), "{log}");
}

fn audit_text(controller: &Controller) -> String {
    let files = crate::audit::files(&controller.config().audit_dir()).unwrap();
    files.iter().map(|(_, path)| std::fs::read_to_string(path).unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_is_for_its_owner_alone() {
    let controller = Controller::start("").await;
    let socket = controller.config().admin_socket;
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(socket.parent().unwrap()), 0o700);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_that_holds_other_things_keeps_its_mode_and_one_that_others_write_is_refused() {
    let controller = Controller::prepare("");
    let mut config = controller.config();
    let shared = controller.file("shared");
    std::fs::create_dir(&shared).unwrap();
    std::fs::write(shared.join("other"), "").unwrap();
    config.admin_socket = shared.join("admin.sock");
    for (mode, good) in [(0o755, true), (0o1777, true), (0o777, false), (0o775, false)] {
        std::fs::set_permissions(&shared, std::fs::Permissions::from_mode(mode)).unwrap();
        let bound = crate::admin::server::bind(&config).map(drop).map_err(|error| error.to_string());
        assert_eq!(bound.is_ok(), good, "{mode:o}: {bound:?}");
        assert!(bound.err().is_none_or(|error| error.contains("chmod go-w")));
        assert_eq!(std::fs::metadata(&shared).unwrap().permissions().mode() & 0o7777, mode);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_does_not_check_changes_nothing_and_says_which_one_stays() {
    let controller = Controller::start(POLICY).await;
    let before = controller.ask(Request::PolicyShow).await.unwrap();
    let refused = apply(&controller, &POLICY.replace("ports", "port")).await.unwrap_err().to_string();
    assert!(refused.contains("next.toml:4:1"), "{refused}");
    assert!(refused.contains("did you mean `ports`"), "{refused}");
    assert!(refused.contains("Nothing was changed: the policy of "), "{refused}");
    assert_eq!(controller.ask(Request::PolicyShow).await.unwrap(), before);

    let applied = apply(&controller, &POLICY.replace("5432", "5433")).await.unwrap();
    assert_eq!(applied["revision"].as_u64(), before["policy_revision"].as_u64().map(|revision| revision + 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_document_that_was_only_written_does_not_take_effect_by_a_restart() {
    let mut controller = Controller::start(POLICY).await;
    controller.stop().await;
    std::fs::write(controller.file("policy.toml"), "").unwrap();
    controller.serve().await.unwrap();
    let kept = controller.ask(Request::PolicyShow).await.unwrap();
    assert_eq!(kept["policy_text"], POLICY);
    assert_eq!(controller.ask(Request::Status).await.unwrap()["policy"]["document_differs"], true);
    controller.stop().await;
    std::fs::write(controller.file("policy.toml"), "broken [").unwrap();
    controller.serve().await.unwrap();
    assert_eq!(controller.ask(Request::PolicyShow).await.unwrap()["policy_text"], POLICY);
}

#[tokio::test(flavor = "multi_thread")]
async fn starts_that_cannot_succeed_say_what_and_where_and_what_to_do() {
    let mut controller = Controller::prepare("broken [");
    let error = controller.serve().await.unwrap_err().to_string();
    assert!(error.contains("policy.toml:1:"), "{error}");

    std::fs::write(controller.file("policy.toml"), "").unwrap();
    controller.serve().await.unwrap();
    let second = start(controller.config(), AtStart::KeepPolicy).await.unwrap_err().to_string();
    assert!(second.contains("another postern-controller serves from"), "{second}");
    controller.stop().await;

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut config = controller.config();
    config.listen = vec![taken.local_addr().unwrap()];
    let error = start(config, AtStart::KeepPolicy).await.unwrap_err().to_string();
    assert!(error.contains(&format!("TCP port 127.0.0.1:{port} is taken")) && error.contains("`listen` in"), "{error}");

    let key = controller.file("keys/signing.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    let error = controller.serve().await.unwrap_err().to_string();
    assert!(error.contains("chmod 600"), "{error}");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();

    std::fs::write(controller.file("state/controller.db"), b"this is no database at all, is it? ".repeat(200)).unwrap();
    let error = controller.serve().await.unwrap_err().to_string();
    assert!(error.contains("damaged") && error.contains("restore"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_restores_machines_and_accounts_in_a_new_epoch() {
    let mut controller = Controller::start(POLICY).await;
    let token = controller.token("db", "db", 2).await;
    let mut machine = Machine::new("db-1", 1);
    machine.enrol(&controller, &token).await;
    let (_, _, before) = machine.hello(&controller).await;
    let file = controller.file("copy.backup");
    let written = backup::write(&controller.config(), &file, false).await.unwrap(); // beside the one that serves
    assert!(written.left_out.contains(&controller.config().signing_key()), "{written:?}");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let again = backup::write(&controller.config(), &file, false).await.unwrap_err().to_string();
    assert!(again.contains("not overwritten"), "{again}");
    let bytes = std::fs::read(&file).unwrap();
    let signing = std::fs::read(controller.file("keys/signing.key")).unwrap();
    assert!(!bytes.windows(signing.len()).any(|window| window == signing), "private keys stay out");
    Machine::new("db-2", 2).enrol(&controller, &token).await; // after the backup: it will not be known

    let refused = backup::restore(&controller.config(), &file).await.unwrap_err().to_string();
    assert!(refused.contains("another postern-controller serves"), "{refused}");
    controller.stop().await;
    let restored = backup::restore(&controller.config(), &file).await.unwrap();
    assert!(restored.previous.is_some_and(|previous| previous.exists()));
    controller.serve().await.unwrap();

    let devices = controller.ask(Request::DeviceList).await.unwrap();
    assert_eq!(devices.as_array().map(Vec::len), Some(1), "{devices}");
    let (_, _, after) = machine.hello(&controller).await;
    assert!(after.position().epoch > before.position().epoch);
    controller.stop().await;
    let at = controller.file("controller.toml").display().to_string();
    let verified = tokio::task::spawn_blocking(move || typed(&["audit", "verify", "--config", &at])).await.unwrap();
    assert_eq!(format!("{:?}", verified.unwrap()), format!("{:?}", std::process::ExitCode::SUCCESS));
}

#[tokio::test(flavor = "multi_thread")]
async fn something_else_than_a_backup_is_not_restored() {
    let controller = Controller::prepare("");
    let file = controller.file("other.db");
    std::fs::write(&file, b"not a backup").unwrap();
    let error = backup::restore(&controller.config(), &file).await.unwrap_err().to_string();
    assert!(error.contains("damaged") || error.contains("not a"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stock_client_ends_with_a_browser_session_that_ended_by_itself() {
    let policy = POLICY.replace("\"service:app\"", "\"group:staff\"") + "stock_clients = true\n";
    let controller = Controller::start(&policy).await;
    let token = controller.token("db", "db", 1).await;
    let mut machine = Machine::new("db-1", 1);
    machine.enrol(&controller, &token).await;
    let _stream = machine.hello(&controller).await;
    // Its browser's session is not in the store: idle, displaced or swept, all look like this.
    let who = crate::identity::SignedIn::for_test("https://127.0.0.1", "1", "alice", &["staff"]);
    let asked = crate::web::doors::StockRequest {
        name: "phone".parse().unwrap(),
        public_key: postern_common::key::WireGuardPublicKey::from_bytes([0x77; 32]),
    };
    let handle = controller.running().handle.clone();
    let exported = crate::web::doors::Doors::stock_client(&handle, asked, &who).await;
    exported.unwrap();
    let pool = crate::store::SqliteStore::pool(&controller.config().database()).await.unwrap();
    let sessions = crate::identity::sessions::WebSessions::new(pool, Default::default());
    crate::serve::start::end_with_browsers(&sessions, &handle, clock::now().wall).await;
    let left = controller.ask(Request::DeviceList).await.unwrap();
    assert_eq!(left.as_array().map(Vec::len), Some(1), "{left}");
}

const WIKI: &str = r#"
[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/443"]

[[access]]
name = "everybody reads the wiki"
from = ["user:*"]
to = ["wiki"]
stock_clients = true
"#;

fn proof(subject: &str, auth_time: WallTime) -> Proof {
    Proof {
        issuer: "https://idp.example".into(),
        subject: subject.into(),
        name: format!("{subject}@corp.example"),
        groups: Some([].into()),
        acr: None,
        amr: vec![],
        auth_time: Some(auth_time),
        provisioned_as: None,
        sid: None,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stopped_machine_takes_the_cookie_of_the_browser_that_let_it_in() {
    let controller = Controller::start(WIKI).await;
    Machine::new("wiki-1", 1).enrol(&controller, &controller.token("wiki", "wiki", 1).await).await;
    let pool = SqliteStore::pool(&controller.config().database()).await.unwrap();
    let sessions = WebSessions::new(pool, SessionLimits::default());
    let handle = controller.running().handle.clone();
    for (n, subject) in ["lost", "found", "held"].into_iter().enumerate() {
        let now = clock::now().wall;
        let (cookie, who) = sessions.open(proof(subject, now), now).await.unwrap();
        let (other, elsewhere) = sessions.open(proof(subject, now), now).await.unwrap();
        for who in [&who, &elsewhere] {
            assert_eq!(Doors::admit(&handle, who).await.unwrap(), None);
        }
        let asked = |n: usize| StockRequest {
            name: format!("{subject}-{n}").parse().unwrap(),
            public_key: WireGuardPublicKey::from_bytes([u8::try_from(n).unwrap() + 1; 32]),
        };
        let client = Doors::stock_client(&handle, asked(10 * n), &who).await.unwrap();
        let (name, reason, wait_ms) = (client.machine.to_string(), "stolen".to_owned(), 1_000);
        let stop = match subject {
            "lost" => Request::Revoke { what: Revocable::Device, name, reason, wait_ms },
            "found" => Request::Revoke { what: Revocable::Session, name, reason, wait_ms },
            _ => Request::Quarantine { what: Holdable::Device, name, reason, wait_ms },
        };
        controller.ask(stop).await.unwrap();
        let now = clock::now().wall;
        assert!(sessions.find(&cookie, now).await.unwrap().is_none(), "{subject}: the cookie is dead");
        assert!(sessions.find(&other, now).await.unwrap().is_some(), "{subject}: another browser's is not");
        let under_way = Doors::stock_client(&handle, asked(10 * n + 1), &who).await;
        let why = if subject == "held" { "is in quarantine" } else { "sign in again" };
        assert!(matches!(&under_way, Err(DoorsError::NotPermitted(told)) if told.contains(why)), "{under_way:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_no_command_stopped_takes_its_browser_within_a_minute_unless_that_was_proven_since() {
    let controller = Controller::start(WIKI).await;
    Machine::new("wiki-1", 1).enrol(&controller, &controller.token("wiki", "wiki", 1).await).await;
    let pool = SqliteStore::pool(&controller.config().database()).await.unwrap();
    let sessions = WebSessions::new(pool, SessionLimits::default());
    let handle = controller.running().handle.clone();
    let began = clock::now().wall;
    let later = WallTime::from_millis(began.as_millis() + 60_000);
    let (old, who) = sessions.open(proof("alice", began), began).await.unwrap();
    let (new, again) = sessions.open(proof("alice", later), began).await.unwrap();
    for (n, who) in [&who, &again].into_iter().enumerate() {
        let (name, key) = (format!("phone-{n}").parse().unwrap(), [u8::try_from(n).unwrap() + 1; 32]);
        let asked = StockRequest { name, public_key: WireGuardPublicKey::from_bytes(key) };
        let device = Doors::stock_client(&handle, asked, who).await.unwrap().device;
        let held = Quarantined::Device(device);
        let stop = handle.call(move |turn, now| turn.core.quarantine(held, "it scans", "limit \"scan\"", now));
        stop.await.unwrap().unwrap();
        let release = n == 0; // two clients of one person cannot be held: there would be no second one
        if release {
            crate::serve::start::end_with_browsers(&sessions, &handle, clock::now().wall).await;
            assert!(sessions.find(&old, clock::now().wall).await.unwrap().is_none(), "its cookie is dead");
            let held = Quarantined::Device(device);
            handle.call(move |turn, now| turn.core.release(&held, "root", now)).await.unwrap().unwrap();
        }
    }
    crate::serve::start::end_with_browsers(&sessions, &handle, clock::now().wall).await;
    assert!(sessions.find(&new, clock::now().wall).await.unwrap().is_some(), "it was proven after that");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_of_a_provider_who_only_came_to_the_pages_is_disabled_by_name() {
    let controller = Controller::start("").await;
    let handle = controller.running().handle.clone();
    let lea = SignedIn::for_test("https://idp.example", "lea", "lea@corp.example", &[]);
    let disable = || Request::UserDisable { user: "lea@corp.example".into(), reason: "left".into() };
    assert!(controller.ask(disable()).await.is_err(), "nobody of that name ever came");
    assert_eq!(Doors::admit(&handle, &lea).await.unwrap(), None);
    controller.ask(disable()).await.unwrap();
    let away = Doors::admit(&handle, &lea).await.unwrap();
    assert!(matches!(&away, Some(TurnedAway::Stopped(why)) if why.contains("left")), "{away:?}");
    let subject = "lea@corp.example".to_owned();
    controller.ask(Request::UserEnable { user: subject }).await.unwrap();
    assert_eq!(Doors::admit(&handle, &lea).await.unwrap(), None);
}

/// Waits until every connection to a database is closed: the last of them takes the -wal file with it.
async fn closed(database: &std::path::Path) {
    let wal = PathBuf::from(format!("{}-wal", database.display()));
    let gone = async {
        while wal.exists() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the connections close");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_put_back_by_hand_is_not_served_from_and_restore_takes_it() {
    let mut controller = Controller::start(POLICY).await;
    let token = controller.token("db", "db", 1).await;
    let mut machine = Machine::new("db-1", 1);
    machine.enrol(&controller, &token).await;
    let (_, _, before) = machine.hello(&controller).await;
    controller.stop().await;
    let (database, old) = (controller.config().database(), controller.file("old.db"));
    closed(&database).await;
    std::fs::copy(&database, &old).unwrap();
    controller.serve().await.unwrap();
    controller.ask(Request::DeviceRemove { device: "db-1".into(), wait_ms: 0 }).await.unwrap();
    controller.stop().await;
    closed(&database).await;
    std::fs::copy(&old, &database).unwrap();

    let refused = controller.serve().await.unwrap_err().to_string();
    let way_out = format!("postern-controller restore {}", database.display());
    assert!(refused.contains("older than the audit log") && refused.contains(&way_out), "{refused}");
    backup::restore(&controller.config(), &database).await.unwrap();
    controller.serve().await.unwrap();
    let (_, _, after) = machine.hello(&controller).await;
    assert!(after.position().epoch > before.position().epoch, "it is there again, in a new epoch");
    controller.stop().await;
    let at = controller.file("controller.toml").display().to_string();
    let verified = tokio::task::spawn_blocking(move || typed(&["audit", "verify", "--config", &at])).await.unwrap();
    assert_eq!(format!("{:?}", verified.unwrap()), format!("{:?}", std::process::ExitCode::SUCCESS));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_finds_what_serve_would_stumble_over() {
    let mut controller = Controller::prepare("");
    let written = std::fs::read_to_string(controller.file("controller.toml")).unwrap();
    let (secret, key) = (controller.file("keys/alerts.secret"), controller.file("keys/signing.key"));
    let with = |alerts: &str| {
        let whole = format!(
            "{written}\n[alerts]\nwebhook = \"https://127.0.0.1/a\"\nsecret_file = \"keys/alerts.secret\"\n{alerts}\n"
        );
        std::fs::write(controller.file("controller.toml"), whole).unwrap();
        controller.config().check_files().join("\n")
    };
    crate::serve::files::write_new(&secret, b"short", crate::serve::files::SECRET).unwrap();
    assert!(with("").contains("at least 16 characters"));
    std::fs::write(&secret, "a secret of enough characters").unwrap();
    assert_eq!(with(""), "");
    assert!(with("ca_file = \"corp-ca.pem\"").contains("corp-ca.pem"));
    assert!(with("log = \"nowhere/alerts.jsonl\"").contains("`log` cannot be written"));
    assert_eq!(with("log = \"alerts.jsonl\""), "");
    // Only root can give a file to somebody else, and only root is told by it what the controller's own user may not read.
    if nix::unistd::geteuid().is_root() {
        std::os::unix::fs::chown(&key, Some(65_534), None).unwrap();
        let said = with("");
        assert!(said.contains("belongs to root, and the controller runs as") && said.contains("chown"), "{said}");
        std::os::unix::fs::chown(&key, Some(0), None).unwrap();
    }
    assert_eq!(with(""), "");
    controller.serve().await.unwrap();
}
