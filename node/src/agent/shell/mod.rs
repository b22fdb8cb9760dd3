//! The agent's shell: one current-thread runtime around the sans-IO core.
//!
//! ```text
//! link (TLS, WebSocket) --.                      .--> link, worker (packets), writer (state files)
//! local socket ------------|--> select --> Core --|--> host (guard, addresses, names)
//! worker, writer, kernel --'                      '--> clients, probes, systemd
//! ```
//!
//! | file | holds |
//! | --- | --- |
//! | `mod.rs` | the loop, and how each effect of the core is done |
//! | `requests` | what each local request does |
//! | `report` | what `status` and the others show |
//! | [`link`], [`dial`], [`tls`] | the stream |
//! | [`local`] | the local socket |
//! | [`plane`], [`host`] | the packet worker and the machine's network, as the agent keeps them |
//! | [`records`] | the spool of flow records |
//!
//! The loop waits for nothing that can hang: connections, disks and clients have tasks, threads and bounded queues of their
//! own. When the process ends by a signal the doors stay as they are or closed: guard, blackholes and the interface remain,
//! and the next process resumes what is saved within this boot.

pub mod dial;
pub mod host;
pub mod link;
pub mod local;
pub mod plane;
pub mod records;
mod report;
mod requests;
pub mod tls;

use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use postern_common::{flow_record::FlowRecord, time::Monotonic};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, mpsc},
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{error, info, warn};

use self::{
    host::{Host, Trouble, chain},
    link::{Happened, Link, LinkEvent},
    local::{FromClient, LocalSocket},
    plane::Plane,
    records::Spool,
    requests::Waiting,
};
use super::{
    api::Reply,
    core::{Core, Effect, Entropy, Notice, ProbeOrder, Retry, Settings, identity::Wanted},
    state::{
        self, State,
        writer::{Done, Job, Writer},
    },
};
use crate::{
    config::NodeConfig,
    host::net::AddressChanges,
    io::{
        clock::{Clock, SystemClock},
        worker::WorkerEvent,
    },
};

/// Records that a follower may lag behind before it misses some.
const FOLLOWED_RECORDS: usize = 512;
const TICK: Duration = Duration::from_secs(5);
/// Probes follow each other this quickly at first, in case one is lost, ...
const PROBE_BURST: Duration = Duration::from_secs(1);
/// ... and then this slowly: a NAT's mapping lives 30 s at least nearly everywhere.
const PROBE_INTERVAL: Duration = Duration::from_secs(25);
const PROBES_IN_BURST: u64 = 3;

/// Where things are, and who started the agent.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// `node.toml`, if it was named.
    pub config: Option<PathBuf>,
    /// The state directory.
    pub state: PathBuf,
    /// The runtime directory.
    pub runtime: PathBuf,
    /// The local socket.
    pub socket: PathBuf,
    /// Whether `up` started this process: it then ends with `down`.
    pub detached: bool,
}

struct SystemEntropy;

impl Entropy for SystemEntropy {
    fn fill(&mut self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("the operating system has random bytes once it has started");
    }
}

/// Whether the loop goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Course {
    On,
    /// `down` was asked of a detached agent.
    Finished,
}

struct Agent {
    options: RunOptions,
    config: NodeConfig,
    clock: Arc<dyn Clock>,
    core: Core,
    writer: Writer,
    host: Host,
    plane: Option<Plane>,
    link: Option<Link>,
    link_number: u64,
    link_events: mpsc::Sender<LinkEvent>,
    /// The controller's address and this machine's towards it, on the present stream.
    path: Option<(SocketAddr, SocketAddr)>,
    probe: Option<Probing>,
    spool: Option<Spool>,
    followers: broadcast::Sender<Arc<FlowRecord>>,
    waiting: Waiting,
    denied: VecDeque<u64>,
    endpoints: Vec<SocketAddr>,
    course: Course,
}

struct Probing {
    order: ProbeOrder,
    sequence: u64,
    next: Instant,
}

/// Runs the agent until a signal, or until `down` if it is detached.
///
/// # Errors
/// What keeps it from starting, in words for the person at the machine.
pub async fn run(options: RunOptions, config: NodeConfig) -> Result<(), anyhow::Error> {
    let state = State::open(&options.state, &options.runtime)?;
    let found = state.load()?;
    for ignored in &found.ignored {
        warn!(reason = %ignored, "saved grants count for nothing; closed until the controller has spoken");
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let settings = Settings {
        rotation: config.key_rotation.get(),
        boot: state::boot_id()?,
        listen_port: config.listen_port,
        version: env!("CARGO_PKG_VERSION").into(),
    };
    let entropy = Box::new(SystemEntropy);
    let core = match found.identity {
        Some(identity) => Core::restore(settings, entropy, identity),
        None => Core::new(settings, entropy),
    };
    let (done, mut persisted) = mpsc::unbounded_channel();
    let writer = Writer::start(state, done)?;
    let (link_events, mut from_link) = mpsc::channel(link::INCOMING);
    let (to_loop, mut from_clients) = mpsc::channel(local::MAX_CLIENTS);
    let socket = LocalSocket::listen(&options.socket, config.group.clone(), to_loop)
        .with_context(|| format!("cannot listen at {}", options.socket.display()))?;
    let names_clock = {
        let clock = clock.clone();
        Arc::new(move || clock.now())
    };
    let mut agent = Agent {
        host: Host::open(options.state.clone(), names_clock)?,
        spool: None,
        plane: None,
        link: None,
        link_number: 0,
        link_events,
        path: None,
        probe: None,
        followers: broadcast::channel(FOLLOWED_RECORDS).0,
        waiting: Waiting::default(),
        denied: VecDeque::new(),
        endpoints: vec![],
        course: Course::On,
        core,
        writer,
        options,
        config,
        clock,
    };
    agent.open_spool();
    agent.start(found.saved, found.mark).await?;

    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut reload = signal(SignalKind::hangup())?;
    let mut addresses = AddressChanges::watch()?;
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let watchdog = watchdog_interval();
    let mut alive = interval(watchdog.unwrap_or(Duration::from_secs(3600)));
    alive.set_missed_tick_behavior(MissedTickBehavior::Delay);
    notify_manager(&[sd_notify::NotifyState::Ready]);
    let mut shown = None;
    while agent.course == Course::On {
        agent.perform_all().await;
        if agent.course != Course::On {
            break;
        }
        let phase = agent.core.phase();
        if shown.as_ref() != Some(&phase) {
            notify_manager(&[sd_notify::NotifyState::Status(&report::phase_line(&phase))]);
            info!(phase = %report::phase_line(&phase), "the node's phase");
            shown = Some(phase);
        }
        let wake = agent.wake_at();
        tokio::select! {
            event = from_link.recv() => if let Some(event) = event { agent.from_link(event) },
            client = from_clients.recv() => if let Some(client) = client { agent.from_client(client).await },
            done = persisted.recv() => if let Some(done) = done { agent.persisted(done) },
            event = next_event(&mut agent.plane) => agent.from_worker(event).await,
            watching = addresses.changed() => {
                if !watching {
                    addresses = AddressChanges::watch()?;
                }
                agent.look_for_endpoints().await;
            }
            () = sleep_until(wake) => agent.due().await,
            _ = tick.tick() => agent.tick().await,
            _ = alive.tick(), if watchdog.is_some() => notify_manager(&[sd_notify::NotifyState::Watchdog]),
            _ = reload.recv() => agent.reload(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    notify_manager(&[sd_notify::NotifyState::Stopping]);
    info!("stopping; the guard, the blackhole routes and the interface stay unless `down` took them away");
    drop(socket);
    agent.stop().await;
    Ok(())
}

async fn next_event(plane: &mut Option<Plane>) -> Option<WorkerEvent> {
    match plane {
        Some(plane) => plane.events.recv().await,
        None => std::future::pending().await,
    }
}

fn watchdog_interval() -> Option<Duration> {
    let mut micros = 0;
    sd_notify::watchdog_enabled(false, &mut micros)
        .then(|| Duration::from_micros(micros / 3).max(Duration::from_millis(100)))
}

fn notify_manager(states: &[sd_notify::NotifyState<'_>]) {
    let _ = sd_notify::notify(false, states); // there may be no service manager
}

impl Agent {
    fn open_spool(&mut self) {
        let records = &self.config.flow_records;
        if !records.enabled {
            return;
        }
        let path = records.file.clone().unwrap_or_else(|| self.options.state.join("flows.jsonl"));
        match Spool::open(path.clone(), records.max_size.get(), records.keep) {
            Ok(spool) => self.spool = Some(spool),
            Err(error) => {
                let error = anyhow::Error::from(error).context(format!("cannot open {}", path.display()));
                self.host.trouble(Trouble::Records, Err(error));
            }
        }
    }

    async fn start(
        &mut self,
        saved: Option<postern_common::grant::SavedGrants>,
        mark: Option<postern_common::grant::Position>,
    ) -> Result<(), anyhow::Error> {
        let now = self.clock.now();
        let identity = self.core.identity();
        let serving = identity.enrolment.as_ref().is_some_and(|enrolment| enrolment.login.is_open());
        if identity.wanted == Wanted::Up && serving {
            self.start_plane().await?;
        }
        if let Err(error) = self.core.start(saved, mark, now) {
            warn!(%error, "nothing is resumed");
        }
        self.look_for_endpoints().await;
        Ok(())
    }

    async fn start_plane(&mut self) -> Result<(), anyhow::Error> {
        if self.plane.is_none() {
            let keys = self.core.identity().keyring.private_keys();
            self.plane = Some(Plane::start(&self.config, keys, self.clock.clone()).await?);
            self.host.forget_interface();
        }
        Ok(())
    }

    async fn stop_plane(&mut self) {
        if let Some(plane) = self.plane.take() {
            for event in plane.stop().await {
                if let WorkerEvent::Record(record) = event {
                    self.record(record);
                }
            }
        }
    }

    async fn stop(&mut self) {
        self.link = None;
        self.stop_plane().await;
        self.host.rest().await;
        tokio::task::yield_now().await; // let the link's farewell begin
    }

    fn wake_at(&self) -> Instant {
        let now = self.clock.now();
        let core = self.core.poll_timeout(now).unwrap_or(Monotonic::NEVER).since(now.monotonic);
        let core = Instant::now() + core.min(Duration::from_secs(3600));
        self.probe.as_ref().map_or(core, |probe| probe.next.min(core))
    }

    async fn due(&mut self) {
        self.core.handle_timeout(self.clock.now());
        if self.probe.as_ref().is_some_and(|probe| probe.next <= Instant::now()) {
            self.send_probe().await;
        }
    }

    async fn send_probe(&mut self) {
        let (Some(probe), Some(plane), Some((controller, _))) = (&mut self.probe, &self.plane, self.path) else {
            self.probe = None;
            return;
        };
        probe.sequence += 1;
        let wait = if probe.sequence < PROBES_IN_BURST { PROBE_BURST } else { PROBE_INTERVAL };
        probe.next = Instant::now() + wait;
        let datagram = probe.order.key.seal(probe.order.stream, probe.sequence);
        let to = SocketAddr::new(controller.ip(), probe.order.port);
        let _ = plane.worker.send_probe(to, datagram.to_vec()).await; // a worker that has ended is told by its events
    }

    async fn tick(&mut self) {
        self.host.ensure().await;
        if let Some(plane) = &self.plane
            && let Ok(status) = plane.worker.status().await
        {
            self.denied.push_back(status.plane.denied_total());
            while self.denied.len() > 1 + 60 / TICK.as_secs() as usize {
                self.denied.pop_front();
            }
        }
        if let Some(spool) = &self.spool {
            let trouble = spool.trouble();
            self.host.trouble(Trouble::Records, trouble.map_or(Ok(()), |text| Err(anyhow::Error::msg(text))));
        }
        let now = self.clock.now();
        self.host.follow_names(self.core.book(), now);
    }

    fn reload(&mut self) {
        notify_manager(&[sd_notify::NotifyState::Reloading]);
        match NodeConfig::load(self.options.config.as_deref()) {
            Ok(config) => {
                let restart = self.config.needs_restart(&config);
                if !restart.is_empty() {
                    warn!(keys = restart.join(", "), "these keys of node.toml take effect after a restart");
                }
                let old = &self.config;
                self.config = NodeConfig {
                    listen_port: old.listen_port,
                    interface: old.interface.clone(),
                    mtu: old.mtu,
                    log: old.log,
                    dns: old.dns.clone(),
                    flow_records: old.flow_records.clone(),
                    ..config
                };
                self.core.set_rotation(self.config.key_rotation.get());
                self.waiting.reloaded = true;
                info!("node.toml was read again");
            }
            Err(error) => error!(error = %error, "node.toml was not taken over; the former one stays"),
        }
        notify_manager(&[sd_notify::NotifyState::Ready]);
    }

    fn from_link(&mut self, event: LinkEvent) {
        if self.link.as_ref().is_none_or(|link| link.number != event.link) {
            return;
        }
        let now = self.clock.now();
        match event.what {
            Happened::Opened { remote, local } => {
                self.path = Some((remote, local));
                self.core.handle_connected(now);
            }
            Happened::Said(message) => self.core.handle_message(*message, now),
            Happened::Ended { error, retry } => {
                self.link = None;
                self.core.handle_disconnected(error, retry, now);
            }
        }
    }

    fn persisted(&mut self, done: Done) {
        let now = self.clock.now();
        match (done.what, done.result) {
            (Some(what), Ok(())) => {
                self.host.trouble(Trouble::Disk, Ok(()));
                self.core.handle_persisted(what, now);
            }
            (Some(what), Err(text)) => {
                self.host.trouble(Trouble::Disk, Err(anyhow::Error::msg(text.clone())));
                self.core.handle_persist_failed(what, &text, now);
            }
            (None, Ok(())) => {}
            (None, Err(text)) => self.host.trouble(Trouble::Disk, Err(anyhow::Error::msg(text))),
        }
    }

    async fn from_worker(&mut self, event: Option<WorkerEvent>) {
        match event {
            Some(WorkerEvent::Record(record)) => self.record(record),
            Some(WorkerEvent::Plane(event)) => tracing::debug!(?event, "data plane"),
            Some(WorkerEvent::TunLost { reason }) => {
                error!(reason, "the tunnel's interface was lost; it is made again");
                self.lose_plane();
            }
            None => {
                error!("the packet worker has ended; it is started again");
                self.lose_plane();
            }
        }
    }

    fn lose_plane(&mut self) {
        self.plane = None;
        self.core.handle_plane_lost(self.clock.now());
    }

    fn record(&self, record: FlowRecord) {
        if self.followers.receiver_count() > 0 {
            let _ = self.followers.send(Arc::new(record.clone())); // the last follower may just have gone
        }
        if let Some(spool) = &self.spool {
            spool.push(record);
        }
    }

    async fn look_for_endpoints(&mut self) {
        let port = self.config.listen_port;
        let mut endpoints = self.config.endpoints.announce.clone();
        let ignored = ignored_addresses(&self.config.endpoints.ignore_interfaces);
        for address in self.host.outer_addresses(&self.config.interface).await {
            let endpoint = SocketAddr::new(address, port);
            if !ignored.contains(&address) && !endpoints.contains(&endpoint) {
                endpoints.push(endpoint);
            }
        }
        if let Some(probe) = &mut self.probe
            && endpoints != self.endpoints
        {
            probe.next = Instant::now();
        }
        self.endpoints.clone_from(&endpoints);
        self.core.handle_endpoints(endpoints, self.clock.now());
    }

    async fn perform_all(&mut self) {
        while let Some(effect) = self.core.poll_effect() {
            self.perform(effect).await;
        }
        if std::mem::take(&mut self.waiting.reloaded) {
            if let Some(plane) = &self.plane {
                let _ = plane.worker.set_ceiling(self.config.ceiling()).await; // an ended worker is told by its events
            }
            self.follow_host().await;
            self.look_for_endpoints().await;
        }
    }

    async fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Connect(target) => {
                self.link_number += 1;
                self.link = Some(Link::open(self.link_number, target, self.link_events.clone()));
            }
            Effect::Close => self.link = None,
            Effect::Send(message) => {
                if self.link.as_ref().is_some_and(|link| !link.send(message)) {
                    self.link = None;
                    let error = "the stream to the controller takes no more messages".into();
                    self.core.handle_disconnected(error, Retry::Soon, self.clock.now());
                }
            }
            Effect::SetLocalKeys(keys) => {
                if let Some(plane) = &self.plane {
                    let _ = plane.worker.set_local_keys(keys).await; // an ended worker is told by its events
                }
            }
            Effect::Apply(grants) => self.apply(grants).await,
            Effect::CloseDoors => {
                self.writer.submit(Job::RemoveGrants);
                self.host.follow_names(self.core.book(), self.clock.now());
                self.stop_plane().await;
                // An empty worker in its place: there is no way to forget to take something out of it.
                let identity = self.core.identity();
                if identity.wanted == Wanted::Up && identity.enrolment.is_some() {
                    let started = self.start_plane().await;
                    self.host.trouble(Trouble::Plane, started);
                }
            }
            Effect::PersistIdentity(identity) => self.writer.submit(Job::Identity(identity)),
            Effect::PersistGrants(saved) => self.writer.submit(Job::Grants(saved)),
            Effect::HostDown => self.down().await,
            Effect::Probe(order) => {
                self.probe = Some(Probing { order, sequence: 0, next: Instant::now() });
            }
            Effect::StopProbes => self.probe = None,
            Effect::Notify(notice) => {
                log_notice(&notice);
                self.waiting.tell(&notice);
            }
            Effect::Explained { question, answer } => self.explained(question, answer).await,
        }
    }

    async fn apply(&mut self, grants: postern_common::grant::VerifiedGrants) {
        let position = grants.position();
        let started = self.start_plane().await;
        let failed = started.is_err();
        self.host.trouble(Trouble::Plane, started);
        let Some(plane) = self.plane.as_ref().filter(|_| !failed) else { return };
        match plane.worker.apply(grants).await {
            Ok(applied) => {
                info!(
                    generation = position.generation,
                    epoch = position.epoch,
                    compiled = applied.compiled.len(),
                    removed = applied.removed.len(),
                    renewed = applied.renewed,
                    cut = applied.cut,
                    "grants are enforced"
                );
                self.core.handle_compiled(position);
            }
            Err(_) => return self.lose_plane(),
        }
        self.host.follow_names(self.core.book(), self.clock.now());
        self.follow_host().await;
    }

    async fn follow_host(&mut self) {
        if let Some(stand) = self.core.book().stand() {
            self.host.follow(&stand.own, &self.config).await;
        }
    }

    async fn down(&mut self) {
        self.stop_plane().await;
        let removed = self.host.remove().await;
        let interface = plane::remove_interface(&self.config.interface);
        let result = removed.and(interface);
        let reply = match &result {
            Ok(()) => Reply::Done,
            Err(error) => Reply::Refused { message: format!("not everything could be taken away: {}", chain(error)) },
        };
        self.host.trouble(Trouble::Net, result);
        self.waiting.answer_down(&reply);
        if self.options.detached {
            self.course = Course::Finished;
        }
    }
}

/// Lists the addresses of interfaces whose addresses are not announced.
fn ignored_addresses(interfaces: &[String]) -> Vec<IpAddr> {
    if interfaces.is_empty() {
        return vec![];
    }
    let Ok(addresses) = std::process::Command::new("ip").args(["-j", "address"]).output() else { return vec![] };
    let links: Vec<serde_json::Value> = serde_json::from_slice(&addresses.stdout).unwrap_or_default();
    links
        .iter()
        .filter(|link| interfaces.iter().any(|name| link["ifname"] == name.as_str()))
        .flat_map(|link| link["addr_info"].as_array().cloned().unwrap_or_default())
        .filter_map(|info| info["local"].as_str()?.parse().ok())
        .collect()
}

fn log_notice(notice: &Notice) {
    match notice {
        Notice::Connecting { controller } => info!(controller, "connecting"),
        Notice::Retrying { error, after_ms } => warn!(%error, after_ms, "the stream is down; it is tried again"),
        Notice::SignIn { url, expires, .. } => info!(url, %expires, "waiting for a person to sign in"),
        Notice::Joined { subject, machine, .. } => info!(subject, machine, "joined"),
        Notice::Enforcing { generation } => tracing::debug!(generation, "acknowledged"),
        Notice::SessionEnded { reason } => info!(reason, "the login session has ended"),
        Notice::Failed { message } => warn!(message, "what was asked for does not happen"),
    }
}

impl Agent {
    async fn from_client(&mut self, event: FromClient) {
        match event {
            FromClient::Asked { client, request, replies } => self.asked(client, request, replies).await,
            FromClient::Gone { client } => self.gone(client),
        }
    }
}
