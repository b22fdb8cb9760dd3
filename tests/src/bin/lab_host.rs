//! The node's host integration by itself, for scenarios that need no controller: `postern-lab-host WHAT ...`.
//!
//! ```text
//! guard TUNNEL OVERLAYS OWN [PORT ALLOW...]   installs; then one line of input: look again, and print what was found
//! unguard                                     removes
//! net LINK MTU OWN OVERLAYS | unnet           configures, removes
//! underlay TUNNEL OVERLAYS                    prints candidates, and again after every change
//! dns STATE RESOLVER DOMAIN [NAME=ADDRESS...] sets up and answers until it is killed; a line of input: look again
//! undns STATE                                 restores
//! ```
//! Lists are separated by commas.

use std::{net::IpAddr, path::Path, str::FromStr, sync::Arc};

use anyhow::{Context, Result, bail};
use ipnet::IpNet;
use postern_common::time::{Deadline, Monotonic, Now, WallTime};
use postern_node::host::{
    dns::{NameEntry, Names, Resolver, setup},
    guard::{Guard, GuardPlan, PlainNetwork},
    net::{AddressChanges, HostNet, TunnelPlan},
};

fn list<T: FromStr<Err: std::error::Error + Send + Sync + 'static>>(text: &str) -> Result<Vec<T>> {
    text.split(',').filter(|item| !item.is_empty()).map(|item| item.parse().with_context(|| item.to_owned())).collect()
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["guard", tunnel, overlay, own, closed @ ..] => {
            let plain = match closed {
                [] => PlainNetwork::Open,
                [port, allow @ ..] => PlainNetwork::Closed {
                    wireguard_port: port.parse()?,
                    allow: allow.iter().map(|entry| entry.parse()).collect::<Result<_, _>>()?,
                },
            };
            let mut guard = Guard::install(GuardPlan::new(tunnel, list(overlay)?, list(own)?, plain)?)?;
            println!("ready");
            for line in std::io::stdin().lines() {
                line?;
                println!("{:?} {}", guard.ensure()?, serde_json::to_string(&guard.counters()?)?);
            }
        }
        ["unguard"] => Guard::remove()?,
        ["net", link, mtu, own, overlay] => {
            let plan = TunnelPlan {
                link: (*link).to_owned(),
                mtu: mtu.parse()?,
                addresses: list(own)?,
                overlay: list::<IpNet>(overlay)?,
            };
            HostNet::open()?.configure(&plan).await?;
        }
        ["unnet"] => HostNet::open()?.remove().await?,
        ["underlay", tunnel, overlay] => {
            let (net, mut changes) = (HostNet::open()?, AddressChanges::watch()?);
            loop {
                let candidates = net.underlay_addresses(tunnel, &list(overlay)?).await?;
                println!("candidates {candidates:?}");
                if !changes.changed().await {
                    bail!("the watch broke");
                }
            }
        }
        ["dns", state, resolver, domain, names @ ..] => {
            let resolver: IpAddr = resolver.parse()?;
            let places = setup::Places::new(Path::new(state));
            let (mode, upstream) = setup::DnsSetup::prepare(&places)?;
            let overlay: Vec<IpNet> = vec!["100.64.0.0/16".parse()?];
            let entries = names.iter().map(|entry| {
                let (name, address) = entry.split_once('=').context("NAME=ADDRESS")?;
                Ok(NameEntry { name: name.into(), addresses: list(address)?, until: Deadline::NEVER })
            });
            let names = Names::new(domain, overlay.clone(), entries.collect::<Result<Vec<_>>>()?);
            let names = Arc::new(arc_swap::ArcSwap::from_pointee(names));
            let now = Now { monotonic: Monotonic::default(), wall: WallTime::default() };
            let server = Resolver::listen((resolver, 53).into(), names, upstream, Arc::new(move || now)).await?;
            let mut setup = setup::DnsSetup::install(places, mode, resolver, domain, "postern0", &overlay)?;
            println!("ready");
            let mut lines = tokio::io::AsyncBufReadExt::lines(tokio::io::BufReader::new(tokio::io::stdin()));
            while lines.next_line().await?.is_some() {
                let found = setup.ensure()?;
                if let setup::DnsEnsured::Renewed(upstream) = &found {
                    server.set_upstream(upstream.clone());
                }
                println!("{found:?}");
            }
            std::future::pending::<()>().await;
        }
        ["undns", state] => println!("{:?}", setup::restore(&setup::Places::new(Path::new(state)))?),
        _ => bail!("see the first lines of tests/src/bin/lab_host.rs"),
    }
    Ok(())
}
