//! Serves the pages alone, over plain HTTP on loopback, with people and machines in memory: for the page tests, and to
//! look at while changing a page.
//!
//! `cargo run -p postern-controller --example pages -- [--issuer URL --client-id ID --client-secret SECRET]`
//! prints one JSON line with the URL, then every audit event as a JSON line.

#![allow(clippy::unwrap_used)]

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use postern_common::{
    id::{DeviceId, SessionId},
    key::{DevicePublicKey, PresharedKey, WireGuardPublicKey},
    policy::Demand,
    time::WallTime,
};
use postern_controller::{
    identity::{
        SignedIn,
        local::{AccountRole, Accounts, CopiedPasskey, NewAccount, SealingKey},
        oidc::{Provider, ProviderSettings},
        random::Token,
        sessions::{SessionLimits, WebSessions},
        system_clock,
        user_code::UserCode,
    },
    signals::{
        events::Receivers,
        provider::{Ends, Vouchers, logout::LogoutToken},
    },
    web::{
        self, Doors, LocalAccounts, SignInWays, Web,
        doors::{
            Acquaintance, Answer, DeviceKind, DoorsError, GroupsKnown, JoinedMachine, OpenFrom, PendingJoin, Portal,
            PortalDevice, PortalResource, PortalSession, Presence, Reach, StepUpPage, SteppedUp, StockClients,
            StockConfiguration, StockPeer, StockRequest, Sufficient, TurnedAway,
        },
        event::IdentityEvent,
    },
};

const PASSWORD: &str = "correct horse battery";

fn now() -> WallTime {
    system_clock()()
}

fn minutes(count: i64) -> WallTime {
    WallTime::from_millis(now().as_millis() + count * 60_000)
}

fn device(byte: u8) -> DeviceId {
    DeviceId::from_bytes([byte; 16])
}

/// Joins and machines, in memory; the same for everybody in the group `staff`.
struct Memory {
    joins: Mutex<HashMap<UserCode, PendingJoin>>,
    devices: Mutex<Vec<PortalDevice>>,
}

impl Memory {
    fn new() -> Self {
        let join = |name: &str, byte, address: &str, acquaintance| PendingJoin {
            machine: name.parse().unwrap(),
            device_key: DevicePublicKey::from_bytes([byte; 32]),
            address: address.parse().unwrap(),
            asked_at: minutes(-2),
            expires: minutes(8),
            acquaintance,
        };
        let joins = [
            ("KTRM-4821", join("alice-laptop", 7, "127.0.0.1", Acquaintance::New)),
            (
                "PHSH-6666",
                join("free-prize-machine.attacker.example", 8, "2001:db8:bad::66", Acquaintance::SomebodyElses),
            ),
            ("SWTC-1111", join("honest-machine", 9, "127.0.0.1", Acquaintance::New)),
            ("RFSD-2222", join("unwanted-machine", 10, "198.51.100.7", Acquaintance::New)),
        ];
        let session = |byte, until| {
            Some(PortalSession {
                session: SessionId::from_bytes([byte; 16]),
                began: minutes(-150),
                until: minutes(until),
            })
        };
        let devices = vec![
            PortalDevice {
                device: device(1),
                machine: "alice-desktop".parse().unwrap(),
                kind: DeviceKind::Agent,
                fingerprint: DevicePublicKey::from_bytes([1; 32]).fingerprint(),
                addresses: ["fd7a:115c:a1e0::17", "100.64.0.17"].map(|a| a.parse().unwrap()).into(),
                presence: Presence::Connected,
                session: session(1, 330),
            },
            PortalDevice {
                device: device(2),
                machine: "old-thinkpad".parse().unwrap(),
                kind: DeviceKind::Agent,
                fingerprint: DevicePublicKey::from_bytes([2; 32]).fingerprint(),
                addresses: vec!["fd7a:115c:a1e0::18".parse().unwrap()],
                presence: Presence::LastHeard(Some(minutes(-60 * 80))),
                session: None,
            },
        ];
        let joins = joins.into_iter().map(|(code, join)| (code.parse().unwrap(), join)).collect();
        Self { joins: Mutex::new(joins), devices: Mutex::new(devices) }
    }

    fn take(&self, code: UserCode) -> Result<PendingJoin, DoorsError> {
        self.joins.lock().unwrap().remove(&code).ok_or(DoorsError::NotFound)
    }
}

fn is_staff(who: &SignedIn) -> bool {
    who.groups().is_some_and(|groups| groups.contains("staff"))
}

fn resources() -> Vec<PortalResource> {
    let resource = |name: &str, services: &[&str], rule: &str, reach| PortalResource {
        name: name.parse().unwrap(),
        host: format!("{name}.internal"),
        addresses: ["fd7a:115c:a1e0::3", "100.64.0.3"].map(|a| a.parse().unwrap()).into(),
        services: services.iter().map(|service| service.parse().unwrap()).collect(),
        rule: rule.parse().unwrap(),
        reach,
    };
    let open = |until| Reach::Open(vec![OpenFrom { machine: "alice-desktop".parse().unwrap(), until: minutes(until) }]);
    vec![
        resource("payroll-app", &["tcp/443"], "payroll managers use payroll", open(9)),
        resource("wiki", &["tcp/80", "tcp/443"], "<script>document.title='owned'</script>", open(7)),
        resource(
            "git",
            &["tcp/22"],
            "engineers use git",
            Reach::Closed {
                reason: "your sign-in is 3 h old; this needs one within 15 min".into(),
                fix: Some("On the machine, run postern step-up git".into()),
            },
        ),
        resource("build-farm", &["tcp/8000-8100", "udp/6000", "icmp"], "engineers build", Reach::Open(vec![])),
    ]
}

impl Doors for Memory {
    fn pending_join<'a>(&'a self, code: UserCode, _who: &'a SignedIn) -> Answer<'a, PendingJoin> {
        Box::pin(async move { self.joins.lock().unwrap().get(&code).cloned().ok_or(DoorsError::NotFound) })
    }

    fn confirm_join<'a>(
        &'a self,
        code: UserCode,
        shown: DevicePublicKey,
        _who: &'a SignedIn,
    ) -> Answer<'a, JoinedMachine> {
        Box::pin(async move {
            let join = self.joins.lock().unwrap().get(&code).cloned().ok_or(DoorsError::NotFound)?;
            if join.device_key != shown {
                return Err(DoorsError::Changed);
            }
            let join = self.take(code)?;
            let id = device(join.device_key.as_bytes()[0]);
            self.devices.lock().unwrap().push(PortalDevice {
                device: id,
                machine: join.machine.clone(),
                kind: DeviceKind::Agent,
                fingerprint: join.device_key.fingerprint(),
                addresses: vec![],
                presence: Presence::Connected,
                session: Some(PortalSession {
                    session: SessionId::from_bytes([7; 16]),
                    began: now(),
                    until: minutes(720),
                }),
            });
            Ok(JoinedMachine { device: id, machine: join.machine, until: minutes(720) })
        })
    }

    fn refuse_join<'a>(&'a self, code: UserCode, _who: &'a SignedIn) -> Answer<'a, ()> {
        Box::pin(async move { self.take(code).map(drop) })
    }

    fn portal<'a>(&'a self, who: &'a SignedIn) -> Answer<'a, Portal> {
        Box::pin(async move {
            if !is_staff(who) {
                return Ok(Portal::default());
            }
            let devices = self.devices.lock().unwrap().clone();
            Ok(Portal {
                resources: resources(),
                devices,
                stock_clients: StockClients::Permitted,
                groups: GroupsKnown::Enough,
            })
        })
    }

    fn end_session<'a>(&'a self, session: SessionId, _who: &'a SignedIn) -> Answer<'a, ()> {
        Box::pin(async move {
            let mut devices = self.devices.lock().unwrap();
            let holds = |device: &PortalDevice| device.session.is_some_and(|open| open.session == session);
            devices.iter_mut().find(|device| holds(device)).ok_or(DoorsError::NotFound)?.session = None;
            Ok(())
        })
    }

    fn remove_device<'a>(&'a self, device: DeviceId, _who: &'a SignedIn) -> Answer<'a, ()> {
        Box::pin(async move {
            self.devices.lock().unwrap().retain(|known| known.device != device);
            Ok(())
        })
    }

    fn stock_client<'a>(&'a self, asked: StockRequest, who: &'a SignedIn) -> Answer<'a, StockConfiguration> {
        Box::pin(async move {
            if !is_staff(who) {
                return Err(DoorsError::NotPermitted("No rule for you permits stock WireGuard clients.".into()));
            }
            let peer = |name: &str, byte: u8, resource: &str| StockPeer {
                machine: name.parse().unwrap(),
                public_key: WireGuardPublicKey::from_bytes([byte; 32]),
                preshared_key: PresharedKey::from_bytes([byte + 1; 32]),
                endpoint: Some(SocketAddr::from(([203, 0, 113, byte], 51_820))),
                allowed_ips: ["fd7a:115c:a1e0::3/128", "100.64.0.3/32"].map(|p| p.parse().unwrap()).into(),
                resources: vec![resource.parse().unwrap()],
            };
            Ok(StockConfiguration {
                device: device(99),
                machine: asked.name,
                public_key: asked.public_key,
                addresses: ["fd7a:115c:a1e0::63", "100.64.0.99"].map(|a| a.parse().unwrap()).into(),
                mtu: 1_280,
                peers: vec![peer("payroll-1", 11, "payroll-app"), peer("wiki-1", 13, "wiki")],
                until: minutes(480),
            })
        })
    }

    fn step_up<'a>(&'a self, _token: &'a Token, who: &'a SignedIn) -> Answer<'a, StepUpPage> {
        Box::pin(async move {
            let strong = who.amr().iter().any(|method| method == "otp" || method == "mfa");
            Ok(StepUpPage {
                machine: "alice-laptop".parse().unwrap(),
                address: Some("203.0.113.7".parse().unwrap()),
                resource: "git".parse().unwrap(),
                services: vec!["tcp/22".parse().unwrap()],
                rule: "engineers use git".parse().unwrap(),
                demand: Demand { mfa_within: Some(Duration::from_secs(900)), ..Demand::default() },
                asked_at: now(),
                expires: minutes(10),
                sufficient: if strong { Sufficient::Yes } else { Sufficient::No },
            })
        })
    }

    fn confirm_step_up<'a>(&'a self, _token: &'a Token, _who: &'a SignedIn) -> Answer<'a, SteppedUp> {
        Box::pin(async { Ok(SteppedUp { machine: "alice-laptop".parse().unwrap(), resource: "git".parse().unwrap() }) })
    }

    fn requests<'a>(&'a self, _who: &'a SignedIn) -> Answer<'a, Vec<postern_controller::stream::RequestView>> {
        Box::pin(async { Ok(vec![]) })
    }

    fn decide_request<'a>(
        &'a self,
        _request: postern_common::id::RequestId,
        _decision: postern_controller::stream::Decision,
        _reason: String,
        _who: &'a SignedIn,
    ) -> Answer<'a, ()> {
        Box::pin(async { Err(DoorsError::NotFound) })
    }

    fn signed_out<'a>(&'a self, _who: &'a SignedIn) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn credentials_set<'a>(&'a self, _issuer: &'a str, _subject: &'a str) -> Answer<'a, usize> {
        Box::pin(async { Ok(0) })
    }

    fn passkey_copied<'a>(
        &'a self,
        _issuer: &'a str,
        _copied: &'a CopiedPasskey,
        _from: std::net::IpAddr,
    ) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn provider_ended<'a>(&'a self, _: &'a Ends) -> Answer<'a, usize> {
        Box::pin(async { Ok(0) })
    }

    fn signal_refused(&self, _: &'static str, _: &'static str, _: std::net::IpAddr) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn logout_not_of_now(&self, _: std::net::IpAddr) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn signed_out_at_provider<'a>(&'a self, _: &'a LogoutToken) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn admit<'a>(&'a self, _: &'a SignedIn) -> Answer<'a, Option<TurnedAway>> {
        Box::pin(async { Ok(None) })
    }

    fn audit(&self, event: IdentityEvent) -> Answer<'_, ()> {
        Box::pin(async move {
            println!("{}", serde_json::to_string(&event).unwrap());
            Ok(())
        })
    }
}

fn argument(name: &str) -> Option<String> {
    std::env::args().skip_while(|argument| argument != name).nth(1)
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(argument("--listen").unwrap_or("127.0.0.1:0".into())).await?;
    // Passkeys need a name: `--name localhost`.
    let at = listener.local_addr()?;
    let host = argument("--name").unwrap_or_else(|| at.ip().to_string());
    let public_url: url::Url = format!("http://{host}:{}/", at.port()).parse()?;
    let options = sqlx::sqlite::SqliteConnectOptions::new().in_memory(true).foreign_keys(true);
    let pool = sqlx::sqlite::SqlitePoolOptions::new()
        .max_connections(1)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect_with(options)
        .await?;
    sqlx::raw_sql(include_str!("../migrations/0002_identity.sql")).execute(&pool).await?;
    sqlx::raw_sql(include_str!("../migrations/0006_provider.sql")).execute(&pool).await?;
    sqlx::raw_sql(include_str!("../migrations/0009_passkeys.sql")).execute(&pool).await?;
    sqlx::raw_sql(include_str!("../migrations/0018_credentials.sql")).execute(&pool).await?;

    let origin = public_url.origin().ascii_serialization();
    let accounts = Arc::new(Accounts::new(pool.clone(), &origin, SealingKey::from_bytes([7; 32])));
    for (login, groups) in [
        ("alice@corp.example", &["staff"][..]),
        ("bob@corp.example", &[]),
        ("erin@corp.example", &[]),
        ("frank@corp.example", &[]),
        ("carol@corp.example", &["staff"]),
    ] {
        let groups: BTreeSet<String> = groups.iter().map(|group| (*group).to_owned()).collect();
        accounts.add(NewAccount { login: login.into(), groups, role: AccountRole::Person }, now()).await?;
        accounts.set_password(login, PASSWORD, now()).await?;
    }
    let new = NewAccount { login: "dave@corp.example".into(), groups: BTreeSet::new(), role: AccountRole::Person };
    accounts.add(new, now()).await?;
    let link = accounts.password_link("dave@corp.example", Duration::from_secs(3_600), now()).await?;

    let provider = match argument("--issuer") {
        Some(issuer) => {
            let mut settings = ProviderSettings::new(issuer.parse()?, argument("--client-id").unwrap_or_default());
            settings.client_secret = argument("--client-secret").map(Into::into);
            settings.label = "Corp SSO".into();
            settings.scopes = Some(["profile", "email", "groups"].map(String::from).into());
            Some(Provider::new(settings, &public_url)?)
        }
        None => None,
    };
    let router = web::router(Arc::new(Web {
        public_url: public_url.clone(),
        join_link: format!("{origin}#k=4f9a"),
        ways: SignInWays { provider, local: LocalAccounts::SecondFactorOptional },
        accounts,
        sessions: WebSessions::new(pool.clone(), SessionLimits::default()),
        vouchers: Vouchers::new(pool, SealingKey::from_bytes([7; 32])),
        events: Receivers::default(),
        doors: Arc::new(Memory::new()),
        clock: system_clock(),
    }));
    let started =
        serde_json::json!({ "url": origin, "password": PASSWORD, "link": format!("/password/{}", link.expose()) });
    println!("{started}");
    axum::serve(listener, router.into_make_service_with_connect_info::<SocketAddr>()).await?;
    Ok(())
}
