//! The lab itself: what it promises to every other scenario.

use std::{
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::Result;
use postern_tests::{Lab, LinkQuality, Signal, eventually, programs};

const SOON: Duration = Duration::from_secs(10);

#[test]
fn machines_reach_each_other_over_both_families_and_nobody_else() -> Result<()> {
    let lab = Lab::new("reach")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    for address in [b.ipv4(), b.ipv6()] {
        a.command("ping").args(["-c1", "-W2", &address.to_string()]).run()?.ok()?;
    }
    a.command("ping").args(["-c1", "-W2", "b"]).run()?.ok()?;
    assert!(a.sh("ip route show default; ip -6 route show default")?.is_empty(), "there is a way out of the lab");
    Ok(())
}

#[test]
fn files_of_a_machine_are_its_own() -> Result<()> {
    let lab = Lab::new("files")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let machine = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    a.sh("echo 'nameserver 192.0.2.53' > /etc/new && mv /etc/new /etc/resolv.conf; mkdir -p /var/lib/thing; echo x > /run/y")?;
    assert_eq!(a.read("/etc/resolv.conf")?, "nameserver 192.0.2.53\n");
    assert!(!b.read("/etc/resolv.conf")?.contains("nameserver"));
    assert_eq!(std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(), machine);
    assert!(!std::path::Path::new("/var/lib/thing").exists() && !std::path::Path::new("/run/y").exists());
    Ok(())
}

#[test]
fn a_program_ends_with_its_handle_and_its_children_with_the_machine() -> Result<()> {
    let lab = Lab::new("ends")?;
    let host = lab.host("a")?;
    let sleeper = host.command("sh").args(["-c", "setsid sleep 1000 & exec sleep 1001"]).spawn()?;
    let is_there = |what: &str| host.command("pgrep").args(["-fx", what]).run().is_ok_and(|found| found.success());
    eventually(SOON, "both sleep", || (is_there("sleep 1000") && is_there("sleep 1001")).then_some(()))?;
    drop(sleeper);
    eventually(SOON, "the program ends", || (!is_there("sleep 1001")).then_some(()))?;
    let outer: Vec<u32> = std::fs::read_dir("/proc")?
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid: &u32| std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x001000\0"))
        .collect();
    assert!(is_there("sleep 1000"), "a daemon goes on until its machine ends");
    drop((host, lab));
    for pid in outer {
        eventually(SOON, "the daemon ends with its machine", || {
            (!std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"sleep\x001000\0")).then_some(())
        })?;
    }
    Ok(())
}

#[test]
fn a_program_learns_of_signals_and_tells_how_it_ended() -> Result<()> {
    let lab = Lab::new("signals")?;
    let host = lab.host("a")?;
    let mut program = host
        .command("sh")
        .args(["-c", "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done"])
        .spawn()?;
    program.wait_for_output("up", SOON)?;
    program.signal(Signal::Terminate)?;
    assert_eq!(program.wait(SOON)?.code(), Some(7));
    assert!(program.output().contains("bye"));
    let late = host.command("sleep").arg("1000").time_limit(Duration::from_millis(200)).run();
    assert!(late.is_err_and(|error| error.to_string().contains("stdout")), "a time limit is an error");
    Ok(())
}

#[test]
fn nothing_is_left_after_kill_9_of_a_test() -> Result<()> {
    // This test runs itself once more as the victim.
    if std::env::var_os("LAB_VICTIM").is_some() {
        let lab = Lab::new("victim")?;
        let host = lab.host("a")?;
        let _sleeper = host.command("sleep").arg("31416").spawn()?;
        println!("victim ready");
        loop {
            std::thread::park();
        }
    }
    let mut victim = Command::new(std::env::current_exe()?)
        .args(["--exact", "nothing_is_left_after_kill_9_of_a_test", "--nocapture"])
        .env("LAB_VICTIM", "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let stdout = victim.stdout.take().expect("it was piped");
    let ready = std::io::BufRead::lines(std::io::BufReader::new(stdout))
        .any(|line| line.is_ok_and(|l| l.contains("victim ready")));
    assert!(ready);
    let sleepers = || {
        let found = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        found
            .filter(|entry| std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| line == b"sleep\x0031416\0"))
            .count()
    };
    eventually(SOON, "the victim's program runs", || (sleepers() == 1).then_some(()))?;
    victim.kill()?;
    victim.wait()?;
    eventually(SOON, "the victim's machine ends", || (sleepers() == 0).then_some(()))
}

#[test]
fn a_recording_shows_what_was_on_the_wire() -> Result<()> {
    let lab = Lab::new("capture")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let _server = programs::http_server(&b, 8080, "a page in the clear")?;
    let capture = lab.capture()?;
    let url = format!("http://{}:8080/", b.ipv4());
    assert_eq!(programs::http_get(&a, &url, SOON)?, "a page in the clear");
    let recording = capture.stop()?;
    assert!(recording.contains(b"a page in the clear")?);
    assert!(!recording.packets(&format!("tcp and host {}", b.ipv4()))?.is_empty());
    recording.expect_none(&format!("host {}", lab.network().ipv4(99)))?;
    assert!(recording.expect_none("tcp port 8080").is_err());
    Ok(())
}

#[test]
fn a_machine_that_roams_has_other_addresses_and_is_reached_there() -> Result<()> {
    let lab = Lab::new("roam")?;
    let (a, b) = (lab.host("a")?, lab.host("b")?);
    let before = b.ipv4();
    lab.network().roam(&b, "eth0")?;
    assert_ne!(b.ipv4(), before);
    for address in [b.ipv4(), b.ipv6()] {
        a.command("ping").args(["-c1", "-W2", &address.to_string()]).run()?.ok()?;
    }
    assert!(!a.command("ping").args(["-c1", "-W1", &before.to_string()]).run()?.success());
    Ok(())
}

#[test]
fn a_machine_behind_a_router_reaches_out_and_is_not_reached() -> Result<()> {
    let lab = Lab::new("nat")?;
    let outside = lab.host("outside")?;
    let home = lab.new_network("home")?;
    let router = lab.nat_router("router", lab.network(), &home)?;
    let laptop = lab.host_on("laptop", &home)?;
    lab.via_router(&laptop, &router)?;
    for (there, here) in [(outside.ipv4(), laptop.ipv4()), (outside.ipv6(), laptop.ipv6())] {
        laptop.command("ping").args(["-c1", "-W2", &there.to_string()]).run()?.ok()?;
        assert!(!outside.command("ping").args(["-c1", "-W1", &here.to_string()]).run()?.success());
    }
    Ok(())
}

#[test]
fn a_bad_cable_delays_and_loses() -> Result<()> {
    let lab = Lab::new("link")?;
    let a = lab.host("a")?;
    let quality = LinkQuality { delay: Duration::from_millis(40), loss_percent: 0 };
    let (b, link) = lab.host_behind("b", lab.network(), quality)?;
    let ping = || a.command("ping").args(["-c1", "-W2", &b.ipv4().to_string()]).run();
    ping()?.ok()?;
    let began = Instant::now();
    ping()?.ok()?;
    assert!(began.elapsed() >= Duration::from_millis(80), "both ways take 40 ms more: {:?}", began.elapsed());
    drop(link);
    eventually(SOON, "a good cable again", || ping().is_ok_and(|output| output.success()).then_some(()))?;
    let (c, _link) = lab.host_behind("c", lab.network(), LinkQuality { delay: Duration::ZERO, loss_percent: 100 })?;
    assert!(!a.command("ping").args(["-c1", "-W1", &c.ipv4().to_string()]).run()?.success());
    Ok(())
}
