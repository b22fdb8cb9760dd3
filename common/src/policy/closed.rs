//! What is left of entitlements when resources are closed to everybody: quarantine.
//!
//! As with a `[[deny]]`, what counts are protocols and ports on nodes, not names: a second resource that names the same port is
//! no way around it.

use super::{Entitlement, services::split};
use crate::{id::DeviceId, net::Service};

impl Entitlement {
    /// Takes away from every entitlement what `closed` names on each of its nodes. Nodes with the same rest stay together.
    pub fn without(entitlements: Vec<Self>, closed: impl Fn(DeviceId) -> Vec<Service>) -> Vec<Self> {
        let mut left: Vec<Self> = Vec::with_capacity(entitlements.len());
        for entitlement in entitlements {
            let begin = left.len();
            for node in &entitlement.nodes {
                let services = match closed(*node) {
                    none if none.is_empty() => entitlement.services.clone(),
                    closed => split(&entitlement.services, &closed).1,
                };
                match left[begin..].iter_mut().find(|known| known.services == services) {
                    Some(known) => known.nodes.push(*node),
                    None => left.push(Self { nodes: vec![*node], services, ..entitlement.clone() }),
                }
            }
        }
        left.retain(|entitlement| !entitlement.services.is_empty());
        left
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{
        grant::{Mode, OnDeny},
        time::WallTime,
    };

    #[test]
    fn a_closed_port_goes_on_its_node_alone_by_whatever_name() {
        let node = |byte| DeviceId::from_bytes([byte; 16]);
        let services = |texts: &[&str]| texts.iter().map(|text| text.parse().expect(text)).collect::<Vec<Service>>();
        let entitlement = |resource: &str, ports: &[&str]| Entitlement {
            rule: "rule".parse().expect("a name"),
            location: String::new(),
            resource: resource.parse().expect("a name"),
            nodes: vec![node(1), node(2)],
            services: services(ports),
            valid_until: WallTime::NEVER,
            lease: Duration::from_secs(600),
            on_deny: OnDeny::Drop,
            mode: Mode::Enforce,
            stock_clients: false,
            limits: vec![],
            via: String::new(),
        };
        let all = vec![entitlement("db", &["tcp/5432"]), entitlement("everything", &["tcp/*"])];
        let left = Entitlement::without(all.clone(), |at| if at == node(1) { services(&["tcp/5432"]) } else { vec![] });
        let shown: Vec<_> = left.iter().map(|e| (e.resource.as_str(), e.nodes.clone(), e.services.clone())).collect();
        assert_eq!(
            shown,
            [
                ("db", vec![node(2)], services(&["tcp/5432"])),
                ("everything", vec![node(1)], services(&["tcp/1-5431", "tcp/5433-65535"])),
                ("everything", vec![node(2)], services(&["tcp/*"])),
            ]
        );
        assert_eq!(Entitlement::without(all.clone(), |_| vec![]), all);
    }
}
