//! The machine's network around the tunnel, kept as the newest grants say: guard, addresses and routes, names.
//!
//! The order is the guard first, then addresses, then names: without the guard in place the node gets no overlay address, so
//! that nothing can go around the tunnel. What fails is tried again every few seconds and shown by `status`.
//!
//! [`Host`] is the task's own; the loop holds a [`HostTask`]. `nft` and `resolvectl` are programs that may hang for seconds,
//! and a revocation must not wait behind them: the loop waits only where addresses change, and with a bound.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use postern_common::{
    grant::OwnGrant,
    time::{Deadline, Monotonic, Now, WallTime},
};
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, MissedTickBehavior, interval, sleep_until, timeout},
};
use tracing::{info, warn};

use crate::{
    agent::core::book::Book,
    config::{Mtu, NodeConfig},
    host::{
        dns::{
            self, NameEntry, Names, Resolver,
            setup::{DnsEnsured, DnsSetup, Places},
        },
        guard::{Ensured, Guard, GuardPlan},
        net::{HostNet, TunnelPlan},
        watch::MachineChanges,
    },
    io::path,
};

/// Orders that wait for the host's task.
const ORDERS: usize = 16;
/// How long the loop waits for one: longer than nft's own patience.
const PATIENCE: Duration = Duration::from_secs(15);
/// How often is looked whether somebody took something away, if the kernel told of no change.
const ENSURE: Duration = Duration::from_secs(5);
/// How long a burst of changes is let pass before is looked ...
const BURST: Duration = Duration::from_millis(50);
/// ... and how long after a look at least: another program that changes its own rules all the time costs that much.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);

/// What can be wrong, each at most once: the newest words count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trouble {
    /// The guard is not in place: the node has no overlay address.
    Guard,
    /// Addresses or routes.
    Net,
    /// Names.
    Dns,
    /// State files.
    Disk,
    /// Flow records.
    Records,
    /// The worker.
    Plane,
    /// Notices to the people at this machine.
    Notices,
}

/// The machine's network around the tunnel.
pub struct Host {
    net: HostNet,
    guard: Option<Guard>,
    planned: Option<Planned>,
    configured: bool,
    names: Arc<ArcSwap<Names>>,
    clock: dns::Clock,
    resolver: Option<Resolver>,
    setup: Option<DnsSetup>,
    places: Places,
    troubles: Troubles,
}

/// What is wrong on this machine, with what to do; shared between the loop and the host's task.
#[derive(Debug, Clone, Default)]
pub struct Troubles(Arc<Mutex<BTreeMap<Trouble, String>>>);

impl Troubles {
    /// Takes note of what went wrong or right.
    pub fn note(&self, what: Trouble, result: Result<(), anyhow::Error>) {
        let mut troubles = self.0.lock().expect("no thread panics while it holds this");
        match result {
            Ok(()) => {
                troubles.remove(&what);
            }
            Err(error) => {
                let text = chain(&error);
                if troubles.get(&what) != Some(&text) {
                    warn!(error = %text, "the machine is not as planned; it is tried again");
                }
                troubles.insert(what, text);
            }
        }
    }

    /// Lists what is wrong.
    pub fn list(&self) -> Vec<String> {
        self.0.lock().expect("no thread panics while it holds this").values().cloned().collect()
    }
}

/// The host's task as the loop sees it.
#[derive(Debug)]
pub struct HostTask {
    orders: mpsc::Sender<(Order, oneshot::Sender<Result<(), anyhow::Error>>)>,
    last: Option<(OwnGrant<Deadline>, NodeConfig)>,
}

#[derive(Debug)]
enum Order {
    Shut(Box<(Vec<IpNet>, NodeConfig)>),
    Follow(Box<(OwnGrant<Deadline>, NodeConfig)>),
    ForgetInterface,
    Rest,
    Remove,
}

impl HostTask {
    /// Starts the task.
    pub fn start(mut host: Host) -> Self {
        let (orders, mut inbox) = mpsc::channel::<(Order, oneshot::Sender<Result<(), anyhow::Error>>)>(ORDERS);
        tokio::spawn(async move {
            let mut again = interval(ENSURE);
            again.set_missed_tick_behavior(MissedTickBehavior::Delay);
            let mut changes = MachineChanges::watch().ok();
            let mut looked = Instant::now();
            let mut look_at: Option<Instant> = None;
            loop {
                tokio::select! {
                    biased;
                    order = inbox.recv() => {
                        let Some((order, done)) = order else { return };
                        let result = match order {
                            Order::Shut(wanted) => {
                                host.shut(wanted.0, &wanted.1).await;
                                Ok(())
                            }
                            Order::Follow(wanted) => {
                                host.follow(&wanted.0, &wanted.1).await;
                                Ok(())
                            }
                            Order::ForgetInterface => {
                                host.configured = false;
                                Ok(())
                            }
                            Order::Rest => {
                                host.rest().await;
                                Ok(())
                            }
                            Order::Remove => host.remove().await,
                        };
                        let _ = done.send(result); // the loop may have waited long enough
                    }
                    watching = changed(changes.as_mut()) => {
                        if !watching {
                            changes = MachineChanges::watch().ok();
                        }
                        look_at.get_or_insert((Instant::now() + BURST).max(looked + BETWEEN_LOOKS));
                    }
                    () = due(look_at) => {
                        host.ensure().await;
                        (look_at, looked) = (None, Instant::now());
                    }
                    _ = again.tick() => host.ensure().await,
                }
            }
        });
        Self { orders, last: None }
    }

    /// Makes the machine as these grants and this configuration say, and waits for it, if anything that concerns the machine
    /// is another than before.
    pub async fn follow(&mut self, own: &OwnGrant<Deadline>, config: &NodeConfig) {
        let same = self.last.as_ref().is_some_and(|(last, last_config)| {
            (&last.addresses, &last.overlay, &last.domain) == (&own.addresses, &own.overlay, &own.domain)
                && last_config == config
        });
        if !same {
            self.last = Some((own.clone(), config.clone()));
            let _ = self.order(Order::Follow(Box::new((own.clone(), config.clone())))).await; // troubles are shown by `status`
        }
    }

    /// Keeps the overlay shut while this node has not been told anything since it was down: guard and blackholes, no
    /// address. Changes nothing once it was told.
    pub async fn shut(&mut self, overlay: Vec<IpNet>, config: &NodeConfig) {
        let _ = self.order(Order::Shut(Box::new((overlay, config.clone())))).await; // troubles are shown by `status`
    }

    /// The interface is another one now: configure it again.
    pub async fn forget_interface(&mut self) {
        self.last = None;
        let _ = self.order(Order::ForgetInterface).await; // it is tried again with the next grants
    }

    /// The process stops and the node shall stay closed: names are asked elsewhere, guard and routes stay.
    pub async fn rest(&mut self) {
        let _ = self.order(Order::Rest).await; // the next start repairs what could not be put back
    }

    /// Takes everything away: `down`.
    ///
    /// # Errors
    /// The first thing that could not be taken away.
    pub async fn remove(&mut self) -> Result<(), anyhow::Error> {
        self.last = None;
        self.order(Order::Remove).await
    }

    async fn order(&self, order: Order) -> Result<(), anyhow::Error> {
        let (done, answer) = oneshot::channel();
        let late = || anyhow::anyhow!("the machine's network programs did not answer within {} s", PATIENCE.as_secs());
        self.orders.try_send((order, done)).map_err(|_| late())?;
        timeout(PATIENCE, answer).await.map_err(|_| late())?.map_err(|_| late())?
    }
}

async fn changed(changes: Option<&mut MachineChanges>) -> bool {
    match changes {
        Some(changes) => changes.changed().await,
        None => std::future::pending().await,
    }
}

async fn due(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned {
    guard: GuardPlan,
    inside: Inside,
}

/// What lies within the guard.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Inside {
    /// Nothing: blackholes for these prefixes.
    Shut(Vec<IpNet>),
    Open(Tunnelled),
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Tunnelled {
    tunnel: TunnelPlan,
    mtu: Mtu,
    domain: String,
    dns: Option<IpAddr>,
}

impl Host {
    /// Opens the way to the kernel; changes nothing.
    ///
    /// # Errors
    /// If the kernel gives no netlink socket.
    pub fn open(
        state: PathBuf,
        clock: dns::Clock,
        names: Arc<ArcSwap<Names>>,
        troubles: Troubles,
    ) -> Result<Self, anyhow::Error> {
        Ok(Self {
            net: HostNet::open()?,
            guard: None,
            planned: None,
            configured: false,
            names,
            clock,
            resolver: None,
            setup: None,
            places: Places::new(&state),
            troubles,
        })
    }

    /// Makes the machine as these grants and this configuration say. Does nothing when it is so already.
    pub async fn follow(&mut self, own: &OwnGrant<Deadline>, config: &NodeConfig) {
        let guard = match GuardPlan::new(&config.interface, own.overlay.clone(), own.addresses.clone(), config.plain())
        {
            Ok(guard) => guard,
            Err(error) => {
                self.troubles.note(Trouble::Guard, Err(error.into()));
                return;
            }
        };
        let tunnel = TunnelPlan {
            link: config.interface.clone(),
            mtu: self.mtu(config.mtu, &config.interface).await,
            addresses: own.addresses.clone(),
            overlay: own.overlay.clone(),
        };
        let dns = config.dns.enabled.then_some(config.dns.address);
        let inside = Inside::Open(Tunnelled { tunnel, mtu: config.mtu, domain: own.domain.clone(), dns });
        self.plan(Planned { guard, inside }).await;
    }

    /// Lets nothing into or out of the overlay, unless grants have said since the last [`Host::remove`] what may be.
    pub async fn shut(&mut self, overlay: Vec<IpNet>, config: &NodeConfig) {
        if matches!(&self.planned, Some(Planned { inside: Inside::Open(_), .. })) {
            return;
        }
        match GuardPlan::new(&config.interface, overlay.clone(), vec![], config.plain()) {
            Ok(guard) => self.plan(Planned { guard, inside: Inside::Shut(overlay) }).await,
            Err(error) => self.troubles.note(Trouble::Guard, Err(error.into())),
        }
    }

    /// Returns the tunnel's MTU in bytes.
    async fn mtu(&self, wanted: Mtu, tunnel: &str) -> u32 {
        match wanted {
            Mtu::Fixed(mtu) => mtu.into(),
            Mtu::Auto => {
                let underlay = self.net.underlay_mtu(tunnel).await.ok().flatten();
                let underlay = underlay.map_or(u16::MAX, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX));
                path::inner_mtu(underlay).into()
            }
        }
    }

    async fn plan(&mut self, planned: Planned) {
        if self.planned.as_ref() != Some(&planned) {
            self.planned = Some(planned);
            self.configured = false;
        }
        self.settle().await;
    }

    /// Tries again what is not as planned.
    async fn settle(&mut self) {
        if self.configured {
            return;
        }
        let Some(planned) = self.planned.clone() else { return };
        let guard = self.guard.take();
        let plan = planned.guard.clone();
        let placed = off_the_loop(move || match guard {
            Some(mut guard) => guard.replace(plan).map(|()| guard),
            None => Guard::install(plan),
        })
        .await;
        match placed {
            Ok(guard) => {
                self.guard = Some(guard);
                self.troubles.note(Trouble::Guard, Ok(()));
            }
            Err(error) => {
                self.troubles.note(Trouble::Guard, Err(error));
                return;
            }
        }
        let inside = match planned.inside {
            Inside::Open(inside) => inside,
            Inside::Shut(overlay) => {
                let shut = self.net.shut(&overlay).await;
                self.configured = shut.is_ok();
                return self.troubles.note(Trouble::Net, shut.map_err(Into::into));
            }
        };
        let configured = self.net.configure(&inside.tunnel).await;
        let networked = configured.is_ok();
        self.troubles.note(Trouble::Net, configured.map_err(Into::into));
        let named = self.set_up_names(&inside).await;
        self.configured = networked && named.is_ok();
        self.troubles.note(Trouble::Dns, named);
    }

    async fn set_up_names(&mut self, planned: &Tunnelled) -> Result<(), anyhow::Error> {
        let Some(address) = planned.dns else { return Ok(()) };
        let places = self.places.clone();
        let (mode, upstream) = off_the_loop(move || DnsSetup::prepare(&places)).await?;
        match &self.resolver {
            Some(resolver) => resolver.set_upstream(upstream),
            None => {
                let listen = SocketAddr::new(address, 53);
                let resolver = Resolver::listen(listen, self.names.clone(), upstream, self.clock.clone()).await?;
                self.resolver = Some(resolver);
            }
        }
        let (places, planned) = (self.places.clone(), planned.clone());
        let installed = off_the_loop(move || {
            let tunnel = &planned.tunnel;
            DnsSetup::install(places, mode, address, &planned.domain, &tunnel.link, &tunnel.overlay)
        })
        .await?;
        self.setup = Some(installed);
        Ok(())
    }

    /// Puts back what others took away, and tries again what failed. Call it every few seconds and after every change.
    pub async fn ensure(&mut self) {
        self.ensure_guard().await;
        self.look_at_network().await;
        self.settle().await;
        if let (Some(setup), Some(resolver)) = (&mut self.setup, &self.resolver) {
            match setup.ensure() {
                Ok(DnsEnsured::InPlace) => {}
                Ok(DnsEnsured::Renewed(upstream)) => {
                    info!("the name configuration had been rewritten: it asks this node again");
                    resolver.set_upstream(upstream);
                }
                Err(error) => self.troubles.note(Trouble::Dns, Err(error.into())),
            }
        }
    }

    /// Notes when the network is not as it was made, so that [`Host::settle`] makes it so again.
    async fn look_at_network(&mut self) {
        if !self.configured {
            return;
        }
        let Some(planned) = &self.planned else { return };
        let as_planned = match &planned.inside {
            Inside::Shut(overlay) => self.net.is_shut(overlay).await,
            Inside::Open(inside) => {
                let (mut inside, guard) = (inside.clone(), planned.guard.clone());
                let mtu = self.mtu(inside.mtu, &inside.tunnel.link).await;
                if mtu != inside.tunnel.mtu {
                    info!(mtu, before = inside.tunnel.mtu, "the machine's links take packets of another length");
                    inside.tunnel.mtu = mtu;
                    self.planned = Some(Planned { guard, inside: Inside::Open(inside.clone()) });
                }
                self.net.is_as_planned(&inside.tunnel).await
            }
        };
        match as_planned {
            Ok(true) => self.troubles.note(Trouble::Net, Ok(())),
            Ok(false) => {
                warn!("somebody changed the tunnel's interface, addresses or routes: they are put back");
                self.configured = false;
            }
            Err(error) => self.troubles.note(Trouble::Net, Err(error.into())), // the worker notices a lost interface
        }
    }

    async fn ensure_guard(&mut self) {
        if let Some(mut guard) = self.guard.take() {
            let ensured = off_the_loop(move || {
                let ensured = guard.ensure();
                Ok::<_, std::convert::Infallible>((guard, ensured))
            })
            .await;
            if let Ok((guard, ensured)) = ensured {
                self.guard = Some(guard);
                if matches!(ensured, Ok(Ensured::Reinstalled)) {
                    warn!("somebody had removed or changed the guard: it is in place again");
                }
                self.troubles.note(Trouble::Guard, ensured.map(drop).map_err(Into::into));
            }
        }
    }

    /// The process stops and the node shall stay closed: names are asked elsewhere, guard and routes stay.
    pub async fn rest(&mut self) {
        self.resolver = None;
        let setup = self.setup.take();
        let restored = off_the_loop(move || setup.map_or(Ok(()), DnsSetup::restore)).await;
        self.troubles.note(Trouble::Dns, restored);
    }

    /// Takes everything away: `down`.
    ///
    /// # Errors
    /// The first thing that could not be taken away; the others are gone.
    pub async fn remove(&mut self) -> Result<(), anyhow::Error> {
        self.rest().await;
        (self.planned, self.guard, self.configured) = (None, None, false);
        let routes = self.net.remove().await;
        let guard = off_the_loop(Guard::remove).await;
        let places = self.places.clone();
        let names = off_the_loop(move || dns::setup::restore(&places)).await;
        for what in [Trouble::Guard, Trouble::Net, Trouble::Dns] {
            self.troubles.note(what, Ok(()));
        }
        routes?;
        guard?;
        names?;
        Ok(())
    }
}

/// Makes the table of exactly the names that the book entitles to now, or would after a step-up; `None` while nothing is told.
pub fn names_of(book: &Book, now: Now) -> Option<Names> {
    let stand = book.stand()?;
    let open = book.reachable(now).into_iter().map(|reachable| NameEntry {
        name: reachable.resource.to_string(),
        addresses: reachable.addresses,
        until: reachable.until,
    });
    // The name has to lead to an address before a packet can be refused for want of a step-up.
    let never = Deadline { monotonic: Monotonic::NEVER, wall: WallTime::NEVER };
    let offered = stand.own.step_up.iter().map(|offer| NameEntry {
        name: offer.resource.to_string(),
        addresses: offer.addresses.clone(),
        until: stand.own.session_until.unwrap_or(never),
    });
    let entries = open.chain(offered);
    Some(Names::new(&stand.own.domain, stand.own.overlay.clone(), entries))
}

/// Writes an error with its sources in one line.
pub fn chain(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Runs what blocks for some milliseconds (nft, files) away from the main loop.
async fn off_the_loop<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, anyhow::Error>
where
    T: Send + 'static,
    E: Into<anyhow::Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await?.map_err(Into::into)
}
