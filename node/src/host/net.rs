//! The tunnel's addresses and routes, and the machine's outer addresses, over rtnetlink.
//!
//! For each overlay prefix there are two routes: one through the tunnel, and behind it a blackhole with the worst metric.
//! When the tunnel's interface goes away, with the node or before it, its routes go with it and the blackholes stay, so
//! that what was meant for the overlay never falls through to the default route in the clear. All routes of ours carry
//! one route protocol number, by which [`HostNet::remove`] finds them whatever the overlay's prefixes were then.
//!
//! Rejected: a routing table of our own with rules. It would outlive us just as well, but `ip route` would not show what
//! happens, and other programs' rules could come before ours.

use std::{
    collections::{HashMap, HashSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures_util::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkUnspec, MulticastGroup, RouteMessageBuilder,
    packet_route::{
        AddressFamily,
        address::{AddressAttribute, AddressHeaderFlags, AddressMessage},
        link::{LinkAttribute, LinkFlags},
        route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
    },
};

/// Marks our routes (`ip route show proto 112`).
pub const ROUTE_PROTOCOL: u8 = 112;
/// The metric of routes through the tunnel.
const TUNNEL_METRIC: u32 = 50;
/// The metric of the blackholes: worse than any that a person or a DHCP client would choose.
const BLACKHOLE_METRIC: u32 = 4_000_000_000;

/// What the tunnel's interface shall look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelPlan {
    /// The interface's name.
    pub link: String,
    /// The largest inner packet, in bytes.
    pub mtu: u32,
    /// This node's overlay addresses; each becomes a /128 or /32.
    pub addresses: Vec<IpAddr>,
    /// The overlay's prefixes.
    pub overlay: Vec<IpNet>,
}

/// What is looked at of an interface.
#[derive(Debug)]
struct Link {
    name: String,
    /// Up, and not loopback.
    up: bool,
    mtu: u32,
}

/// Where a route of ours leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Way {
    /// Through the interface of this index.
    Through(u32),
    /// It is a blackhole.
    Nowhere,
}

/// What cannot be done with the machine's network.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// No netlink socket.
    #[error("cannot open a netlink socket")]
    Socket(#[source] std::io::Error),
    /// The interface is not there.
    #[error("there is no network interface `{0}`")]
    NoLink(String),
    /// The kernel refuses.
    #[error("the kernel refuses to {action}")]
    Refused {
        /// What was tried: `add the address fd00::1`.
        action: String,
        /// Its answer.
        #[source]
        source: rtnetlink::Error,
    },
}

fn refused(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetError {
    let action = action.into();
    move |source| NetError::Refused { action, source }
}

/// The machine's network, as this process may change it. Needs a tokio runtime.
#[derive(Debug)]
pub struct HostNet {
    handle: Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Drop for HostNet {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

impl HostNet {
    /// Opens a netlink socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// Fails when the kernel gives none.
    pub fn open() -> Result<Self, NetError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetError::Socket)?;
        Ok(Self { handle, connection: tokio::spawn(connection) })
    }

    /// Makes the tunnel's interface look as planned: MTU, exactly these addresses, up, routes through it, blackholes
    /// behind. Can be called again with another plan; what is no longer planned goes.
    ///
    /// # Errors
    /// Fails when the interface is not there or the kernel refuses. The blackholes come first, so that a failure
    /// leaves things closed.
    pub async fn configure(&self, plan: &TunnelPlan) -> Result<(), NetError> {
        self.shut(&plan.overlay).await?;
        let index = self.link_index(&plan.link).await?;
        let message = LinkUnspec::new_with_index(index).mtu(plan.mtu).up().build();
        let action = format!("set {} up with an MTU of {}", plan.link, plan.mtu);
        self.handle.link().set(message).execute().await.map_err(refused(action))?;
        for address in self.addresses_of(index).await? {
            if !plan.addresses.contains(&address.0) && !is_link_local(address.0) {
                let action = format!("remove the address {}", address.0);
                self.handle.address().del(address.1).execute().await.map_err(refused(action))?;
            }
        }
        for address in &plan.addresses {
            let length = if address.is_ipv4() { 32 } else { 128 };
            let mut request = self.handle.address().add(index, *address, length).replace();
            if address.is_ipv6() {
                // Nobody else can answer on a point-to-point interface, and a tentative address cannot be bound yet.
                request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            request.execute().await.map_err(refused(format!("add the address {address}")))?;
        }
        for prefix in &plan.overlay {
            let source = plan.addresses.iter().find(|address| address.is_ipv4() == prefix.addr().is_ipv4());
            let route = through(*prefix, index, source.copied());
            self.add_route(route, format!("add the route for {prefix} through {}", plan.link)).await?;
        }
        self.remove_routes(|route| {
            let kept = destination(route).is_some_and(|prefix| plan.overlay.contains(&prefix));
            !kept || route_link(route).is_some_and(|link| link != index && route.header.kind == RouteType::Unicast)
        })
        .await
    }

    /// Tells whether the interface, its addresses and the routes are as [`HostNet::configure`] made them. Changes nothing.
    ///
    /// # Errors
    /// Fails when the interface is not there or the kernel does not tell.
    pub async fn is_as_planned(&self, plan: &TunnelPlan) -> Result<bool, NetError> {
        let links = self.links().await?;
        let Some((index, link)) = links.iter().find(|(_, link)| link.name == plan.link) else {
            return Err(NetError::NoLink(plan.link.clone()));
        };
        let found: HashSet<IpAddr> = self
            .addresses_of(*index)
            .await?
            .into_iter()
            .map(|(address, _)| address)
            .filter(|a| !is_link_local(*a))
            .collect();
        let addresses = found == plan.addresses.iter().copied().collect();
        let routes = self.own_routes().await?;
        let routed = |prefix: &IpNet| {
            routes.contains(&(prefix.trunc(), Way::Through(*index))) && routes.contains(&(prefix.trunc(), Way::Nowhere))
        };
        Ok(link.up && link.mtu == plan.mtu && addresses && plan.overlay.iter().all(routed))
    }

    /// Tells whether the blackholes of [`HostNet::shut`] lie. Changes nothing.
    ///
    /// # Errors
    /// Fails when the kernel does not tell.
    pub async fn is_shut(&self, overlay: &[IpNet]) -> Result<bool, NetError> {
        let routes = self.own_routes().await?;
        Ok(overlay.iter().all(|prefix| routes.contains(&(prefix.trunc(), Way::Nowhere))))
    }

    /// Tells the least MTU of the links by which this machine reaches others: those with a default route or, where there is
    /// none, all but loopback and the interface `tunnel`.
    ///
    /// # Errors
    /// Fails when the kernel does not tell.
    pub async fn underlay_mtu(&self, tunnel: &str) -> Result<Option<u32>, NetError> {
        let links = self.links().await?;
        let with_default = self.links_with_default_route().await?;
        let outer = || links.iter().filter(|(_, link)| link.up && link.name != tunnel);
        let outward = outer().filter(|(index, _)| with_default.contains(index)).map(|(_, link)| link.mtu).min();
        Ok(outward.or_else(|| outer().map(|(_, link)| link.mtu).min()))
    }

    async fn links(&self) -> Result<HashMap<u32, Link>, NetError> {
        let mut links = HashMap::new();
        let mut stream = self.handle.link().get().execute();
        while let Some(message) = stream.try_next().await.map_err(refused("list interfaces"))? {
            let flags = message.header.flags;
            let up = flags.contains(LinkFlags::Up) && !flags.contains(LinkFlags::Loopback);
            let mut link = Link { name: String::new(), up, mtu: 0 };
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::IfName(name) => link.name = name,
                    LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                    _ => {}
                }
            }
            links.insert(message.header.index, link);
        }
        Ok(links)
    }

    async fn links_with_default_route(&self) -> Result<HashSet<u32>, NetError> {
        let default = |route: &RouteMessage| {
            route.header.destination_prefix_length == 0 && route.header.kind == RouteType::Unicast
        };
        Ok(self.routes().await?.iter().filter(|route| default(route)).filter_map(route_link).collect())
    }

    async fn own_routes(&self) -> Result<HashSet<(IpNet, Way)>, NetError> {
        let ours = |route: &RouteMessage| route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL);
        let way = |route: &RouteMessage| match route.header.kind {
            RouteType::BlackHole => Some((destination(route)?, Way::Nowhere)),
            RouteType::Unicast => Some((destination(route)?, Way::Through(route_link(route)?))),
            _ => None,
        };
        Ok(self.routes().await?.iter().filter(|route| ours(route)).filter_map(way).collect())
    }

    /// Lays the blackholes alone: nothing is meant for the overlay yet, and nothing may fall through to the default route.
    ///
    /// # Errors
    /// Fails when the kernel refuses.
    pub async fn shut(&self, overlay: &[IpNet]) -> Result<(), NetError> {
        for prefix in overlay {
            self.add_route(blackhole(*prefix), format!("add the blackhole route for {prefix}")).await?;
        }
        Ok(())
    }

    /// Takes out every route of ours, blackholes included, whichever node made them. The tunnel's addresses go with its
    /// interface. Only `down` calls this.
    ///
    /// # Errors
    /// Fails when the kernel refuses; what could be removed is.
    pub async fn remove(&self) -> Result<(), NetError> {
        self.remove_routes(|_| true).await
    }

    /// Lists addresses at which this machine may be found from outside, best first: those of interfaces with a default
    /// route, IPv6 before IPv4. Leaves out loopback, link-local, multicast, tentative and deprecated addresses, the
    /// interface `tunnel`, and whatever lies in `overlay`.
    ///
    /// # Errors
    /// Fails when the kernel does not tell.
    pub async fn underlay_addresses(&self, tunnel: &str, overlay: &[IpNet]) -> Result<Vec<IpAddr>, NetError> {
        let links = self.links().await?;
        let with_default = self.links_with_default_route().await?;
        let mut found: Vec<(bool, bool, IpAddr)> = Vec::new();
        let mut stream = self.handle.address().get().execute();
        while let Some(message) = stream.try_next().await.map_err(refused("list addresses"))? {
            let unfit = AddressHeaderFlags::Tentative | AddressHeaderFlags::Dadfailed | AddressHeaderFlags::Deprecated;
            let index = message.header.index;
            let usable = links.get(&index).is_some_and(|link| link.up && link.name != tunnel);
            let Some(address) = address_of(&message) else { continue };
            if usable && !message.header.flags.intersects(unfit) && is_candidate(address, overlay) {
                found.push((!with_default.contains(&index), address.is_ipv4(), address));
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found.into_iter().map(|(_, _, address)| address).collect())
    }

    /// Tells the index of an interface.
    ///
    /// # Errors
    /// Fails when there is none of that name.
    pub async fn link_index(&self, link: &str) -> Result<u32, NetError> {
        let mut stream = self.handle.link().get().match_name(link.to_owned()).execute();
        match stream.try_next().await {
            Ok(Some(message)) => Ok(message.header.index),
            Ok(None) | Err(rtnetlink::Error::NetlinkError(_)) => Err(NetError::NoLink(link.to_owned())),
            Err(error) => Err(refused(format!("look for the interface {link}"))(error)),
        }
    }

    async fn addresses_of(&self, index: u32) -> Result<Vec<(IpAddr, AddressMessage)>, NetError> {
        let stream = self.handle.address().get().set_link_index_filter(index).execute();
        let messages: Vec<AddressMessage> = stream.try_collect().await.map_err(refused("list addresses"))?;
        Ok(messages.into_iter().filter_map(|message| Some((address_of(&message)?, message))).collect())
    }

    async fn add_route(&self, route: RouteMessage, action: String) -> Result<(), NetError> {
        self.handle.route().add(route).replace().execute().await.map_err(refused(action))
    }

    async fn routes(&self) -> Result<Vec<RouteMessage>, NetError> {
        let mut routes = Vec::new();
        for query in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
            let mut stream = std::pin::pin!(self.handle.route().get(query).execute());
            while let Some(route) = stream.try_next().await.map_err(refused("list routes"))? {
                routes.push(route);
            }
        }
        Ok(routes)
    }

    async fn remove_routes(&self, which: impl Fn(&RouteMessage) -> bool) -> Result<(), NetError> {
        let mut first_error = Ok(());
        for route in self.routes().await? {
            if route.header.protocol == RouteProtocol::Other(ROUTE_PROTOCOL) && which(&route) {
                let prefix = destination(&route).map(|prefix| prefix.to_string()).unwrap_or_default();
                let removed = self.handle.route().del(route).execute().await;
                first_error = first_error.and(removed.map_err(refused(format!("remove a route for {prefix}"))));
            }
        }
        first_error
    }
}

/// Tells when addresses, links or routes of the machine changed, so that candidates are gathered again and the tunnel is
/// looked after.
#[derive(Debug)]
pub struct AddressChanges {
    changes: tokio::sync::mpsc::Receiver<()>,
    tasks: [tokio::task::JoinHandle<()>; 2],
}

impl Drop for AddressChanges {
    fn drop(&mut self) {
        self.tasks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

impl AddressChanges {
    /// Begins to watch in the network namespace of the calling thread. Needs a tokio runtime.
    ///
    /// # Errors
    /// Fails when the kernel gives no netlink socket.
    pub fn watch() -> Result<Self, NetError> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, _, mut messages) = rtnetlink::new_multicast_connection(&groups).map_err(NetError::Socket)?;
        let (sender, changes) = tokio::sync::mpsc::channel(1);
        let drain = tokio::spawn(async move {
            while messages.next().await.is_some() {
                let _ = sender.try_send(()); // a change that is not yet looked at covers this one too
            }
        });
        Ok(Self { changes, tasks: [tokio::spawn(connection), drain] })
    }

    /// Waits for a change. A burst of messages is one change. Returns false when the watch has broken and must be
    /// made anew. Cancel-safe.
    pub async fn changed(&mut self) -> bool {
        self.changes.recv().await.is_some()
    }
}

fn blackhole(prefix: IpNet) -> RouteMessage {
    route(prefix, RouteType::BlackHole, BLACKHOLE_METRIC)
}

fn through(prefix: IpNet, index: u32, source: Option<IpAddr>) -> RouteMessage {
    let mut message = route(prefix, RouteType::Unicast, TUNNEL_METRIC);
    message.attributes.push(RouteAttribute::Oif(index));
    if let Some(source) = source {
        message.attributes.push(RouteAttribute::PrefSource(address(source)));
    }
    message
}

fn route(prefix: IpNet, kind: RouteType, metric: u32) -> RouteMessage {
    let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
    match prefix.trunc() {
        IpNet::V4(prefix) => RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())
            .protocol(protocol)
            .kind(kind)
            .priority(metric)
            .build(),
        IpNet::V6(prefix) => RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(prefix.addr(), prefix.prefix_len())
            .protocol(protocol)
            .kind(kind)
            .priority(metric)
            .build(),
    }
}

fn address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(address) => RouteAddress::Inet(address),
        IpAddr::V6(address) => RouteAddress::Inet6(address),
    }
}

fn destination(route: &RouteMessage) -> Option<IpNet> {
    let length = route.header.destination_prefix_length;
    let given = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        RouteAttribute::Destination(RouteAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    });
    let any = match route.header.address_family {
        AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    IpNet::new(given.unwrap_or(any), length).ok()
}

fn route_link(route: &RouteMessage) -> Option<u32> {
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    })
}

/// Returns the interface's own address: `Local` where it differs from the far end's (`Address`) of a point-to-point link.
fn address_of(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn is_candidate(address: IpAddr, overlay: &[IpNet]) -> bool {
    !address.is_loopback()
        && !address.is_unspecified()
        && !address.is_multicast()
        && !is_link_local(address)
        && !overlay.iter().any(|prefix| prefix.contains(&address))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_that_others_can_reach_are_candidates() {
        let overlay: Vec<IpNet> = vec!["fd5a::/48".parse().unwrap(), "100.64.0.0/16".parse().unwrap()];
        for (text, expected) in [
            ("192.0.2.7", true),
            ("2001:db8::7", true),
            ("10.0.0.4", true),
            ("fd00::4", true),
            ("127.0.0.1", false),
            ("::1", false),
            ("169.254.1.1", false),
            ("fe80::1", false),
            ("100.64.9.9", false),
            ("fd5a::9", false),
            ("0.0.0.0", false),
            ("224.0.0.1", false),
        ] {
            assert_eq!(is_candidate(text.parse().unwrap(), &overlay), expected, "{text}");
        }
    }

    #[test]
    fn a_route_tells_the_prefix_that_it_was_made_for() {
        for text in ["fd5a::/48", "100.64.0.0/16", "::/0"] {
            let prefix: IpNet = text.parse().unwrap();
            assert_eq!(destination(&blackhole(prefix)), Some(prefix));
            assert_eq!(route_link(&through(prefix, 7, None)), Some(7));
        }
    }
}
