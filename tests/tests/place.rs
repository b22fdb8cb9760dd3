//! Where and when: hours that end, and a machine that moves to another network, country and carrier, while connections are open.

use std::{net::IpAddr, time::Duration};

use anyhow::{Result, ensure};
use postern_tests::{
    Chatter, Echo, Host,
    deployment::{Deployment, Family, Node, PATIENCE, WALL_OFFSET},
    eventually,
    mmdb::{Known, map_of},
};

const OFFICE: u16 = 7000;
const HOME: u16 = 7001;
const CARRIER: u16 = 7002;
const SHIFT: u16 = 7003;
const FILES: u16 = 7004;
const WIKI: u16 = 7005;

/// How long it takes at most until a machine that moved is heard from its new place.
const MOVED: Duration = Duration::from_secs(20);

/// A place alone opens nothing, so each rule asks for a kernel that every machine has.
fn policy(hours: &str) -> String {
    let resources =
        [("office", OFFICE), ("home", HOME), ("carrier", CARRIER), ("shift", SHIFT), ("files", FILES), ("wiki", WIKI)];
    let resources =
        resources.map(|(name, port)| format!("[resource.{name}]\nnodes = [\"tag:all\"]\nports = [\"tcp/{port}\"]\n"));
    let rules = [
        ("office", "posture = \"linux\", network = \"office\"".to_owned()),
        ("home", "posture = \"linux\", country = \"DE\"".to_owned()),
        ("carrier", "posture = \"linux\", asn = \"AS64500\"".to_owned()),
        ("shift", format!("hours = \"{hours}\"")),
    ];
    let rules = rules.map(|(name, when)| {
        format!("[[access]]\nname = \"{name} only\"\nfrom = [\"user:*\"]\nto = [\"{name}\"]\nlease = \"10m\"\nwhen = {{ {when} }}\n")
    });
    let always = "[[access]]\nname = \"everybody\"\nfrom = [\"user:*\"]\nto = [\"files\", \"wiki\"]\nlease = \"10m\"\n";
    let named = "[posture.linux]\nos.linux.min_kernel = \"1.0\"\n\n[network.office]\n\
                 prefixes = [\"198.18.0.13/32\", \"2001:db8::d/128\", \"198.18.0.17/32\", \"2001:db8::11/128\"]\n\n\
                 [set.basics]\nresources = [\"wiki\"]\n";
    [named, &resources.join("\n"), &rules.join("\n"), always].join("\n")
}

/// Country and carrier of the addresses that the laptop will have, one after the other, in the network of the lab.
const PLACES: [(u8, &str, u32); 7] = [
    (13, "DE", 64_500),
    (14, "DE", 64_500),
    (15, "FR", 64_500),
    (16, "FR", 64_501),
    (17, "DE", 64_500),
    (18, "FR", 64_500),
    (19, "DE", 64_500),
];

struct Scene {
    world: Deployment,
    laptop: Node,
    server: Node,
    _echo: Echo,
    at: IpAddr,
}

impl Scene {
    /// Moves the laptop to the next address.
    fn roam(&self) -> Result<()> {
        self.world.lab.network().roam(&self.laptop.host, "eth0")
    }

    fn chatter(&self, port: u16) -> Result<Chatter> {
        self.laptop.chatter(self.at, port)
    }

    fn explained(&self, name: &str, words: &[&str]) -> Result<()> {
        // The machine may be about to come back from elsewhere.
        for (whose, ask) in [
            ("on the machine", &(|| self.laptop.explain(name)) as &dyn Fn() -> String),
            ("at the controller", &|| self.world.explain("alice", name)),
        ] {
            eventually(PATIENCE, &format!("{name} is not explained {whose} by {words:?}"), || {
                let said = ask();
                (said.starts_with("denied") && words.iter().all(|word| said.contains(word))).then_some(())
            })
            .map_err(|error| error.context(ask()))?;
        }
        Ok(())
    }
}

fn scene(name: &str, policy: &str) -> Result<Scene> {
    let world = Deployment::start_with(name, |controller, config| {
        let addresses = |number: u8| -> [IpAddr; 2] {
            [[198, 18, 0, number].into(), [0x2001, 0xdb8, 0, 0, 0, 0, 0, u16::from(number)].into()]
        };
        let all = || PLACES.into_iter().flat_map(|place| addresses(place.0).map(|address| (address, place)));
        let countries: Vec<_> = all().map(|(address, (_, code, _))| (address, Known::Country(code))).collect();
        let carriers: Vec<_> = all().map(|(address, (_, _, asn))| (address, Known::AutonomousSystem(asn))).collect();
        controller.write("/run/country.mmdb", map_of(&countries))?;
        controller.write("/run/asn.mmdb", map_of(&carriers))?;
        let files = "[place]\ncountry_file = \"/run/country.mmdb\"\nasn_file = \"/run/asn.mmdb\"\n";
        Ok(config.replace("[place]\n", "") + "\n" + files)
    })?;
    world.apply_policy(policy)?;
    world.add_user("alice", &[])?;
    let server = world.server("all", &["all"], None)?;
    let echo = server.echo(&[OFFICE, HOME, CARRIER, SHIFT, FILES, WIKI])?;
    let at = server.overlay(Family::V6)?;
    let laptop = world.laptop("laptop")?;
    ensure!(laptop.host.ipv4().to_string() == "198.18.0.13", "the laptop is at {}", laptop.host.ipv4());
    world.sign_in(&laptop, "alice")?;
    Ok(Scene { world, laptop, server, _echo: echo, at })
}

/// Hours that end, a network that is left, a country, a carrier: each alone cuts what asks for it, and what does not goes on.
#[test]
fn each_place_and_the_hours_alone_cut_what_asks_for_them() -> Result<()> {
    let times = |from: &str, to: &str, host: &Host| -> Result<String> {
        let at = |when: &str| host.sh(&format!("date -u -d '{when}' +%H:%M")).map(|text| text.trim().to_owned());
        Ok(format!("Mon-Sun {}-{} UTC", at(from)?, at(to)?))
    };
    let scene = scene("place", &policy("Mon-Sun 00:00-24:00 UTC"))?;
    let controller = &scene.world.controller;
    scene.world.apply_policy(&policy(&times("-1 hour", "+3 minutes", controller)?))?;
    let mut wiki = scene.chatter(WIKI)?;
    let mut shift = scene.chatter(SHIFT)?;
    // All clocks go forward, beyond the end of the shift.
    for host in [controller, &scene.laptop.host, &scene.server.host] {
        host.write(WALL_OFFSET, "200000")?;
    }
    shift.is_cut("hours that are over")?;
    wiki.goes_on("hours of something else")?;
    scene.explained("shift", &["it is ", "opens Mon-Sun "])?;
    scene.world.apply_policy(&policy(&times("-1 hour", "+2 hours", controller)?))?;
    drop(scene.chatter(SHIFT)?);

    let mut office = scene.chatter(OFFICE)?;
    let mut home = scene.chatter(HOME)?;
    let mut carrier = scene.chatter(CARRIER)?;
    scene.roam()?;
    office.is_cut_within(MOVED, "out of the office")?;
    scene.explained("office", &["the device speaks from", "office only"])?;
    home.goes_on("another network")?;
    carrier.goes_on("another network")?;

    scene.roam()?;
    home.is_cut_within(MOVED, "abroad")?;
    scene.explained("home", &["FR", "home only"])?;
    carrier.goes_on("another country")?;

    scene.roam()?;
    carrier.is_cut_within(MOVED, "another carrier")?;
    scene.explained("carrier", &["AS64501", "carrier only"])?;
    wiki.goes_on("nothing that it asks for")?;

    scene.roam()?;
    for port in [OFFICE, HOME, CARRIER] {
        drop(scene.chatter(port)?);
    }
    wiki.goes_on("nothing that it asks for")
}

/// A stream that is carried home by a detour does not make packets from abroad packets from home.
#[test]
fn packets_from_another_country_than_the_stream_open_nothing_that_asks_for_home() -> Result<()> {
    let scene = scene("place-packets", &policy("Mon-Sun 00:00-24:00 UTC"))?;
    let (mut home, mut wiki) = (scene.chatter(HOME)?, scene.chatter(WIKI)?);
    // On their way to the server, and nowhere else, its packets get an address abroad.
    let (laptop, server) = (&scene.laptop.host, &scene.server.host);
    laptop.sh("ip addr add 198.18.0.15/32 dev eth0 && ip addr add 2001:db8::f/128 dev eth0 nodad preferred_lft 0")?;
    for (family, at, abroad) in [("ip", server.ipv4(), "198.18.0.15"), ("ip6", server.ipv6(), "2001:db8::f")] {
        laptop.sh(&format!(
            "nft 'add table {family} detour; add chain {family} detour out {{ type nat hook postrouting priority srcnat; }}; \
             add rule {family} detour out {family} daddr {at} udp dport 51820 snat to {abroad}'"
        ))?;
    }
    home.is_cut_within(MOVED, "packets from abroad")?;
    wiki.goes_on("nothing that it asks for")?;
    let why = scene.laptop.explain("home");
    ensure!(
        why.starts_with("denied") && why.contains("FR"),
        "explain does not name where the packets come from: {why}"
    );
    Ok(())
}

/// A machine that turns up in another country within its session: restricted to a set, or signed out.
#[test]
fn a_change_of_place_cuts_what_its_limit_takes_away_and_keeps_the_rest() -> Result<()> {
    let hours = "Mon-Sun 00:00-24:00 UTC";
    let limit = |then: &str| {
        let limit = "[[limit]]\nname = \"people stay\"\nfrom = [\"user:*\"]\nstay_in = \"country\"\non_exceed = ";
        format!("{}\n{limit}{then}\n", policy(hours))
    };
    let scene = scene("place-change", &limit("\"restrict\"\nrestrict_to = \"basics\""))?;
    let (mut files, mut wiki) = (scene.chatter(FILES)?, scene.chatter(WIKI)?);
    scene.roam()?; // within the country
    files.goes_on("another address in the same country")?;
    scene.roam()?;
    files.is_cut_within(MOVED, "another country")?;
    wiki.goes_on("it is in the set")?;
    scene.explained("files", &["spoke from DE", "until an administrator releases it"])?;
    scene.world.ctl(&["restraint", "release", "device", "laptop"])?;
    let mut files = scene.chatter(FILES)?;

    scene.world.apply_policy(&limit("\"terminate\""))?;
    scene.roam()?; // within the country
    files.goes_on("another carrier in the same country")?;
    scene.roam()?;
    files.is_cut_within(MOVED, "home again")?;
    wiki.is_cut_within(MOVED, "home again")?;
    scene.explained("files", &["spoke from FR"])?;
    scene.world.sign_in(&scene.laptop, "alice")?;
    scene.chatter(FILES).map(drop)
}
