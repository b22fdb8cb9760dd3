//! What one decision costs: everything that one person on one machine may reach, under ten thousand rules with conditions, limits and
//! denies, on a thousand machines. Each decision is measured by itself, for another person of two hundred groups each time.
//!
//! `cargo bench -p postern-common --bench decision [-- ROUNDS]`; `scripts/bench decision` does that.

use std::{collections::BTreeSet, fmt::Write as _, hint::black_box, time::Instant};

use postern_common::{
    id::DeviceId,
    policy::{Assurance, Place, Policy, RequestContext, Subject, TargetNode, Targets, UserIdentity},
    posture::{Facts, Report},
    time::WallTime,
};

const RULES: usize = 10_000;
const GROUPS: usize = 200;
const RESOURCES: usize = 2_000;
const MACHINES: u16 = 1_000;
/// Monday, 2026-11-23 09:00 UTC.
const NOW: WallTime = WallTime::from_millis(1_795_424_400_000);

fn document() -> String {
    let mut text = String::new();
    for i in 0..20 {
        writeln!(text, "[posture.p{i}]\ndisk_encrypted = true\nfirewall = true\nmax_security_updates = {i}")
            .expect("text");
    }
    for i in 0..RESOURCES {
        let first = 1_000 + (i % 10_000) * 5;
        writeln!(text, "[resource.r{i}]\nnodes = [\"tag:t{}\"]\nports = [\"tcp/{first}-{}\"]", i % 500, first + 4)
            .expect("text");
    }
    for i in 0..RULES {
        let (group, to) = (i % GROUPS, i % RESOURCES);
        let when = match i % 5 {
            0 => String::new(),
            1 => format!("when = {{ posture = \"p{}\" }}\n", i % 20),
            2 => "when = { mfa_within = \"12h\" }\n".into(),
            3 => format!("when = {{ hours = \"Mon-Fri 0{}:00-20:00 Europe/Berlin\" }}\n", 6 + i % 4),
            _ => format!(
                "when = {{ posture = \"p{}\", mfa_within = \"8h\", hours = \"Mon-Sat 05:00-23:00 UTC\" }}\n",
                i % 20
            ),
        };
        let limits = if i % 3 == 0 { "limits = { download = \"2GiB/h\", on_exceed = \"challenge\" }\n" } else { "" };
        writeln!(
            text,
            "[[access]]\nname = \"rule {i}\"\nfrom = [\"group:g{group}\"]\nto = [\"r{to}\"]\n{when}{limits}"
        )
        .expect("text");
    }
    for i in 0..100 {
        writeln!(text, "[[deny]]\nname = \"deny {i}\"\nfrom = [\"group:g{i}\"]\nto = [\"r{}\"]\nwhen = {{ hours = \"Sat-Sun 00:00-24:00 UTC\" }}", i * 7)
            .expect("text");
    }
    text
}

fn person(number: usize) -> RequestContext {
    let groups: BTreeSet<String> = (0..4).map(|i| format!("g{}", (number * 7 + i * 53) % GROUPS)).collect();
    let facts =
        Facts { disk_encrypted: Some(true), firewall: Some(true), security_updates: Some(0), ..Facts::default() };
    RequestContext {
        subject: Subject::User {
            identity: UserIdentity::Local { name: format!("p{number}") },
            display_name: format!("p{number}"),
            groups: Some(groups),
            assurance: Assurance {
                auth_time: Some(NOW),
                acr: None,
                amr: Some(["pwd".to_owned(), "otp".to_owned()].into()),
            },
        },
        device: None,
        machine: None,
        tags: BTreeSet::new(),
        posture: Some(Report { facts, observed_at: NOW }),
        attested: None,
        machine_approved: true,
        approved: vec![],
        restraints: vec![],
        address: Some([192, 0, 2, 7].into()),
        place: Place::default(),
        also: vec![],
        now: NOW,
        instead: None,
    }
}

fn main() {
    let rounds = std::env::args().filter_map(|argument| argument.parse().ok()).next().unwrap_or(5_000_usize);
    let text = document();
    let begin = Instant::now();
    let policy = Policy::parse("policy.toml", &text).unwrap_or_else(|mistakes| panic!("{mistakes}"));
    println!("{RULES} rules read in {:.0} ms", begin.elapsed().as_secs_f64() * 1e3);
    let targets = Targets::new((0..MACHINES).map(|i| {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&i.to_be_bytes());
        TargetNode {
            device: DeviceId::from_bytes(id),
            name: format!("m{i}").parse().expect("a name"),
            tags: [format!("t{}", i % 500).parse().expect("a tag")].into(),
        }
    }));
    let people: Vec<RequestContext> = (0..GROUPS).map(person).collect();
    let mut taken = Vec::with_capacity(rounds);
    let mut given = 0;
    for round in 0..rounds + GROUPS {
        let who = &people[round % people.len()];
        let begin = Instant::now();
        let entitlements = black_box(policy.entitlements(black_box(who), &targets));
        let took = begin.elapsed();
        if round >= GROUPS {
            taken.push(took); // the first round of everybody warms up
            given += entitlements.len();
        }
    }
    taken.sort_unstable();
    let at = |part: usize| taken[(taken.len() * part / 1_000).min(taken.len() - 1)].as_secs_f64() * 1e6;
    println!(
        "{rounds} decisions of {} entitlements each: p50 {:.0} us, p90 {:.0} us, p99 {:.0} us, p99.9 {:.0} us, at most {:.0} us",
        given / rounds,
        at(500),
        at(900),
        at(990),
        at(999),
        at(1_000)
    );
}
