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
//! | `mod.rs` | the loop |
//! | `effects` | how each effect of the core is done |
//! | `notices` | notices to the people at this machine: desktop, terminals |
//! | `requests` | what each local request does |
//! | `budgets` | how much each local user may ask of the controller |
//! | `probing` | probes from the WireGuard socket, so that the controller sees the outer address |
//! | `platform` | tokens of the platform on which this machine runs |
//! | `endpoints` | where this machine may be found |
//! | `posture` | the watch of the machine's state, while it is wanted |
//! | `behaviour` | what peers did lately, told to the controller
//! | `report` | what `status` and the others show |
//! | [`link`], [`dial`], [`tls`] | the stream |
//! | [`local`] | the local socket |
//! | [`plane`], [`paths`], [`host`] | the packet worker and the machine's network, as the agent keeps them |
//! | [`records`] | the spool of flow records |
//! | [`refusals`] | how many packets were refused within a minute |
//!
//! The loop waits for nothing that can hang: connections, disks and clients have tasks, threads and bounded queues of their
//! own. When the process ends by a signal the doors stay as they are or closed: guard, blackholes and the interface remain,
//! and the next process resumes what is saved within this boot.

mod behaviour;
mod budgets;
pub mod dial;
mod effects;
mod endpoints;
pub mod host;
pub mod link;
pub mod local;
mod notices;
pub mod paths;
pub mod plane;
mod platform;
mod posture;
mod probing;
pub mod records;
pub mod refusals;
mod report;
mod requests;
pub mod tls;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use arc_swap::ArcSwap;
use postern_common::{
    flow_record::{FlowEnd, FlowEvent, FlowRecord, Originator},
    net::{PortRange, Service},
    protocol::{FirstUse, PlatformToken},
    reason::DenyReason,
    time::Monotonic,
};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::{broadcast, mpsc},
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval, sleep_until},
};
use tracing::{error, info, warn};

use self::{
    host::{Host, HostTask, Trouble, Troubles},
    link::{Happened, Link, LinkEvent},
    local::{FromClient, LocalSocket},
    notices::Notices,
    plane::Plane,
    platform::TokenReader,
    posture::PostureWatch,
    probing::Probing,
    records::Spool,
    refusals::TICK,
    requests::Waiting,
};
use super::{
    core::{Core, Effect, Entropy, Settings, identity::Wanted},
    state::{
        self, State, StateError,
        writer::{Done, Writer},
    },
};
use crate::{
    config::NodeConfig,
    host::{
        dns::Names,
        net::{AddressChanges, HostNet},
    },
    io::{
        clock::{Clock, SystemClock},
        worker::WorkerEvent,
    },
};

/// Records that a follower may lag behind before it misses some.
const FOLLOWED_RECORDS: usize = 512;
/// How often is looked what the paths to the peers take.
const PATHS: Duration = Duration::from_secs(1);
/// How long the last words to the controller may take when the process ends.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long a new agent waits for a former one to end.
const HANDOVER: Duration = Duration::from_secs(8);

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
    host: HostTask,
    net: HostNet,
    names: Arc<ArcSwap<Names>>,
    troubles: Troubles,
    plane: Option<Plane>,
    link: Option<Link>,
    /// The former link, which still says farewell.
    closing: Option<JoinHandle<()>>,
    link_number: u64,
    /// The link on which the controller was told from where every peer speaks.
    told_link: u64,
    link_events: mpsc::Sender<LinkEvent>,
    /// The controller's address and this machine's towards it, on the present stream.
    path: Option<(SocketAddr, SocketAddr)>,
    probe: Option<Probing>,
    spool: Option<Spool>,
    followers: broadcast::Sender<Arc<FlowRecord>>,
    waiting: Waiting,
    notices: Notices,
    endpoints: Vec<SocketAddr>,
    /// The addresses of this machine's other interfaces.
    addresses: Vec<IpAddr>,
    posture: Option<PostureWatch>,
    tokens: mpsc::Sender<Result<PlatformToken, String>>,
    token_reader: TokenReader,
    course: Course,
}

/// Runs the agent until a signal, or until `down` if it is detached.
///
/// # Errors
/// What keeps it from starting, in words for the person at the machine.
pub async fn run(options: RunOptions, config: NodeConfig) -> Result<(), anyhow::Error> {
    let state = open_state(&options).await?;
    let found = state.load()?;
    for ignored in &found.ignored {
        warn!(reason = %ignored, "saved grants count for nothing; closed until the controller has spoken");
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let settings = Settings {
        rotation: config.key_rotation.get(),
        boot: state::boot_id()?,
        listen_port: config.listen_port,
        overlay_within: config.overlay_within(),
        version: env!("CARGO_PKG_VERSION").into(),
        machine: platform::machine_kind(),
        platform: platform::settings(&config.platform),
    };
    let entropy = Box::new(SystemEntropy);
    let core = match found.identity {
        Some(identity) => Core::restore(settings, entropy, identity),
        None => Core::new(settings, entropy),
    };
    let (done, mut persisted) = mpsc::unbounded_channel();
    let writer = Writer::start(state, done)?;
    let (link_events, mut from_link) = mpsc::channel(link::INCOMING);
    let (tokens, mut from_platform) = mpsc::channel(1);
    let (to_loop, mut from_clients) = mpsc::channel(local::MAX_CLIENTS);
    let socket = LocalSocket::listen(&options.socket, config.group.clone(), to_loop)
        .with_context(|| format!("cannot listen at {}", options.socket.display()))?;
    let (names, troubles) = (Arc::<ArcSwap<Names>>::default(), Troubles::default());
    let names_clock = {
        let clock = clock.clone();
        Arc::new(move || clock.now())
    };
    let mut agent = Agent {
        host: HostTask::start(Host::open(options.state.clone(), names_clock, names.clone(), troubles.clone())?),
        net: HostNet::open()?,
        names,
        troubles,
        spool: None,
        plane: None,
        link: None,
        closing: None,
        link_number: 0,
        told_link: 0,
        link_events,
        path: None,
        probe: None,
        followers: broadcast::channel(FOLLOWED_RECORDS).0,
        waiting: Waiting::default(),
        notices: Notices::default(),
        endpoints: vec![],
        addresses: vec![],
        posture: None,
        tokens,
        token_reader: TokenReader::default(),
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
    let mut paths = interval(PATHS);
    paths.set_missed_tick_behavior(MissedTickBehavior::Delay);
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
        let line = report::phase_line(&phase);
        if shown.as_ref() != Some(&line) {
            notify_manager(&[sd_notify::NotifyState::Status(&line)]);
            info!(phase = %line, "the node's phase");
            shown = Some(line);
        }
        let wake = agent.wake_at();
        tokio::select! {
            event = from_link.recv() => if let Some(event) = event { agent.link_said(event) },
            client = from_clients.recv() => if let Some(client) = client { agent.client_said(client).await },
            done = persisted.recv() => if let Some(done) = done { agent.persisted(done) },
            token = from_platform.recv() => if let Some(token) = token { agent.core.handle_platform_token(token, agent.clock.now()) },
            seen = posture::next_seen(&mut agent.posture) => agent.posture_seen(seen),
            event = next_event(&mut agent.plane) => agent.worker_said(event).await,
            watching = addresses.changed() => {
                if !watching {
                    addresses = AddressChanges::watch()?;
                }
                agent.leave_lost_address();
                agent.look_for_endpoints().await;
            }
            () = sleep_until(wake) => agent.due().await,
            _ = tick.tick() => agent.tick().await,
            _ = paths.tick() => agent.follow_paths().await,
            _ = alive.tick(), if watchdog.is_some() => notify_manager(&[sd_notify::NotifyState::Watchdog]),
            _ = reload.recv() => agent.reload(),
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        }
    }
    notify_manager(&[sd_notify::NotifyState::Stopping]);
    info!("stopping; the guard, the blackhole routes and the interface stay unless `down` took them away");
    socket.close();
    agent.stop().await;
    drop(from_clients);
    socket.drain(FAREWELL).await;
    Ok(())
}

/// Opens the state; an agent that `up` starts waits for a former one that is just ending.
async fn open_state(options: &RunOptions) -> Result<State, StateError> {
    let begun = Instant::now();
    loop {
        match State::open(&options.state, &options.runtime) {
            Err(StateError::Locked(_)) if options.detached && begun.elapsed() < HANDOVER => {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            opened => return opened,
        }
    }
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
                self.troubles.note(Trouble::Records, Err(error));
            }
        }
    }

    async fn start(
        &mut self,
        saved: Option<postern_common::grant::SavedGrants>,
        mark: Option<postern_common::grant::Position>,
    ) -> Result<(), anyhow::Error> {
        let now = self.clock.now();
        if let Err(error) = self.core.start(saved, mark, now) {
            warn!(%error, "nothing is resumed");
        }
        self.shut_overlay().await; // before the first effect is done
        let identity = self.core.identity();
        let serving = identity.enrolment.as_ref().is_some_and(|enrolment| enrolment.login.is_open());
        if identity.wanted == Wanted::Up && serving {
            self.start_plane().await?;
        }
        self.look_for_endpoints().await;
        Ok(())
    }

    async fn start_plane(&mut self) -> Result<(), anyhow::Error> {
        if self.plane.is_none() {
            let keys = self.core.identity().keyring.private_keys();
            self.plane = Some(Plane::start(&self.config, keys, self.clock.clone()).await?);
            self.host.forget_interface().await;
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
        // What was counted here goes with this process. The controller adds what it was told to what the next one counts.
        self.tell_behaviour().await;
        while let Some(effect) = self.core.poll_effect() {
            if let (Effect::Send(message), Some(link)) = (effect, &self.link) {
                link.send(message);
            }
        }
        let closing = self.link.take().map(Link::close).or(self.closing.take());
        self.stop_plane().await;
        self.host.rest().await;
        if let Some(closing) = closing {
            let _ = tokio::time::timeout(FAREWELL, closing).await; // the controller notices by itself, later
        }
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

    async fn tick(&mut self) {
        self.tell_behaviour().await;
        if let Some(plane) = &mut self.plane
            && let Ok(status) = plane.worker.status().await
        {
            let refused = plane.refusals.tick(status.plane.denied_total());
            self.core.handle_refusals(refused, self.clock.now());
        }
        if let Some(spool) = &self.spool {
            let trouble = spool.trouble();
            self.troubles.note(Trouble::Records, trouble.map_or(Ok(()), |text| Err(anyhow::Error::msg(text))));
        }
        self.follow_names();
        self.follow_posture();
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
                self.follow_posture();
                self.core.set_rotation(self.config.key_rotation.get());
                self.core.set_overlay_within(self.config.overlay_within());
                self.core.set_platform(platform::settings(&self.config.platform));
                self.waiting.reloaded = true;
                info!("node.toml was read again");
            }
            Err(error) => error!(error = %error, "node.toml was not taken over; the former one stays"),
        }
        notify_manager(&[sd_notify::NotifyState::Ready]);
    }

    fn link_said(&mut self, event: LinkEvent) {
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
                self.path = None;
                self.core.handle_disconnected(error, retry, now);
            }
        }
    }

    /// Opens the stream anew when the address that it was opened from is this machine's no longer: a roam. TCP itself
    /// would find out only after minutes, and the lease would end meanwhile.
    fn leave_lost_address(&mut self) {
        let (Some(link), Some((_, local))) = (&self.link, self.path) else { return };
        let mut any_port = local;
        any_port.set_port(0);
        let lost = std::net::UdpSocket::bind(any_port).is_err_and(|e| e.kind() == std::io::ErrorKind::AddrNotAvailable);
        if lost {
            let error = format!("this machine no longer has the address {}", local.ip());
            self.link_said(LinkEvent {
                link: link.number,
                what: Happened::Ended { error, retry: crate::agent::core::Retry::Soon },
            });
        }
    }

    fn persisted(&mut self, done: Done) {
        let now = self.clock.now();
        match (done.what, done.result) {
            (Some(what), Ok(())) => {
                self.troubles.note(Trouble::Disk, Ok(()));
                self.core.handle_persisted(what, now);
            }
            (Some(what), Err(text)) => {
                self.troubles.note(Trouble::Disk, Err(anyhow::Error::msg(text.clone())));
                self.core.handle_persist_failed(what, &text, now);
            }
            (None, Ok(())) => {}
            (None, Err(text)) => self.troubles.note(Trouble::Disk, Err(anyhow::Error::msg(text))),
        }
    }

    async fn worker_said(&mut self, event: Option<WorkerEvent>) {
        match event {
            Some(WorkerEvent::Record(record)) => self.record(record),
            Some(WorkerEvent::Plane(postern_dataplane::PlaneEvent::Shut)) => self.tell_behaviour().await,
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

    fn record(&mut self, record: FlowRecord) {
        self.watch_for_step_up(&record);
        self.watch_for_use(&record);
        if self.followers.receiver_count() > 0 {
            let _ = self.followers.send(Arc::new(record.clone())); // the last follower may just have gone
        }
        if let Some(spool) = &self.spool {
            spool.push(record);
        }
    }

    /// A flow that a peer has opened here: what a service uses for the first time is worth knowing.
    fn watch_for_use(&mut self, record: &FlowRecord) {
        let (FlowEvent::Start, Originator::Peer) = (&record.event, record.originator) else { return };
        let (Some(peer), Some(permit)) = (&record.peer, &record.permit) else { return };
        if !peer.is_service() {
            return;
        }
        let port = record.flow.destination_port;
        let Some(ports) = PortRange::new(port, port) else { return };
        let service = Service::new(record.flow.protocol, ports);
        let used = FirstUse { peer: peer.device, resource: permit.resource.clone(), service };
        self.core.handle_use(used, self.clock.now());
    }

    /// A refusal, or a cut, that stronger or fresher proof of sign-in mends: the person is told where to give it.
    fn watch_for_step_up(&mut self, record: &FlowRecord) {
        if record.originator != Originator::Local {
            return;
        }
        let (flow, now) = (&record.flow, self.clock.now());
        match &record.event {
            FlowEvent::Deny { reason: DenyReason::StepUp, .. } => {
                self.core.handle_step_up_wanted(flow.destination, flow.protocol, flow.destination_port, now);
            }
            FlowEvent::End { why: FlowEnd::Expired | FlowEnd::Revoked, .. } => {
                if let Some(permit) = &record.permit {
                    self.core.handle_flow_cut(&permit.resource, now);
                }
            }
            FlowEvent::Start | FlowEvent::End { .. } | FlowEvent::Deny { .. } => {}
        }
    }
}

impl Agent {
    async fn client_said(&mut self, event: FromClient) {
        match event {
            FromClient::Asked { client, uid, right, request, replies } => {
                self.asked((client, uid, right), request, replies).await;
            }
            FromClient::Gone { client } => {
                if self.gone(client) {
                    self.end_if_useless().await;
                }
            }
        }
    }
}
