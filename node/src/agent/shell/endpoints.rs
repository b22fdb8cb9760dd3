//! The outer addresses at which this machine may be found.

use std::net::{IpAddr, SocketAddr};

use tokio::time::Instant;
use tracing::warn;

use super::{Agent, host::chain};

/// How long `ip` may take.
const IP_WITHIN: std::time::Duration = std::time::Duration::from_secs(2);

impl Agent {
    pub(super) async fn look_for_endpoints(&mut self) {
        let port = self.config.listen_port;
        let mut endpoints = self.config.endpoints.announce.clone();
        let ignored = ignored_addresses(&self.config.endpoints.ignore_interfaces).await;
        let overlay = self.core.book().stand().map(|stand| stand.own.overlay.clone()).unwrap_or_default();
        let found = match self.net.underlay_addresses(&self.config.interface, &overlay).await {
            Ok(found) => found,
            Err(error) => {
                warn!(error = %chain(&error.into()), "cannot list this machine's addresses");
                return;
            }
        };
        self.addresses.clone_from(&found);
        for address in found {
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
}

/// Lists the addresses of interfaces whose addresses are not announced.
async fn ignored_addresses(interfaces: &[String]) -> Vec<IpAddr> {
    if interfaces.is_empty() {
        return vec![];
    }
    let listed = tokio::process::Command::new("ip").args(["-j", "address"]).kill_on_drop(true).output();
    let Ok(Ok(addresses)) = tokio::time::timeout(IP_WITHIN, listed).await else { return vec![] };
    let links: Vec<serde_json::Value> = serde_json::from_slice(&addresses.stdout).unwrap_or_default();
    links
        .iter()
        .filter(|link| interfaces.iter().any(|name| link["ifname"] == name.as_str()))
        .flat_map(|link| link["addr_info"].as_array().cloned().unwrap_or_default())
        .filter_map(|info| info["local"].as_str()?.parse().ok())
        .collect()
}
