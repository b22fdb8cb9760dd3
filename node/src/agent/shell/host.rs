//! The machine's network around the tunnel, kept as the newest grants say: guard, addresses and routes, names.
//!
//! The order is the guard first, then addresses, then names: without the guard in place the node gets no overlay address, so
//! that nothing can go around the tunnel. What fails is tried again every few seconds and shown by `status`.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use arc_swap::ArcSwap;
use ipnet::IpNet;
use postern_common::{
    grant::OwnGrant,
    time::{Deadline, Now},
};
use tracing::{info, warn};

use crate::{
    agent::core::book::Book,
    config::NodeConfig,
    host::{
        dns::{
            self, NameEntry, Names, Resolver,
            setup::{DnsEnsured, DnsSetup, Places},
        },
        guard::{Ensured, Guard, GuardPlan},
        net::{HostNet, TunnelPlan},
    },
};

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
    /// What is wrong, with what to do.
    pub troubles: BTreeMap<Trouble, String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Planned {
    guard: GuardPlan,
    tunnel: TunnelPlan,
    domain: String,
    dns: Option<IpAddr>,
}

impl Host {
    /// Opens the way to the kernel; changes nothing.
    ///
    /// # Errors
    /// If the kernel gives no netlink socket.
    pub fn open(state: PathBuf, clock: dns::Clock) -> Result<Self, anyhow::Error> {
        Ok(Self {
            net: HostNet::open()?,
            guard: None,
            planned: None,
            configured: false,
            names: Arc::default(),
            clock,
            resolver: None,
            setup: None,
            places: Places::new(&state),
            troubles: BTreeMap::new(),
        })
    }

    /// Makes the machine as these grants and this configuration say. Does nothing when it is so already.
    pub async fn follow(&mut self, own: &OwnGrant<Deadline>, config: &NodeConfig) {
        let guard = match GuardPlan::new(&config.interface, own.overlay.clone(), own.addresses.clone(), config.plain())
        {
            Ok(guard) => guard,
            Err(error) => {
                self.trouble(Trouble::Guard, Err(error.into()));
                return;
            }
        };
        let tunnel = TunnelPlan {
            link: config.interface.clone(),
            mtu: config.mtu.into(),
            addresses: own.addresses.clone(),
            overlay: own.overlay.clone(),
        };
        let dns = config.dns.enabled.then_some(config.dns.address);
        let planned = Planned { guard, tunnel, domain: own.domain.clone(), dns };
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
                self.troubles.remove(&Trouble::Guard);
            }
            Err(error) => {
                self.trouble(Trouble::Guard, Err(error));
                return;
            }
        }
        let configured = self.net.configure(&planned.tunnel).await;
        self.configured = configured.is_ok();
        self.trouble(Trouble::Net, configured.map_err(Into::into));
        let named = self.set_up_names(&planned).await;
        self.trouble(Trouble::Dns, named);
    }

    async fn set_up_names(&mut self, planned: &Planned) -> Result<(), anyhow::Error> {
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

    /// Answers for exactly the names that the book entitles to now.
    pub fn follow_names(&self, book: &Book, now: Now) {
        let Some(stand) = book.stand() else {
            self.names.store(Arc::default());
            return;
        };
        let entries = book.reachable(now).into_iter().map(|reachable| NameEntry {
            name: reachable.resource.to_string(),
            addresses: reachable.addresses,
            until: reachable.until,
        });
        self.names.store(Arc::new(Names::new(&stand.own.domain, stand.own.overlay.clone(), entries)));
    }

    /// Puts back what others took away, and tries again what failed. Call it every few seconds.
    pub async fn ensure(&mut self) {
        self.settle().await;
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
                self.trouble(Trouble::Guard, ensured.map(drop).map_err(Into::into));
            }
        }
        if let (Some(setup), Some(resolver)) = (&mut self.setup, &self.resolver) {
            match setup.ensure() {
                Ok(DnsEnsured::InPlace) => {}
                Ok(DnsEnsured::Renewed(upstream)) => {
                    info!("the name configuration had been rewritten: it asks this node again");
                    resolver.set_upstream(upstream);
                }
                Err(error) => self.trouble(Trouble::Dns, Err(error.into())),
            }
        }
    }

    /// The interface is another one now: configure it again.
    pub fn forget_interface(&mut self) {
        self.configured = false;
    }

    /// Lists outer addresses of the machine, best first.
    pub async fn outer_addresses(&self, interface: &str) -> Vec<IpAddr> {
        let overlay: &[IpNet] = self.planned.as_ref().map_or(&[], |planned| &planned.tunnel.overlay);
        match self.net.underlay_addresses(interface, overlay).await {
            Ok(addresses) => addresses,
            Err(error) => {
                warn!(error = %chain(&error.into()), "cannot list this machine's addresses");
                vec![]
            }
        }
    }

    /// The process stops and the node shall stay closed: names are asked elsewhere, guard and routes stay.
    pub async fn rest(&mut self) {
        self.resolver = None;
        let setup = self.setup.take();
        let restored = off_the_loop(move || setup.map_or(Ok(()), DnsSetup::restore)).await;
        self.trouble(Trouble::Dns, restored);
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
        self.troubles.clear();
        routes?;
        guard?;
        names?;
        Ok(())
    }

    /// Takes note of what went wrong or right.
    pub fn trouble(&mut self, what: Trouble, result: Result<(), anyhow::Error>) {
        match result {
            Ok(()) => {
                self.troubles.remove(&what);
            }
            Err(error) => {
                let text = chain(&error);
                if self.troubles.get(&what) != Some(&text) {
                    warn!(error = %text, "the machine is not as planned; it is tried again");
                }
                self.troubles.insert(what, text);
            }
        }
    }
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
