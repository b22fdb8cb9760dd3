//! Starting and stopping.

mod error;

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use axum::{
    Extension, Router,
    extract::{ConnectInfo, ws::WebSocketUpgrade},
    routing::get,
};
use postern_common::{
    diagnostics::{self, Diagnostics},
    key::ControllerSigningKey,
    policy::Policy,
    protocol::{MAX_NODE_MESSAGE_BYTES, STREAM_PATH},
    time::WallTime,
};
use tokio::{
    net::{TcpListener, UdpSocket},
    sync::{mpsc, watch},
    task::{JoinHandle, JoinSet},
};
use tokio_rustls::TlsAcceptor;
use zeroize::Zeroizing;

use super::{
    actor::{Actor, ActorError, Handle},
    clock,
    files::{self, FileError},
    listener::{self, ConnectionPermit, Limits},
    node_stream, tls,
};
use crate::{
    admin::{self, answer::join_link},
    audit::{AuditError, AuditLog, Head},
    config::Config,
    identity::{
        local::{AccountError, AccountStatus, Accounts, SealingKey},
        machine::{self, Issuers},
        oidc::{Provider, ProviderSettings},
        sessions::{SessionLimits, WebSessions},
    },
    signals::{
        alerts::webhook::Courier,
        events::{self, CannotReceive, Receivers},
        place::{self, MapError, Maps},
        provider::{self, Vouchers},
        scim,
    },
    store::{SqliteStore, Store, StoreError},
    stream::{Core, PersonNow},
    web::{self, LocalAccounts, SignInWays, Web},
};

pub use error::ServeError;

/// The size of each stream's read buffer, in bytes: nodes say little, and there are many.
const STREAM_READ_BUFFER: usize = 4 << 10;
/// How often certificates are looked at.
const CERTIFICATE_CHECK: Duration = Duration::from_secs(3_600);
/// How often sign-ins that are over are swept away, and with them the stock clients that they let in.
const SWEEP: Duration = Duration::from_secs(60);
/// The file in `key_dir` that opens refresh tokens and second factors in the database.
const SEALING_KEY: &str = "seal.key";

/// A controller that serves.
#[derive(Debug)]
pub struct Running {
    /// Asks the core.
    pub handle: Handle,
    /// The addresses on which pages and streams are served, with the ports that the system chose where 0 was asked for.
    pub listening: Vec<SocketAddr>,
    /// Where probes arrive.
    pub probes: SocketAddr,
    /// What a join link pins.
    pub pin: Option<[u8; 32]>,
    stop: watch::Sender<bool>,
    actor: JoinHandle<Result<(), ActorError>>,
    tasks: JoinSet<()>,
}

impl Running {
    /// Waits until the actor ends by itself, which it does only when something cannot be made durable.
    ///
    /// # Errors
    /// [`ActorError`].
    pub async fn failed(&mut self) -> Result<(), ActorError> {
        (&mut self.actor).await.unwrap_or(Ok(()))
    }

    /// Stops: tells the nodes, lets open requests finish, closes.
    pub async fn stop(mut self) {
        self.handle.stop().await;
        self.stop.send_replace(true);
        drop(
            tokio::time::timeout(Duration::from_secs(8), async { while self.tasks.join_next().await.is_some() {} })
                .await,
        );
        self.tasks.abort_all();
        // The state directory is free for another start only when the actor has let go of the store.
        if !self.actor.is_finished() && tokio::time::timeout(Duration::from_secs(8), &mut self.actor).await.is_err() {
            self.actor.abort();
        }
    }
}

/// What [`start`] does about a policy document that is not the one in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AtStart {
    /// The policy in force stays; the document counts only if none was ever applied.
    KeepPolicy,
    /// The document is applied.
    ApplyPolicy,
}

/// Starts a controller.
///
/// # Errors
/// [`ServeError`]: what is wrong, where, and what to do. Nothing was served then.
pub async fn start(config: Config, at_start: AtStart) -> Result<Running, ServeError> {
    let now = clock::now();
    let signing = read_signing_key(&config)?;
    let certificates = tls::Certificates::open(config.tls.clone(), now.wall)?;
    let mut sockets = Vec::new();
    for address in &config.listen {
        sockets.push(bound("TCP", *address, "listen", &config, listener::bind_tcp(*address))?);
    }
    let listening: Vec<_> = sockets.iter().filter_map(|socket| socket.local_addr().ok()).collect();
    let probes = bind_probes(&config, &listening)?;
    let probe_address = probes.local_addr().unwrap_or(config.probe_listen);

    let database = config.database();
    let mut store = SqliteStore::open(&database, now.wall.as_millis().unsigned_abs()).await?;
    let loaded = store.load().await?;
    let (head, outbox) = store.audit_state().await?;
    let (audit, opened) = AuditLog::open(&config.audit_dir(), config.audit_file_size, head, &outbox)?;
    if let Some(end) = opened.broken.filter(Head::is_known).filter(|end| end.seq > head.seq) {
        return Err(ServeError::OlderDatabase {
            database,
            ends: head.seq,
            audit: config.audit_dir(),
            goes_on: end.seq,
        });
    }

    let served = config.core.scim.as_ref().map(|scim| scim.issuer.as_str());
    let idle = loaded.scim_users.iter().filter(|user| Some(user.issuer.as_str()) != served).count();
    if idle > 0 {
        tracing::warn!(
            people = idle,
            "people are provisioned by a provider that [oidc.scim] does not name: whether they are active counts for nothing"
        );
    }
    let mut core_config = config.core.clone();
    core_config.probe_port = Some(probe_address.port());
    let meta = loaded.meta.clone();
    let (policy, apply) = choose_policy(&config, &meta, at_start)?;
    let random = Box::new(|bytes: &mut [u8]| getrandom::fill(bytes).expect("the kernel's random source answers"));
    let maps = Maps::read(&config.place)?;
    let seen = maps.seen;
    let core = Core::new(core_config, signing, policy, Arc::new(maps), loaded, random, now);
    let (tokens, questions) = mpsc::channel(machine::WAITING);
    let (actor, handle) = Actor::new(core, meta, store, audit, tokens);
    let actor = tokio::spawn(actor.run());

    // What the start itself has to record is durable before anything is served.
    let asked = handle.clone();
    let begun = asked.call(move |turn, now| {
        if let Some(partial) = &opened.partial {
            turn.record_administration("postern-controller", "audit log repaired: a partial line was cut off", partial);
        }
        if let Some(broken) = &opened.broken {
            let detail = format!("the file ended with record {}, hash {}", broken.seq, hex::encode(broken.hash));
            turn.record_administration(
                "postern-controller",
                "AUDIT LOG DOES NOT CONTINUE THE DATABASE'S HEAD",
                &detail,
            );
        }
        if let Some((policy, text)) = apply {
            turn.core.apply_policy(policy, text, "start", now);
        }
    });
    let mut running = Running {
        handle,
        listening,
        probes: probe_address,
        pin: certificates.current().pin,
        stop: watch::Sender::new(false),
        actor,
        tasks: JoinSet::new(),
    };
    if begun.await.is_err() {
        running.failed().await?;
    }
    let issuers = Issuers::new(&config.machine_issuers);
    let issuers =
        issuers.map_err(|error| ServeError::MachineIssuer { file: config.file.clone(), why: error.to_string() })?;
    let stop = running.stop.subscribe();
    running.tasks.spawn(machine::answer(Arc::new(issuers), questions, running.handle.clone(), stop));
    serve_all(&mut running, config, seen, certificates, sockets, probes, &database).await?;
    Ok(running)
}

async fn serve_all(
    running: &mut Running,
    config: Config,
    seen: place::Seen,
    certificates: Arc<tls::Certificates>,
    sockets: Vec<TcpListener>,
    probes: UdpSocket,
    database: &std::path::Path,
) -> Result<(), ServeError> {
    let pool = SqliteStore::pool(database).await?;
    let public_url = url::Url::parse(&config.url).expect("the configuration's URL was parsed when it was checked");
    let had_no_key = !config.key_dir.join(SEALING_KEY).exists();
    let accounts = Arc::new(Accounts::new(pool.clone(), config.url.clone(), read_sealing_key(&config)?));
    take_over_accounts(&accounts, &running.handle).await?;
    let limits = SessionLimits { absolute: config.core.session_length, ..SessionLimits::default() };
    let sessions = WebSessions::new(pool.clone(), limits);
    let vouchers = Vouchers::new(pool, read_sealing_key(&config)?);
    if had_no_key {
        tell_what_is_sealed(&vouchers).await;
    }
    let provider = open_provider(&config, &public_url)?;
    if let (Some(provider), Some(oidc)) = (&provider, &config.oidc) {
        let checks = provider::Settings { interval: oidc.check_interval.get(), grace: oidc.check_grace.get() };
        let (handle, stop) = (running.handle.clone(), running.stop.subscribe());
        let watch = provider::watch(Arc::clone(provider), vouchers.clone(), sessions.clone(), handle, checks, stop);
        running.tasks.spawn(watch);
    }
    let events = receive_events(running, &config, &sessions, &vouchers).await?;
    let local = if config.local_accounts { LocalAccounts::SecondFactorOptional } else { LocalAccounts::Off };
    let pages = Arc::new(Web {
        public_url,
        join_link: join_link(&config.url, certificates.current().pin),
        ways: SignInWays { provider, local },
        accounts: Arc::clone(&accounts),
        sessions: sessions.clone(),
        vouchers: vouchers.clone(),
        events,
        doors: Arc::new(running.handle.clone()),
        clock: Arc::new(|| clock::now().wall),
    });
    let handle = running.handle.clone();
    let stream = get(
        move |upgrade: WebSocketUpgrade,
              ConnectInfo(remote): ConnectInfo<SocketAddr>,
              Extension(permit): Extension<ConnectionPermit>| async move {
            upgrade
                .read_buffer_size(STREAM_READ_BUFFER)
                .max_message_size(MAX_NODE_MESSAGE_BYTES)
                .max_frame_size(MAX_NODE_MESSAGE_BYTES)
                .on_upgrade(move |socket| node_stream::serve(socket, remote, handle, permit))
        },
    );
    let mut router: Router = web::router(pages).route(STREAM_PATH, stream);
    let provider_of_people = config.core.scim.as_ref().map(|scim| scim.issuer.clone());
    if provider_of_people.is_some() {
        let clock = Arc::new(|| clock::now().wall);
        let service = scim::http::Service::new(running.handle.clone(), sessions.clone(), clock, &config.url);
        router = router.merge(scim::http::router(service));
    }
    let acceptor = TlsAcceptor::from(certificates.server_config()?);
    let limits = Limits::new(config.connections, config.connections_per_address);
    let proxies = Arc::new(config.trusted_proxies.clone());
    for socket in sockets {
        let (acceptor, router) = (acceptor.clone(), router.clone());
        let (limits, proxies) = (Arc::clone(&limits), Arc::clone(&proxies));
        running.tasks.spawn(listener::serve(socket, acceptor, router, limits, proxies, running.stop.subscribe()));
    }
    running.tasks.spawn(place::keep_up(config.place.clone(), seen, running.handle.clone(), running.stop.subscribe()));
    running.tasks.spawn(receive_probes(probes, running.handle.clone(), running.stop.subscribe()));
    running.tasks.spawn(keep_up(
        certificates.clone(),
        sessions.clone(),
        running.handle.clone(),
        provider_of_people,
        running.stop.subscribe(),
    ));
    let spool = SqliteStore::pool(database).await?;
    let courier = Courier::new(spool, config.alerts.clone());
    let courier = courier.map_err(|why| ServeError::Alerts { file: config.file.clone(), why })?;
    running.tasks.spawn(courier.run(running.stop.subscribe()));
    let office = admin::server::Office {
        changing: tokio::sync::Mutex::default(),
        handle: running.handle.clone(),
        accounts,
        sessions,
        certificates,
        limits,
        config: Arc::new(config),
        started: clock::now(),
    };
    let socket = admin::server::bind(&office.config)?;
    running.tasks.spawn(admin::server::serve(socket, Arc::new(office), running.stop.subscribe()));
    Ok(())
}

/// Opens the streams of security events, and begins to poll those that are polled.
async fn receive_events(
    running: &mut Running,
    config: &Config,
    sessions: &WebSessions,
    vouchers: &Vouchers,
) -> Result<Receivers, ServeError> {
    let groups_claim = config.oidc.as_ref().map_or_else(|| "groups".into(), |oidc| oidc.groups_claim.clone());
    let (handle, sessions, vouchers) = (running.handle.clone(), sessions.clone(), vouchers.clone());
    let around = events::Around { handle, sessions, vouchers, groups_claim };
    let opened = Receivers::open(&config.events, &around).await;
    let receivers = opened.map_err(|why| ServeError::Events { file: config.file.clone(), why })?;
    for receiver in receivers.all() {
        running.tasks.spawn(events::poll(Arc::clone(receiver), running.stop.subscribe()));
        running.tasks.spawn(events::verify_now_and_then(Arc::clone(receiver), running.stop.subscribe()));
    }
    Ok(receivers)
}

/// Tells the core what the accounts say, before anything is served: they are written first when an administrator changes
/// them, and a crash may have come before the core was told.
async fn take_over_accounts(accounts: &Accounts, handle: &Handle) -> Result<(), ServeError> {
    let people = accounts.list().await?.into_iter().map(|account| {
        let disabled = account.status == AccountStatus::Disabled;
        (account.id, PersonNow { groups: account.groups, disabled, secured: account.secured })
    });
    let (people, issuer) = (people.collect(), accounts.issuer().to_owned());
    let told = handle.call(move |turn, now| turn.core.reconcile_people(&issuer, &people, "start", now)).await;
    if told.is_err() {
        tracing::error!("the core has ended: it says why itself");
    }
    Ok(())
}

fn bound<T>(
    protocol: &'static str,
    address: SocketAddr,
    key: &'static str,
    config: &Config,
    result: io::Result<T>,
) -> Result<T, ServeError> {
    result.map_err(|cause| match cause.kind() {
        io::ErrorKind::AddrInUse => {
            ServeError::Occupied { protocol, address, port: address.port(), key, file: config.file.clone() }
        }
        _ => ServeError::Bind { protocol, address, cause },
    })
}

/// Binds the port of probes: the first TCP port's number if none is written.
fn bind_probes(config: &Config, listening: &[SocketAddr]) -> Result<UdpSocket, ServeError> {
    let mut address = config.probe_listen;
    if address.port() == 0
        && let Some(first) = listening.first()
    {
        address.set_port(first.port());
    }
    let socket = || {
        use socket2::{Domain, Socket, Type};
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(address.ip() != IpAddr::V6(Ipv6Addr::UNSPECIFIED))?;
        }
        socket.bind(&address.into())?;
        socket.set_nonblocking(true)?;
        UdpSocket::from_std(socket.into())
    };
    bound("UDP", address, "probe_listen", config, socket())
}

async fn receive_probes(socket: UdpSocket, handle: Handle, mut stop: watch::Receiver<bool>) {
    let mut datagram = [0; postern_common::probe::PROBE_BYTES + 1];
    loop {
        let received = tokio::select! {
            received = socket.recv_from(&mut datagram) => received,
            () = listener::told(&mut stop) => return,
        };
        match received {
            Ok((length, from)) if length == postern_common::probe::PROBE_BYTES => {
                handle.probe(&datagram[..length], SocketAddr::new(from.ip().to_canonical(), from.port()));
            }
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, "receiving probes");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Renews the certificate and sweeps what is over.
async fn keep_up(
    certificates: Arc<tls::Certificates>,
    sessions: WebSessions,
    handle: Handle,
    provider_of_people: Option<String>,
    mut stop: watch::Receiver<bool>,
) {
    let mut certificate = tokio::time::interval(CERTIFICATE_CHECK);
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            _ = certificate.tick() => if let Err(error) = certificates.reload(clock::now().wall) {
                tracing::error!(%error, "the certificate cannot be renewed; the present one stays");
            },
            _ = sweep.tick() => {
                let now = clock::now().wall;
                if let Err(error) = sessions.sweep(now).await {
                    tracing::warn!(%error, "old sign-ins cannot be swept away");
                }
                end_with_browsers(&sessions, &handle, now).await;
                if let Some(issuer) = &provider_of_people {
                    scim::http::end_turned_away(&sessions, &handle, issuer).await;
                }
            }
            () = listener::told(&mut stop) => return,
        }
    }
}

/// Ends the browsers' login sessions that let in a machine which is stopped by now, and the stock clients whose browser's login session
/// is over. The core is asked first: a client that is let in meanwhile is not among those that are looked at.
pub(super) async fn end_with_browsers(sessions: &WebSessions, handle: &Handle, now: WallTime) {
    let Ok(stopped) = handle.call(|turn, now| turn.core.browsers_of_stopped(now)).await else { return };
    for (browser, since) in stopped {
        if let Err(error) = sessions.end_if_proven_until(browser, since).await {
            tracing::warn!(%error, "a sign-in that let in a stopped machine cannot be ended");
        }
    }
    let Ok(in_use) = handle.call(|turn, _| turn.core.web_sessions_in_use()).await else { return };
    match sessions.over(in_use, now).await {
        Ok(over) if over.is_empty() => {}
        Ok(over) => drop(handle.call(move |turn, now| turn.core.web_sessions_over(&over, now)).await),
        Err(error) => tracing::warn!(%error, "cannot tell which sign-ins are over"),
    }
}

/// Reads the key that signs what nodes enforce.
///
/// # Errors
/// [`ServeError`] if it is missing, can be read by others, or is something else.
fn read_signing_key(config: &Config) -> Result<ControllerSigningKey, ServeError> {
    let path = config.signing_key();
    let text = match files::read_secret(&path) {
        Err(FileError::Missing(key)) => return Err(ServeError::NoSigningKey { key, file: config.file.clone() }),
        other => Zeroizing::new(other?),
    };
    let mut seed = Zeroizing::new([0u8; 32]);
    hex::decode_to_slice(text.trim(), seed.as_mut_slice()).map_err(|_| ServeError::SigningKey(path))?;
    Ok(ControllerSigningKey::from_seed(&seed))
}

/// Says so if a new sealing key was made although something is sealed under another one.
async fn tell_what_is_sealed(vouchers: &Vouchers) {
    match vouchers.count().await {
        Ok(0) => {}
        Ok(sessions) => tracing::error!(
            sessions,
            "{SEALING_KEY} was missing and a new one was made, but refresh tokens are sealed under the one of before: put it back, or \
             who signed in with them must sign in anew after `check_grace`, and second factors that are codes must be set up anew"
        ),
        Err(error) => tracing::warn!(%error, "cannot tell what is sealed"),
    }
}

fn read_sealing_key(config: &Config) -> Result<SealingKey, ServeError> {
    let path = config.key_dir.join(SEALING_KEY);
    let text = match files::read_secret(&path) {
        Err(FileError::Missing(_)) => {
            let mut fresh = Zeroizing::new([0u8; 32]);
            getrandom::fill(fresh.as_mut_slice()).expect("the kernel's random source answers");
            let text = hex::encode(fresh.as_slice());
            files::write_new(&path, text.as_bytes(), files::SECRET)?;
            text
        }
        other => other?,
    };
    let text = Zeroizing::new(text);
    let mut key = [0u8; 32];
    hex::decode_to_slice(text.trim(), &mut key).map_err(|_| ServeError::SigningKey(path))?;
    Ok(SealingKey::from_bytes(key))
}

fn open_provider(config: &Config, public_url: &url::Url) -> Result<Option<Arc<Provider>>, ServeError> {
    let Some(oidc) = &config.oidc else { return Ok(None) };
    let wrong = |why: String| ServeError::Provider { file: config.file.clone(), why };
    let issuer = url::Url::parse(&oidc.issuer).map_err(|error| wrong(format!("issuer: {error}")))?;
    let mut settings = ProviderSettings::new(issuer, oidc.client_id.clone());
    settings.label = oidc.name.clone();
    settings.groups_claim = oidc.groups_claim.clone();
    settings.scopes.clone_from(&oidc.scopes);
    settings.acr_values = oidc.acr_values.clone();
    settings.provisioned_claim = oidc.scim.as_ref().map(|scim| scim.claim.clone());
    settings.ca_file = oidc.ca_file.clone();
    if let Some(path) = &oidc.client_secret_file {
        settings.client_secret = Some(Zeroizing::new(files::read_secret(path)?.trim().to_owned()));
    }
    Provider::new(settings, public_url).map(Some).map_err(|error| wrong(error.to_string()))
}

type Chosen = (Arc<Policy>, Option<(Arc<Policy>, String)>);

/// Chooses the policy with which to start: the one in force, or the document if none was ever applied. DESIGN: a document
/// takes effect by `policy apply` alone, so a half-written file does not become the policy by a reboot.
fn choose_policy(config: &Config, meta: &crate::records::Meta, at_start: AtStart) -> Result<Chosen, ServeError> {
    if meta.policy_revision == 0 || at_start == AtStart::ApplyPolicy {
        let text = files::read(&config.policy)?;
        let policy = Arc::new(parse_policy(&config.policy, &text).map_err(ServeError::Policy)?);
        let unchanged = meta.policy_revision > 0 && text == meta.policy_text;
        return Ok((Arc::clone(&policy), (!unchanged).then_some((policy, text))));
    }
    let kept = parse_policy(&config.policy, &meta.policy_text).map_err(|error| ServeError::KeptPolicy {
        revision: meta.policy_revision,
        error,
        file: config.policy.clone(),
    })?;
    match files::read(&config.policy) {
        Ok(text) if text == meta.policy_text => {}
        Ok(_) | Err(_) => tracing::warn!(
            file = %config.policy.display(),
            revision = meta.policy_revision,
            "the policy document differs from the policy in force, which stays: `policy apply` makes it count"
        ),
    }
    Ok((Arc::new(kept), None))
}

/// Reads a policy document under the name by which explanations cite it: `policy.toml:41`.
///
/// # Errors
/// Every mistake.
pub fn parse_policy(file: &std::path::Path, text: &str) -> Result<Policy, Diagnostics> {
    let name = file.file_name().map_or_else(|| file.display().to_string(), |name| name.to_string_lossy().into_owned());
    let text = diagnostics::decode(&name, text.as_bytes())?;
    Policy::parse(&name, text)
}
