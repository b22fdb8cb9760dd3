//! Killed at any point, restarted, rebooted, with an old state put back: the doors are where they were or closed.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicBool, Ordering::Relaxed},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Background, Signal,
    deployment::{Deployment, Family, Node, PATIENCE},
    eventually,
    programs::{can_connect, http_server},
};

const POLICY: &str = r#"
[resource.app]
nodes = ["tag:app"]
ports = ["tcp/8080"]

[[access]]
name = "staff use the app"
from = ["group:staff"]
to = ["app"]
lease = "2m"
"#;

struct Scene {
    world: Deployment,
    app: Node,
    laptop: Node,
    stranger: Node,
    at: IpAddr,
    laptop_at: IpAddr,
    _servers: Vec<Background>,
}

fn scene(name: &str) -> Result<Scene> {
    let world = Deployment::start(name)?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    world.add_user("bob", &["guests"])?;
    let app = world.server("app", &["app"], None)?;
    let servers = vec![http_server(&app.host, 8080, "secret-word")?, http_server(&app.host, 9090, "other")?];
    let laptop = world.laptop("laptop")?;
    world.sign_in(&laptop, "alice")?;
    let stranger = world.laptop("stranger")?;
    world.sign_in(&stranger, "bob")?;
    let at = app.overlay(Family::V4)?;
    let laptop_at = laptop.overlay(Family::V4)?;
    let scene = Scene { world, app, laptop, stranger, at, laptop_at, _servers: servers };
    scene.opens()?;
    Ok(scene)
}

impl Scene {
    fn opens(&self) -> Result<()> {
        eventually(PATIENCE, "the app is not reached", || can_connect(&self.laptop.host, self.at, 8080).then_some(()))
            .with_context(|| format!("{}\n{}", self.laptop.log(), self.app.log()))
    }

    /// Nothing that no rule names is open, at any time.
    fn closed_elsewhere(&self) -> Result<()> {
        ensure!(!can_connect(&self.laptop.host, self.at, 9090), "a port that no rule names is open");
        ensure!(!can_connect(&self.stranger.host, self.at, 8080), "a stranger comes in");
        Ok(())
    }
}

#[test]
fn killing_node_and_controller_at_random_points_never_opens_a_door_and_leaks_no_clear_packet() -> Result<()> {
    let scene = scene("killing")?;
    let capture = scene.world.lab.capture()?;
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| -> Result<()> {
        // somebody tries all the time: the packets that must never be seen in clear
        let trying = scope.spawn(|| {
            while !over.load(Relaxed) {
                can_connect(&scene.laptop.host, scene.at, 8080);
            }
        });
        let result = (|| -> Result<()> {
            // points that are spread by a fixed sequence, not by a clock
            for (round, delay_ms) in [3u64, 41, 170, 9, 350, 87].into_iter().enumerate() {
                let node = if round % 2 == 0 { &scene.app } else { &scene.laptop };
                node.stop(Signal::Kill)?;
                scene.closed_elsewhere()?;
                let started = node.command().arg("run").spawn()?;
                // let it get somewhere, then kill it there
                let began = Instant::now();
                let there = || (began.elapsed() >= Duration::from_millis(delay_ms)).then_some(());
                eventually(PATIENCE, "time stands still", there)?;
                started.kill();
                scene.closed_elsewhere()?;
                node.start()?;
                if round % 3 == 0 {
                    scene.world.stop_controller(Signal::Kill)?;
                    scene.closed_elsewhere()?;
                    scene.world.start_controller()?;
                }
                scene.opens()?;
            }
            Ok(())
        })();
        over.store(true, Relaxed);
        let _ = trying.join();
        result
    })?;
    let recording = capture.stop()?;
    recording.expect_none(&format!("host {}", scene.at))?;
    recording.expect_none(&format!("host {}", scene.app.overlay(Family::V6)?))?;
    ensure!(!recording.contains(b"secret-word")?, "a page crossed the outer network in clear");
    Ok(())
}

/// Within one boot a node goes on with what it had; after a reboot it has nothing until the controller has spoken.
#[test]
fn a_restart_goes_on_and_a_reboot_stays_closed_without_the_controller() -> Result<()> {
    let scene = scene("reboot")?;
    scene.world.stop_controller(Signal::Kill)?;
    scene.app.stop(Signal::Kill)?;
    scene.app.start()?;
    scene.opens().context("a restart within the boot, the controller away")?;

    scene.app.stop(Signal::Kill)?;
    let programs = http_server(&scene.app.host, 7070, "")?; // dies with the reboot
    programs.kill();
    scene.app.host.reboot()?;
    let forget = "nft delete table inet postern; ip route flush proto 112; ip -6 route flush proto 112";
    scene.app.host.sh(forget).context("the guard and the blackholes were not there")?;
    let _page = http_server(&scene.app.host, 8080, "secret-word");
    scene.app.start()?;
    eventually(PATIENCE, "the overlay is not shut after a reboot", || {
        let guarded = scene.app.host.sh("nft list table inet postern").is_ok();
        let routed = scene.app.host.sh(&format!("ip route get {}", scene.laptop_at)).is_ok();
        (guarded && !routed).then_some(())
    })?;
    ensure!(!can_connect(&scene.laptop.host, scene.at, 8080), "open after a reboot, before the controller has spoken");
    scene.world.start_controller()?;
    scene.opens().context("after a reboot, with the controller back")
}

/// Revoked, and then an older copy of the node's directories is put back while the controller is away.
#[test]
fn an_old_state_directory_put_back_opens_nothing() -> Result<()> {
    let scene = scene("old-state")?;
    let app = &scene.app.host;
    app.sh("mkdir /run/old && cp -a /var/lib/postern /run/old/state && cp -a /run/postern /run/old/runtime")?;
    scene.world.ctl(&["revoke", "session", "alice/laptop", "--reason", "test"])?;
    ensure!(!can_connect(&scene.laptop.host, scene.at, 8080), "revoked");
    scene.world.stop_controller(Signal::Kill)?;
    for put_back in [
        "rm -rf /var/lib/postern/* && cp -a /run/old/state/. /var/lib/postern/",
        "rm -rf /run/postern/* && cp -a /run/old/runtime/. /run/postern/",
    ] {
        scene.app.stop(Signal::Kill)?;
        app.sh(put_back)?;
        scene.app.start()?;
        ensure!(!can_connect(&scene.laptop.host, scene.at, 8080), "an old copy opened a door: {put_back}");
        scene.closed_elsewhere()?;
    }
    Ok(())
}
