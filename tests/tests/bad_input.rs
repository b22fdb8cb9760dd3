//! What people get wrong and what breaks: one clear error that says what, where and what to do; nothing is lost.
//!
//! The programs are the real ones. Each row of a table is one mistake, the words that the error must contain (the place
//! and the way out), and what must be as before.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use postern_tests::{
    Host, Output, Signal,
    deployment::{Deployment, Family, Node, PATIENCE},
    eventually,
    programs::{http_get, http_server},
};

const POLICY: &str = r#"
[resource.wiki]
nodes = ["tag:wiki"]
ports = ["tcp/8080"]

[[access]]
name = "staff reads the wiki"
from = ["group:staff"]
to = ["wiki"]
"#;

const CONTROLLER_TOML: &str = "/etc/postern-controller/controller.toml";

/// Checks that a program ended by itself with an error that has all the words and no debris.
fn refuses(what: &str, said: &Output, words: &[&str]) -> Result<()> {
    let text = &said.stderr;
    ensure!(said.code().is_some_and(|code| (1..=3).contains(&code)), "{what}: ended with {}\n{text}", said.status);
    for word in words {
        ensure!(text.contains(word), "{what}: the error has no {word:?}:\n{text}");
    }
    let debris = ["panicked", "RUST_BACKTRACE", "Os {", "Error {", "unwrap"];
    ensure!(!debris.iter().any(|debris| text.contains(debris)), "{what}: debris in the error:\n{text}");
    ensure!(text.matches("error").count() <= 2 && text.lines().count() <= 14, "{what}: not one clear error:\n{text}");
    Ok(())
}

#[test]
fn a_policy_with_a_mistake_is_refused_with_its_place_and_the_one_in_force_stays() -> Result<()> {
    let world = Deployment::start("bad-policy")?;
    world.apply_policy(POLICY)?;
    let in_force = world.ctl(&["policy", "show"])?;
    let rule = "[[access]]\nname = \"more\"\nfrom = [\"group:staff\"]\n";
    let resource = |text: &str| format!("{POLICY}\n[resource.payroll]\nnodes = [\"tag:payroll\"]\n{text}\n");
    let table = [
        ("broken TOML", format!("{POLICY}\n[[access]\nname = \"x\"\n"), &["bad.toml:11"][..]),
        ("half a file", POLICY[..POLICY.len() - 8].to_owned(), &["bad.toml:9"]),
        (
            "unknown key",
            resource("port = [\"tcp/443\"]"),
            &["unknown key `port`", "did you mean `ports`", "bad.toml:13"],
        ),
        (
            "unknown table",
            format!("{POLICY}\n[[acess]]\nname = \"x\"\n"),
            &["acess", "did you mean `access`", "bad.toml:11"],
        ),
        (
            "duplicate rule",
            format!("{POLICY}{}", POLICY.split_once("[[").map_or("", |(_, r)| &POLICY[POLICY.len() - r.len() - 2..])),
            &["staff reads the wiki", "bad.toml:1"],
        ),
        (
            "duplicate resource",
            format!("{POLICY}\n[resource.wiki]\nnodes = [\"tag:x\"]\nports = [\"tcp/1\"]\n"),
            &["wiki", "bad.toml:11"],
        ),
        (
            "missing resource",
            format!("{POLICY}\n{rule}to = [\"wikki\"]\n"),
            &["wikki", "did you mean", "wiki", "bad.toml:14"],
        ),
        ("ports upside down", resource("ports = [\"tcp/90-80\"]"), &["tcp/90-80", "upside down", "bad.toml:13"]),
        ("no such port", resource("ports = [\"tcp/70000\"]"), &["70000", "bad.toml:13"]),
        (
            "bad duration",
            format!("{POLICY}\n{rule}to = [\"wiki\"]\nlease = \"10 parsecs\"\n"),
            &["10 parsecs", "bad.toml:15"],
        ),
        ("no unit", format!("{POLICY}\n{rule}to = [\"wiki\"]\nlease = 10\n"), &["bad.toml:15"]),
        (
            "a group that is none",
            format!("{POLICY}\n[[access]]\nname = \"x\"\nfrom = [\"staff\"]\nto = [\"wiki\"]\n"),
            &["did you mean \"group:staff\"", "bad.toml:13"],
        ),
    ];
    for (what, text, words) in table {
        world.controller.write("/run/bad.toml", &text)?;
        for command in [
            ["policy", "check", "/run/bad.toml"],
            ["policy", "apply", "/run/bad.toml"],
            ["policy", "plan", "/run/bad.toml"],
        ] {
            let said = world.controller_command()?.args(command).run()?;
            refuses(&format!("{what}, {}", command[1]), &said, words)?;
        }
        ensure!(world.ctl(&["policy", "show"])? == in_force, "{what}: another policy is in force");
    }
    let said = world.controller_command()?.args(["policy", "apply", "/run/nowhere.toml"]).run()?;
    refuses("no such file", &said, &["/run/nowhere.toml"])
}

#[test]
fn a_controller_with_a_mistake_in_its_files_does_not_start_and_loses_nothing() -> Result<()> {
    let world = Deployment::start("bad-controller")?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    let in_force = world.ctl(&["policy", "show"])?;
    world.stop_controller(Signal::Terminate)?;
    let ctl = &world.controller;
    let good = ctl.read(CONTROLLER_TOML)?;
    let changed = |from: &str, to: &str| -> Result<String> {
        ensure!(good.contains(from), "controller.toml has no {from:?}");
        Ok(good.replacen(from, to, 1))
    };
    let serve = || world.controller_command()?.arg("serve").time_limit(PATIENCE).run();
    let table = [
        ("broken TOML", changed("[overlay]", "[overlay")?, &["controller.toml:"][..]),
        (
            "unknown key",
            changed("length = ", "lenght = ")?,
            &["unknown key `lenght`", "did you mean `length`", "controller.toml:"],
        ),
        (
            "bad duration",
            changed("length = \"12h\"", "length = \"12 hours or so\"")?,
            &["12 hours or so", "controller.toml:"],
        ),
        (
            "out of range",
            changed("length = \"12h\"", "length = \"1s\"")?,
            &["out of range", "1m to", "controller.toml:"],
        ),
        (
            "overlapping addresses",
            changed("ipv4 = \"100.96.0.0/16\"", "ipv4 = \"127.0.0.0/16\"")?,
            &["overlaps 127.0.0.0/8", "controller.toml:"],
        ),
        (
            "bits behind the prefix",
            changed("ipv4 = \"100.96.0.0/16\"", "ipv4 = \"100.96.0.1/16\"")?,
            &["did you mean 100.96.0.0/16", "controller.toml:"],
        ),
        ("plain http", changed("url = \"https://", "url = \"http://")?, &["https://", "controller.toml:"]),
        ("no such key file", changed("key_dir = \"keys\"", "key_dir = \"kyes\"")?, &["kyes", "init"]),
    ];
    for (what, text, words) in table {
        ctl.write(CONTROLLER_TOML, &text)?;
        refuses(&format!("{what}, serve"), &serve()?, words)?;
        let said = world.controller_command()?.arg("check").run()?;
        ensure!(!said.success(), "{what}: `check` is content: {}", said.text());
    }
    ctl.write(CONTROLLER_TOML, &good)?;

    // keys that anybody can read
    ctl.sh("chmod 644 /etc/postern-controller/keys/signing.key")?;
    refuses("open key", &serve()?, &["signing.key", "chmod 600"])?;
    ctl.sh("chmod 600 /etc/postern-controller/keys/signing.key")?;

    // ports that others have
    {
        let _other = ctl.command("socat").args(["TCP6-LISTEN:443,fork,reuseaddr,ipv6only=0", "EXEC:cat"]).spawn()?;
        postern_tests::programs::wait_for_tcp_listener(ctl, 443, PATIENCE)?;
        refuses("TCP port", &serve()?, &["TCP port [::]:443 is taken", "`listen` in", CONTROLLER_TOML])?;
    }
    {
        let _other = ctl.command("socat").args(["UDP6-RECVFROM:443,fork,ipv6only=0", "EXEC:cat"]).spawn()?;
        eventually(PATIENCE, "no UDP listener", || {
            (!ctl.sh("ss -Hlun 'sport = :443'").ok()?.is_empty()).then_some(())
        })?;
        refuses("UDP port", &serve()?, &["UDP port", "443 is taken", "probe_listen"])?;
    }

    // a damaged database is refused and left as it is
    let state = "/etc/postern-controller/state";
    ctl.sh(&format!("cp -a {state} /run/state.good; dd if=/dev/urandom of={state}/controller.db bs=4096 seek=1 count=8 conv=notrunc status=none; rm -f {state}/*-wal {state}/*-shm; cp {state}/controller.db /run/damaged"))?;
    refuses("damaged database", &serve()?, &["controller.db", "damaged", "restore"])?;
    ctl.sh(&format!("cmp {state}/controller.db /run/damaged"))?;
    ctl.write(format!("{state}/controller.db"), "this is no database, and never was: it is a letter to my aunt")?;
    refuses("no database", &serve()?, &["controller.db", "damaged", "restore"])?;
    ctl.sh(&format!("rm -rf {state}; mv /run/state.good {state}"))?;

    // after all that, it is as it was
    world.start_controller()?;
    let lines = |text: &str| text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect::<Vec<_>>();
    ensure!(lines(&world.ctl(&["policy", "show"])?) == lines(&in_force), "another policy is in force");
    ensure!(world.ctl(&["user", "list"])?.contains("alice"));
    world.ctl(&["audit", "verify"]).map(drop)
}

#[test]
fn a_controller_whose_disk_is_full_says_so_and_goes_on_when_there_is_room() -> Result<()> {
    let world = Deployment::start_with("bad-disk", |host, config| {
        let state = "/etc/postern-controller/state";
        host.sh(&format!(
            "cp -a {state} /run/kept; mount -t tmpfs -o size=2m,mode=700 tmpfs {state}; cp -a /run/kept/. {state}/"
        ))?;
        Ok(config)
    })?;
    let ctl = &world.controller;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    let server = world.server("wiki", &["wiki"], None)?;
    let _page = http_server(&server.host, 8080, "how we do it")?;
    let laptop = world.laptop("laptop")?;
    world.sign_in(&laptop, "alice")?;
    let url = format!("http://[{}]:8080/", server.overlay(Family::V6)?);
    comes(&laptop, &url)?;
    ctl.sh("dd if=/dev/zero of=/etc/postern-controller/state/ballast bs=4k status=none 2>/dev/null || :")?;
    // the first change that cannot be made durable is refused, or the controller stops rather than pretend
    let said = eventually(PATIENCE, "a full disk is no matter to anybody", || {
        let said = world.controller_command().ok()?.args(["token", "create", "--tag", "wiki"]).run().ok()?;
        (!said.success()).then_some(said)
    })?;
    let log = eventually(PATIENCE, "the log does not say why", || {
        Some(world.controller_log()).filter(|log| log.contains("the disk is full") && log.contains("make room"))
    });
    let log = log.with_context(|| format!("{}\n{}", said.text(), world.controller_log()))?;
    ensure!(!log.contains("panicked") && said.text().contains("its log says why"), "{}\n{log}", said.text());
    comes(&laptop, &url).context("what was allowed stops because the controller's disk is full")?;
    ctl.sh("rm /etc/postern-controller/state/ballast")?;
    if !world.controller_command()?.arg("status").run()?.success() {
        world.start_controller()?;
    }
    ensure!(world.ctl(&["user", "list"])?.contains("alice"));
    world.ctl(&["token", "create", "--tag", "wiki"])?;
    world.ctl(&["audit", "verify"])?;
    comes(&laptop, &url)
}

fn comes(from: &Node, url: &str) -> Result<()> {
    let got = || http_get(&from.host, url, Duration::from_secs(3)).ok();
    eventually(PATIENCE, &format!("{url} does not come"), got).map(drop)
}

#[test]
fn a_node_with_a_mistake_on_its_machine_says_which_and_ends() -> Result<()> {
    let world = Deployment::start("bad-node")?;
    let node = world.server("node", &["wiki"], None)?;
    node.stop(Signal::Terminate)?;
    let host = &node.host;
    let run = || node.command().arg("run").time_limit(PATIENCE).run();

    for (what, text, words) in [
        ("broken TOML", "listen_port = \n", &["node.toml:1"][..]),
        ("unknown key", "lisen_port = 1\n", &["unknown key `lisen_port`", "did you mean `listen_port`", "node.toml:1"]),
        ("bad duration", "key_rotation = \"often\"\n", &["often", "node.toml:1"]),
        ("ports upside down", "[ceiling]\nservices = [\"tcp/9-7\"]\n", &["upside down", "node.toml:2"]),
        ("too small", "mtu = 100\n", &["1280", "node.toml"]),
    ] {
        host.write("/etc/postern/node.toml", text)?;
        refuses(what, &run()?, words)?;
        refuses(what, &node.command().args(["up", world.join_url()]).run()?, words)?;
    }
    host.write("/etc/postern/node.toml", "")?;

    {
        let _other = host.command("socat").args(["UDP6-RECVFROM:51820,fork,ipv6only=0", "EXEC:cat"]).spawn()?;
        eventually(PATIENCE, "no listener", || (!host.sh("ss -Hlun 'sport = :51820'").ok()?.is_empty()).then_some(()))?;
        refuses("occupied port", &run()?, &["UDP port 51820 is in use", "listen_port"])?;
    }

    let nobody = |arguments: &[&str]| {
        let program = postern_tests::binary("postern")?;
        // another place for the program: nobody may not look into everybody's folders
        host.sh(&format!("cp {} /run/postern-program; chmod 755 /run/postern-program", program.display()))?;
        let id = ["--reuid=65534", "--regid=65534", "--clear-groups", "/run/postern-program"];
        host.command("setpriv").args(id).args(arguments).time_limit(PATIENCE).run()
    };
    refuses("no privilege", &nobody(&["run"])?, &["sudo"])?;
    refuses("no privilege", &nobody(&["up", world.join_url()])?, &["sudo"])?;

    host.sh("mount -t tmpfs tmpfs /dev/net")?;
    refuses("no TUN device", &run()?, &["/dev/net/tun", "modprobe tun"])?;
    host.sh("umount /dev/net")?;

    // the machine is fine: so is the agent
    node.start()
}

#[test]
fn a_machine_that_cannot_reach_or_trust_its_controller_says_so() -> Result<()> {
    let world = Deployment::start("bad-way")?;
    let node = world.laptop("node")?;
    let up = |url: &str| node.command().args(["up", url, "--timeout", "8"]).time_limit(PATIENCE).run();
    let (base, pin) = world.join_url().split_once("#k=").context("a pin")?;
    let other: String = pin.chars().map(|c| if c == 'a' { 'b' } else { 'a' }).collect();
    let said = up(&format!("{base}#k={other}"))?;
    refuses("another controller's pin", &said, &["join link"])?;
    node.postern(&["down"])?;
    node.stop(Signal::Terminate)?;
    node.start()?;
    let said = up("https://ctl:4443")?;
    ensure!(said.code() == Some(1), "{} {}", said.status, said.text());
    ensure!(said.text().contains("ctl cannot be reached on TCP port 4443"), "{}", said.text());
    let said = up("https://nowhere.corp.example")?;
    ensure!(said.code() == Some(1) && said.text().contains("nowhere.corp.example"), "{} {}", said.status, said.text());
    let said = up("http://ctl")?;
    ensure!(!said.success() && said.text().contains("https://"), "{} {}", said.status, said.text());
    Ok(())
}

#[test]
fn damaged_state_of_a_node_is_kept_aside_and_said() -> Result<()> {
    let world = Deployment::start("bad-state")?;
    world.apply_policy(POLICY)?;
    let node = world.server("wiki", &["wiki"], None)?;
    node.stop(Signal::Terminate)?;
    let host = &node.host;
    let identity = "/var/lib/postern/identity";
    host.sh(&format!(
        "cp -a {identity} /run/good; dd if=/dev/urandom of={identity} bs=1 seek=40 count=16 conv=notrunc status=none"
    ))?;
    let damaged = host.sh(&format!("sha256sum < {identity}"))?;
    let said = node.command().arg("run").time_limit(PATIENCE).run()?;
    refuses("damaged identity", &said, &[identity, "kept as", "postern up"])?;
    ensure!(host.sh(&format!("sha256sum < {identity}.corrupt-1"))? == damaged, "the damaged file was not kept");
    // put back from a copy, the machine is what it was
    host.sh(&format!("cp -a /run/good {identity}"))?;
    node.start()?;
    eventually(PATIENCE, "it is not enrolled any more", || {
        (node.json(&["status"]).ok()?["machine"] == "wiki").then_some(())
    })?;

    // grants of before that are damaged open nothing, and the agent starts
    node.stop(Signal::Kill)?;
    host.sh("for f in grants; do test -s /run/postern/$f; echo nonsense > /run/postern/$f; done")?;
    node.start()?;
    eventually(PATIENCE, "it does not come back", || (node.json(&["status"]).ok()?["machine"] == "wiki").then_some(()))
}

#[test]
fn a_node_whose_disk_is_full_says_so_and_keeps_its_identity() -> Result<()> {
    let world = Deployment::start("bad-node-disk")?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    let host: Host = world.lab.host("laptop")?;
    host.sh("mkdir -p /var/lib/postern; mount -t tmpfs -o size=64k,mode=700 tmpfs /var/lib/postern; dd if=/dev/zero of=/var/lib/postern/ballast bs=4k status=none 2>/dev/null || :")?;
    let program = postern_tests::binary("postern")?;
    let said = host.command(&program).arg("run").time_limit(PATIENCE).run()?;
    refuses("full disk", &said, &["/var/lib/postern", "disk is full", "free some space"])?;
    host.sh("rm /var/lib/postern/ballast")?;
    let node = world.adopt(host, "")?;
    world.sign_in(&node, "alice").map(drop)
}

/// Returns the resident memory of a program in KiB.
fn resident(host: &Host, program: &str) -> Result<u64> {
    let text =
        host.sh(&format!("grep -h VmRSS $(grep -lx {program} /proc/[0-9]*/comm | head -1 | xargs dirname)/status"))?;
    text.split_whitespace().nth(1).context("no VmRSS")?.parse().context("a number")
}

#[test]
fn malformed_datagrams_and_requests_are_dropped_and_good_clients_are_served() -> Result<()> {
    let world = Deployment::start("bad-wire")?;
    world.apply_policy(POLICY)?;
    world.add_user("alice", &["staff"])?;
    let server = world.server("wiki", &["wiki"], None)?;
    let _page = http_server(&server.host, 8080, "how we do it")?;
    let laptop = world.laptop("laptop")?;
    world.sign_in(&laptop, "alice")?;
    let url = format!("http://[{}]:8080/", server.overlay(Family::V6)?);
    comes(&laptop, &url)?;
    let stranger = world.lab.host("stranger")?;
    let attack = postern_tests::binary("postern-attack")?;
    let (node_before, controller_before) =
        (resident(&server.host, "postern")?, resident(&world.controller, "postern-control")?);

    // datagrams at the node, and at the controller's probe port
    let drops = |node: &Node| -> Result<u64> {
        let status = node.json(&["status"])?;
        let list = status["drops"].as_array().cloned().unwrap_or_default();
        Ok(list.iter().filter_map(|drop| drop[1].as_u64()).sum())
    };
    let before = drops(&server)?;
    for (to, port, seed) in [(&server.host, 51820, "1"), (&server.host, 51820, "2"), (&world.controller, 443, "3")] {
        let to = format!("{}:{port}", to.ipv4());
        let said =
            stranger.command(&attack).args(["spray", "--to", &to, "--count", "5000", "--seed", seed]).run()?.ok()?;
        ensure!(said.contains("\"answers\":0"), "garbage is answered: {said}");
    }
    eventually(PATIENCE, "nothing was counted", || (drops(&server).ok()? > before).then_some(()))?;
    comes(&laptop, &url)?;

    // bytes that are no TLS, and TLS with bytes that are no HTTP, and HTTP that is none of ours
    stranger.write("/run/ca.pem", world.controller.read("/etc/postern-controller/keys/ca.crt")?)?;
    stranger.sh("head -c 3000000 /dev/urandom | timeout 20 ncat ctl 443 >/dev/null 2>&1 || :")?;
    for (request, answers) in [
        ("GARBAGE", &["400", ""][..]),
        ("GET / HTTP/9.9\\r\\n\\r\\n", &["400", "505", ""]),
        ("GET /../../etc/passwd HTTP/1.1\\r\\nHost: ctl\\r\\nConnection: close\\r\\n\\r\\n", &["404", "400"]),
        ("BREW / HTTP/1.1\\r\\nHost: ctl\\r\\nConnection: close\\r\\n\\r\\n", &["403", "405"]),
        (
            "POST /sign-in HTTP/1.1\\r\\nHost: ctl\\r\\nOrigin: https://ctl\\r\\nContent-Length: 99999999999\\r\\n\\r\\nx",
            &["413", "400", "403"],
        ),
        (
            "POST /sign-in HTTP/1.1\\r\\nHost: ctl\\r\\nContent-Length: 5\\r\\nTransfer-Encoding: chunked\\r\\n\\r\\n0\\r\\n\\r\\n",
            &["400", "403", "415"],
        ),
        ("GET /v1/node HTTP/1.1\\r\\nHost: ctl\\r\\nConnection: close\\r\\n\\r\\n", &["400", "404", "426"]),
    ] {
        let line = format!(
            "printf '{request}' | timeout 8 openssl s_client -quiet -verify_return_error -CAfile /run/ca.pem -connect ctl:443 2>/dev/null | head -1 || :"
        );
        let first = stranger.sh(&line)?;
        let status = first.split_whitespace().nth(1).unwrap_or("");
        ensure!(answers.contains(&status), "{request}: {first:?}");
    }
    let long = stranger.sh("head -c 300000 /dev/zero | tr '\\0' a > /run/long; curl -s -o /dev/null -w '%{http_code}' --max-time 10 --cacert /run/ca.pem -H @/run/long https://ctl/ || :")?;
    ensure!(!long.starts_with('2'), "a header of 300 KB is taken: {long}");

    // messages on the stream that are none
    stranger.write("/run/stream.py", STREAM)?;
    let said = stranger.command("python3").args(["/run/stream.py"]).time_limit(PATIENCE).run()?.ok()?;
    ensure!(said.lines().all(|line| line.contains("closed")) && said.lines().count() == 6, "{said}");

    comes(&laptop, &url)?;
    ensure!(world.ctl(&["status"])?.contains("2 of 2 machines connected"), "{}", world.ctl(&["status"])?);
    let (node, controller) = (resident(&server.host, "postern")?, resident(&world.controller, "postern-control")?);
    ensure!(node < node_before + 8_192, "the node grew from {node_before} to {node} KiB");
    ensure!(
        controller < controller_before + 24_576,
        "the controller grew from {controller_before} to {controller} KiB"
    );
    Ok(())
}

/// A client of the stream that has no manners: each line of output is one attempt, and how it ended.
const STREAM: &str = r#"
import base64, os, socket, ssl, struct
def attempt(name, frames):
    context = ssl.create_default_context(cafile="/run/ca.pem")
    stream = context.wrap_socket(socket.create_connection(("ctl", 443), timeout=15), server_hostname="ctl")
    key = base64.b64encode(os.urandom(16)).decode()
    stream.sendall(f"GET /v1/node HTTP/1.1\r\nHost: ctl\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        more = stream.recv(1)
        if not more: break
        head += more
    if b" 101 " not in head:
        print(name, "no upgrade", head[:60]); return
    try:
        for frame in frames: stream.sendall(frame)
        while stream.recv(65536): pass
        print(name, "closed")
    except (ConnectionError, ssl.SSLError): print(name, "closed")
    except TimeoutError: print(name, "still open after 15 s")
def frame(opcode, payload, mask=True, length=None):
    length = len(payload) if length is None else length
    head = bytes([0x80 | opcode]) + (bytes([(0x80 if mask else 0) | 127]) + struct.pack(">Q", length))
    return head + (b"\0\0\0\0" if mask else b"") + payload
attempt("no JSON", [frame(1, b"hello?")])
attempt("JSON of somebody else", [frame(1, b'{"type":"open_sesame"}')])
attempt("deep JSON", [frame(1, b"[" * 200000)])
attempt("binary", [frame(2, os.urandom(5000))])
attempt("a length beyond everything", [frame(1, b"x", length=1 << 62)])
attempt("not masked", [frame(1, b"{}", mask=False)])
"#;
