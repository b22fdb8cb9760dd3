//! A device's state decides what it may reach, while connections are open: a fact that changes cuts and opens within seconds, facts
//! that are too old count for nothing, and where a rule asks for attested ones the device's own word does not count.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Chatter, Echo, Host, Signal,
    deployment::{Deployment, Family, Node, PATIENCE, POSTURE_ROOT},
    eventually,
    programs::can_connect,
    talk::PROMPTLY,
};

const POLICY: &str = r#"
[posture.managed]
firewall = true
disk_encrypted = true
checks = ["edr-ok"]
os.linux.distributions = ["debian 12"]
max_age = "20s"

[resource.echo]
nodes = ["tag:echo"]
ports = ["tcp/7000"]

[resource.wiki]
nodes = ["tag:echo"]
ports = ["tcp/7001"]

[[access]]
name = "staff use echo"
from = ["group:staff"]
to = ["echo"]
when = { posture = "managed" }

[[access]]
name = "staff read the wiki"
from = ["group:staff"]
to = ["wiki"]
"#;

const NODE: &str = r#"
[posture.checks.edr-ok]
command = ["/bin/sh", "-c", "echo all good"]
every = "5s"
"#;

/// What `nft --json list ruleset` says with a firewall that drops, and without.
const CLOSED: &str = r#"{"nftables":[{"chain":{"family":"inet","table":"filter","name":"input","type":"filter","hook":"input","policy":"drop"}}]}"#;
const OPEN: &str = r#"{"nftables":[]}"#;

fn put(host: &Host, path: &str, text: &str) -> Result<()> {
    host.write(format!("{POSTURE_ROOT}{path}"), text)
}

/// Makes a machine whose every fact is as the policy wants it.
fn good(host: &Host) -> Result<()> {
    put(host, "/run/nftables.json", CLOSED)?;
    put(host, "/etc/os-release", "ID=debian\nVERSION_ID=\"12\"\n")?;
    put(host, "/proc/sys/kernel/osrelease", "6.1.0-27-amd64\n")?;
    put(host, "/proc/self/mountinfo", "22 1 253:0 / / rw - ext4 /dev/mapper/root rw\n")?;
    put(host, "/sys/dev/block/253:0/dm/uuid", "CRYPT-LUKS2-0123-root\n")
}

struct Scene {
    world: Deployment,
    laptop: Node,
    _server: Node,
    _echo: Echo,
    at: IpAddr,
}

fn scene(name: &str, policy: &str) -> Result<Scene> {
    let world = Deployment::start(name)?;
    world.apply_policy(policy)?;
    world.add_user("alice", &["staff"])?;
    let server = world.server("echo", &["echo"], None)?;
    let echo = server.echo(&[7000, 7001])?;
    let host = world.lab.host("laptop")?;
    good(&host)?;
    let laptop = world.adopt(host, NODE)?;
    world.sign_in(&laptop, "alice")?;
    let at = server.overlay(Family::V6)?;
    Ok(Scene { world, laptop, _server: server, _echo: echo, at })
}

impl Scene {
    fn opens(&self) -> Result<()> {
        eventually(PATIENCE, "echo is not reached", || can_connect(&self.laptop.host, self.at, 7000).then_some(()))
            .with_context(|| format!("{}\n{}", self.explain(), self.laptop.log()))
    }

    fn explain(&self) -> String {
        self.laptop.explain("echo:7000")
    }

    /// Opens a connection over which a line goes forth and back every 100 ms.
    fn chatter(&self) -> Result<Chatter> {
        self.laptop.chatter(self.at, 7000)
    }

    fn facts(&self) -> Result<String> {
        self.world.ctl(&["device", "show", "laptop"])
    }
}

/// Each of the facts alone: it is flipped, the open connection is cut within seconds and `explain` names it; it is put right, and the
/// door opens again.
#[test]
fn a_fact_that_changes_cuts_an_open_connection_and_is_named_and_opens_again() -> Result<()> {
    let scene = scene("posture-flip", POLICY)?;
    scene.opens()?;
    let shown = scene.facts()?;
    for part in
        ["firewall           on", "disk_encrypted     on", "check edr-ok       passed (all good)", "debian 12.0"]
    {
        ensure!(shown.contains(part), "{part:?} is missing in\n{shown}");
    }
    let flips = [
        ("/run/nftables.json", OPEN, "the firewall is off", "ufw enable"),
        ("/sys/dev/block/253:0/dm/uuid", "LVM-0123\n", "disk encryption is off", "LUKS"),
        ("/etc/os-release", "ID=debian\nVERSION_ID=11\n", "its system is debian 11.0", "update the system"),
    ];
    let mut beside = scene.laptop.chatter(scene.at, 7001)?;
    for (file, wrong, named, fix) in flips {
        let mut client = scene.chatter()?;
        put(&scene.laptop.host, file, wrong)?;
        let took = client.is_cut(named)?;
        println!("{named}: the open connection was cut after {took:?}");
        beside.goes_on(named)?;
        let said = scene.explain();
        ensure!(said.contains(named) && said.contains("asks for posture \"managed\"") && said.contains(fix), "{said}");
        let status = scene.laptop.command().args(["status"]).run()?;
        ensure!(status.stdout.contains("posture \"managed\"") && status.stdout.contains(fix), "{}", status.stdout);
        let by_admin = scene.world.explain("alice", "echo");
        ensure!(by_admin.contains(named), "{by_admin}");
        good(&scene.laptop.host)?;
        scene.opens()?;
    }
    // A check by command: its configuration now names one that fails.
    let mut client = scene.chatter()?;
    scene
        .laptop
        .host
        .write("/etc/postern/node.toml", NODE.replace("echo all good", "echo signatures are old; exit 1"))?;
    scene.laptop.signal(Signal::HangUp)?;
    let took = client.is_cut("a check by command")?;
    println!("a check by command: the open connection was cut after {took:?}");
    let said = scene.explain();
    ensure!(said.contains("check edr-ok failed (signatures are old)"), "{said}");
    // Every change stands in the audit log.
    let audit = scene.world.controller.sh("cat /etc/postern-controller/state/audit/*")?;
    ensure!(audit.contains("firewall: on -> off") && audit.contains("firewall: off -> on"), "{audit}");
    Ok(())
}

const MANAGED: &str = r#"
[posture.managed]
secure_boot = true
screen_lock = true
max_security_updates = 0
agents = ["edr"]
checks = ["edr-ok"]
managed_by = "corp-mdm"
os.linux.min_kernel = "6.1"

[resource.echo]
nodes = ["tag:echo"]
ports = ["tcp/7000"]

[resource.wiki]
nodes = ["tag:echo"]
ports = ["tcp/7001"]

[[access]]
name = "managed machines use echo"
from = ["group:staff"]
to = ["echo"]
when = { posture = "managed" }

[[access]]
name = "staff read the wiki"
from = ["group:staff"]
to = ["wiki"]
"#;

const KERNEL: &str = "/proc/sys/kernel/osrelease";
const SECURE_BOOT: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";
const LIST: &str = "/var/lib/apt/lists/security.debian.org_dists_bookworm-security_main_binary-amd64_Packages";
const DCONF: &str = "/etc/dconf/db/local.d/00-lock";
const KDE: &str = "/home/bob/.config/kscreenlockerrc";
const MARKER: &str = "/etc/postern/managed.json";
const UNIT: &str = "/sys/fs/cgroup/system.slice/edr.service/cgroup.procs";
const CHECKED: &str = "/edr-state";

/// What a machine looks like that is managed in every way. Two people sit at it, one with GNOME and one with KDE.
const GOOD: [(&str, &str); 14] = [
    (KERNEL, "6.1.0-27-amd64\n"),
    (SECURE_BOOT, "\u{6}\0\0\0\u{1}"),
    (
        "/var/lib/dpkg/status",
        "Package: openssl\nStatus: install ok installed\nArchitecture: amd64\nVersion: 3.0.14-1\n",
    ),
    ("/var/lib/apt/periodic/update-success-stamp", ""),
    (LIST, "Package: openssl\nArchitecture: amd64\nVersion: 3.0.14-1\n"),
    ("/etc/passwd", "nobody:x:65534:65534::/:/bin/sh\nbob:x:1000:1000::/home/bob:/bin/sh\n"),
    ("/run/systemd/sessions/3", "UID=1001\nTYPE=wayland\nCLASS=user\nSTATE=active\nDESKTOP=gnome\n"),
    ("/run/systemd/sessions/4", "UID=1000\nTYPE=wayland\nCLASS=user\nSTATE=active\nDESKTOP=KDE\n"),
    ("/etc/dconf/db/local.d/locks/screensaver", "/org/gnome/desktop/screensaver/lock-enabled\n"),
    (DCONF, "[org/gnome/desktop/screensaver]\nlock-enabled=true\n"),
    (KDE, "[Daemon]\nAutolock=true\n"),
    (UNIT, "77\n"),
    (CHECKED, "up to date\n"),
    ("/proc/77/comm", "edrd\n"),
];

/// Every further fact alone: the resource that asks for it is cut, the one beside it goes on, both ends explain it, and it opens again.
#[test]
fn each_fact_alone_cuts_what_asks_for_it_and_nothing_else() -> Result<()> {
    let node_toml = |key: &str| {
        format!(
            "[posture.agents.edr]\nunit = \"edr.service\"\n\n[posture.marker]\nfile = \"{MARKER}\"\nkey = \"{key}\"\n\n\
             [posture.checks.edr-ok]\nevery = \"5s\"\n\
             command = [\"/bin/sh\", \"-c\", \"cat {POSTURE_ROOT}{CHECKED}; grep -q date {POSTURE_ROOT}{CHECKED}\"]\n"
        )
    };
    let world = Deployment::start("posture-each")?;
    world.apply_policy(MANAGED)?;
    world.add_user("alice", &["staff"])?;
    let server = world.server("echo", &["echo"], None)?;
    let _echo = server.echo(&[7000, 7001])?;
    let at = server.overlay(Family::V6)?;
    let host = world.lab.host("laptop")?;
    let key = host.sh("openssl genpkey -algorithm ed25519 -out /run/mdm.pem
         openssl pkey -in /run/mdm.pem -pubout -outform DER | tail -c 32 | base64")?;
    let all_good = |host: &Host| GOOD.iter().try_for_each(|(path, text)| put(host, path, text));
    all_good(&host)?;
    let laptop = world.adopt(host, &node_toml(key.trim()))?;
    world.sign_in(&laptop, "alice")?;
    let mut wiki = laptop.chatter(at, 7001)?;
    ensure!(!can_connect(&laptop.host, at, 7000), "it is managed by nobody yet");
    let marker = format!(
        "{{\"device\": \"{}\", \"managed_by\": \"corp-mdm\", \"expires\": \"2099-01-31T00:00:00Z\"}}\n",
        device_of(&world, "laptop")?
    );
    put(&laptop.host, MARKER, &marker)?;
    let at_root = format!("{POSTURE_ROOT}{MARKER}");
    laptop.host.sh(&format!("openssl pkeyutl -sign -rawin -inkey /run/mdm.pem -in {at_root} -out {at_root}.sig"))?;

    let flips = [
        (KERNEL, "5.10.0-8-amd64\n", "its kernel is 5.10"),
        (SECURE_BOOT, "\u{6}\0\0\0\0", "Secure Boot is off"),
        (LIST, "Package: openssl\nArchitecture: amd64\nVersion: 3.0.15-1\n", "1 security updates wait"),
        (DCONF, "[org/gnome/desktop/screensaver]\nlock-enabled=false\n", "the screen lock is off"),
        (KDE, "[Daemon]\nAutolock=false\n", "the screen lock is off"),
        (UNIT, "", "endpoint agent edr does not run"),
        (CHECKED, "signatures are old\n", "check edr-ok failed (signatures are old)"),
        (MARKER, "{}", "the device did not say that corp-mdm manages it"),
    ];
    for (file, wrong, named) in flips {
        let mut echo = laptop.chatter(at, 7000)?;
        put(&laptop.host, file, wrong)?;
        // A check is run every five seconds; every other fact is felt at once.
        let took = echo.is_cut_within(if file == CHECKED { 2 * PROMPTLY } else { PROMPTLY }, named)?;
        println!("{named}: the open connection was cut after {took:?}");
        wiki.goes_on(named)?;
        for said in [laptop.explain("echo:7000"), world.explain("alice", "echo")] {
            ensure!(said.contains(named) && said.contains("asks for posture \"managed\""), "not {named}: {said}");
        }
        all_good(&laptop.host)?;
        put(&laptop.host, MARKER, &marker)?;
    }
    laptop.chatter(at, 7000).map(drop)
}

/// Returns the identifier of a machine.
fn device_of(world: &Deployment, name: &str) -> Result<String> {
    let list = world.ctl_json(&["device", "list"])?;
    let found = list.as_array().into_iter().flatten().find(|view| view["record"]["name"] == name);
    Ok(found.and_then(|view| view["record"]["id"].as_str()).with_context(|| list.to_string())?.to_owned())
}

/// A device that is not heard of is closed when its facts are too old, while its lease would still run.
#[test]
fn facts_that_are_too_old_deny_while_the_lease_would_run() -> Result<()> {
    let scene = scene("posture-age", POLICY)?;
    scene.opens()?;
    let mut client = scene.chatter()?;
    // It reports, and stays open far beyond the age: ten lines a second for half a minute.
    client.reaches(300, "facts that are told again and again").with_context(|| scene.explain())?;
    // Its owner keeps the facts at home: nothing is reported any more.
    scene.laptop.host.write("/etc/postern/node.toml", format!("{NODE}\n[posture]\nreport = false\n"))?;
    scene.laptop.signal(Signal::HangUp)?;
    let took = client.is_cut_within(Duration::from_secs(25), "facts that are too old")?;
    println!("facts of at most 20 s: the open connection was cut {took:?} after the last report was let go");
    let said = scene.explain();
    ensure!(said.contains("and 20 s is accepted") && said.contains("asks for posture \"managed\""), "{said}");
    Ok(())
}

/// Where a rule asks for attested facts, a machine's own word opens nothing, and a device-management system's does, at once.
#[test]
fn an_attested_fact_is_not_taken_from_the_device() -> Result<()> {
    let policy = POLICY.replace("max_age = \"20s\"", "max_age = \"20s\"\nattested = [\"disk_encrypted\"]");
    let scene = scene("posture-attested", &policy)?;
    let denied = eventually(PATIENCE, "explain says nothing of it", || {
        Some(scene.explain()).filter(|said| said.contains("no device management has vouched for this device"))
    })?;
    ensure!(denied.starts_with("denied"), "{denied}");
    ensure!(!can_connect(&scene.laptop.host, scene.at, 7000), "its own word opened the door");
    let import = |encrypted: bool| -> Result<String> {
        let line = format!("{{\"serial\": \"SN-1\", \"facts\": {{\"disk_encrypted\": {encrypted}}}}}\n");
        scene.world.controller.write("/run/mdm.jsonl", line)?;
        scene.world.ctl(&["posture", "import", "/run/mdm.jsonl"])
    };
    let unbound = import(true).err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(unbound.contains("posture bind DEVICE --serial SN-1"), "{unbound}");
    scene.world.ctl(&["posture", "bind", "laptop", "--serial", "SN-1"])?;
    import(true)?;
    scene.opens()?;
    let mut client = scene.chatter()?;
    import(false)?;
    let took = client.is_cut("an attested fact")?;
    println!("an attested fact: the open connection was cut after {took:?}");
    import(true)?;
    scene.opens()?;
    // What was attested outlives a restart of the controller.
    scene.world.stop_controller(Signal::Terminate)?;
    scene.world.start_controller()?;
    scene.opens()?;

    // It is too old where a rule says so, while the device's own facts are fresh.
    let aging = policy.replace("attested = ", "attested_max_age = \"10s\"\nattested = ");
    import(true)?;
    scene.world.apply_policy(&aging)?;
    let mut client = scene.chatter()?;
    client.is_cut_within(Duration::from_secs(15), "attested facts that are too old")?;
    for said in [scene.explain(), scene.world.explain("alice", "echo")] {
        ensure!(said.contains("old, and 10 s is accepted"), "the age is not named: {said}");
    }
    // An exception stands in for it until its end.
    let end = scene.world.controller.sh("date -u -d '+8 seconds' +%Y-%m-%dT%H:%M:%SZ")?;
    let exception = format!(
        "\n[[posture_exception]]\nposture = \"managed\"\nfrom = [\"group:staff\"]\nowner = \"it-security\"\n\
         reason = \"the device management is away\"\nexpires = {}\n",
        end.trim()
    );
    scene.world.apply_policy(&(aging + &exception))?;
    let mut client = scene.chatter()?;
    ensure!(scene.explain().contains("it-security"), "the exception is not named: {}", scene.explain());
    client.is_cut_within(Duration::from_secs(15), "an exception that is over")?;
    for said in [scene.explain(), scene.world.explain("alice", "echo")] {
        ensure!(said.contains("its exception by it-security ended at"), "the exception's end is not named: {said}");
    }
    import(true)?;
    scene.opens()
}

/// The machine's own ruleset and processes, with no tree of files in between: `nft` opens and closes the firewall, a program is started
/// and killed.
#[test]
fn the_kernels_own_notices_are_followed() -> Result<()> {
    let policy = r#"
[posture.guarded]
firewall = true
agents = ["edr"]

[resource.echo]
nodes = ["tag:echo"]
ports = ["tcp/7000"]

[[access]]
name = "guarded machines use echo"
from = ["user:*"]
to = ["echo"]
when = { posture = "guarded" }
"#;
    let world = Deployment::start("posture-real")?;
    world.apply_policy(policy)?;
    world.add_user("alice", &[])?;
    let server = world.server("echo", &["echo"], None)?;
    let echo = server.echo(&[7000])?;
    let host = world.lab.host("laptop")?;
    // A program of its own, so that no other process on the machine is taken for it.
    host.sh("cp /bin/sleep /run/edrd")?;
    let laptop = world.adopt(host, "[posture.agents.edr]\nexe = \"/run/edrd\"\n")?;
    world.sign_in(&laptop, "alice")?;
    let at = server.overlay(Family::V6)?;
    let scene = Scene { world, laptop, _server: server, _echo: echo, at };
    let told = |part: &str| {
        let what = format!("explain does not say: {part}");
        eventually(PATIENCE, &what, || Some(scene.explain()).filter(|said| said.contains(part)))
    };
    told("the firewall is off")?;
    let close = "nft -f - <<E\nadd table inet mine\nadd chain inet mine input { type filter hook input priority 0; policy drop; }\nadd rule inet mine input ct state established,related accept\nadd rule inet mine input iifname \"lo\" accept\nadd rule inet mine input meta l4proto { icmp, ipv6-icmp } accept\nadd rule inet mine input udp dport 51820 accept\nE";
    scene.laptop.host.sh(close)?;
    told("endpoint agent edr does not run")?;
    let edr = scene.laptop.host.command("/run/edrd").arg("600").spawn()?;
    // A process that begins is seen by the slow look; its end at once.
    scene.opens()?;
    let mut client = scene.chatter()?;
    edr.signal(Signal::Kill)?;
    let took = client.is_cut("an endpoint agent that was killed")?;
    println!("the endpoint agent was killed: the open connection was cut after {took:?}");
    let edr = scene.laptop.host.command("/run/edrd").arg("600").spawn()?;
    scene.opens()?;
    let mut client = scene.chatter()?;
    scene.laptop.host.sh("nft delete table inet mine")?;
    let took = client.is_cut("a firewall that was opened")?;
    println!("the firewall was opened: the open connection was cut after {took:?}");
    drop(edr);
    Ok(())
}
