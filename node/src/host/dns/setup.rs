//! The machine's name configuration: who asks our resolver, and how everything comes back as it was.
//!
//! Two ways. Where systemd-resolved answers for the machine, the tunnel's link gets our resolver for the overlay's
//! domain alone: after a crash no other name suffers, and resolved forgets it when `down` takes the link away. Elsewhere
//! `/etc/resolv.conf` names our resolver first and the former servers after it; the former file is kept in the state directory *before*
//! ours is put in place, so that the next start, or `down`, can put it back after a crash. In between names still
//! resolve: the C library goes on to the next server when ours is not there.
//!
//! A file that somebody else wrote since (a DHCP client) is newer than what we kept: it is taken as the new original
//! while the node runs, and left alone when it stops.

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The first line of a `resolv.conf` of ours.
const MARK: &str = "# Written by postern; `postern down` puts the former file back.";
/// The name of the kept original in the state directory.
const KEPT: &str = "resolv.conf.kept";
/// The C library reads no more servers than this (`MAXNS`).
const MAX_SERVERS: usize = 3;
/// The most bytes of a `resolv.conf`.
const MAX_BYTES: u64 = 64 << 10;
/// The most reverse domains that are told to systemd-resolved.
const MAX_REVERSE: usize = 16;

/// Who answers for the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsMode {
    /// systemd-resolved; our resolver is asked for our domain alone.
    Resolved,
    /// `/etc/resolv.conf`; our resolver is asked first for everything.
    ResolvConf,
}

/// What was found when the configuration was looked at again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DnsEnsured {
    /// It was as we left it.
    InPlace,
    /// Somebody had changed it; ours is in place again, and these are the servers for everything else now.
    Renewed(Vec<SocketAddr>),
}

/// What keeps the machine from asking us.
#[derive(Debug, thiserror::Error)]
pub enum DnsError {
    /// A file cannot be read or written.
    #[error("cannot {action} {}", path.display())]
    File {
        /// `read`, `write`, ...
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// resolvectl said no.
    #[error("systemd-resolved refuses: {0}")]
    Resolved(String),
}

fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> DnsError {
    let path = path.to_owned();
    move |source| DnsError::File { action, path, source }
}

/// The former `resolv.conf`, kept on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Original {
    /// It was a symbolic link.
    Link(PathBuf),
    /// It was a file.
    Text(String),
    /// There was none.
    Missing,
}

/// Where things are. Only tests have them elsewhere.
#[derive(Debug, Clone)]
pub struct Places {
    /// `/etc/resolv.conf`.
    pub resolv_conf: PathBuf,
    /// The node's state directory, which outlives a crash.
    pub state: PathBuf,
    /// `/run/systemd/resolve`, which is there while systemd-resolved runs.
    pub resolved: PathBuf,
}

impl Places {
    /// The machine's own, with the node's state directory.
    pub fn new(state: &Path) -> Self {
        Self {
            resolv_conf: "/etc/resolv.conf".into(),
            state: state.to_owned(),
            resolved: "/run/systemd/resolve".into(),
        }
    }

    fn kept(&self) -> PathBuf {
        self.state.join(KEPT)
    }
}

/// The machine's name configuration while it asks us. Dropping it changes nothing; call [`DnsSetup::restore`].
#[derive(Debug)]
pub struct DnsSetup {
    places: Places,
    mode: DnsMode,
    resolver: IpAddr,
    domain: String,
    written: String,
}

impl DnsSetup {
    /// Repairs what a crashed node left behind, and tells who answers for the machine and which servers it asks. Call
    /// it before [`DnsSetup::install`], and give the servers to the resolver.
    ///
    /// # Errors
    /// Fails when `resolv.conf` cannot be read or put back.
    pub fn prepare(places: &Places) -> Result<(DnsMode, Vec<SocketAddr>), DnsError> {
        restore(places)?;
        let text = read(&places.resolv_conf)?.unwrap_or_default();
        let mode = if is_resolved_stub(places, &text) { DnsMode::Resolved } else { DnsMode::ResolvConf };
        Ok((mode, servers(&text)))
    }

    /// Makes the machine ask `resolver` (port 53) for names under `domain`. `link` is the tunnel's interface.
    ///
    /// # Errors
    /// Fails when a file cannot be written or systemd-resolved refuses; then names resolve as before.
    pub fn install(
        places: Places,
        mode: DnsMode,
        resolver: IpAddr,
        domain: &str,
        link: &str,
        overlay: &[IpNet],
    ) -> Result<Self, DnsError> {
        let domain = domain.trim_matches('.').to_owned();
        let mut setup = Self { places, mode, resolver, domain, written: String::new() };
        match mode {
            DnsMode::Resolved => setup.tell_resolved(link, overlay)?,
            DnsMode::ResolvConf => {
                setup.take_over()?;
            }
        }
        Ok(setup)
    }

    /// Looks whether the configuration is still ours; takes over again what somebody else wrote meanwhile.
    ///
    /// # Errors
    /// As [`DnsSetup::install`].
    pub fn ensure(&mut self) -> Result<DnsEnsured, DnsError> {
        match self.mode {
            DnsMode::Resolved => Ok(DnsEnsured::InPlace), // resolved keeps it as long as the link is there
            DnsMode::ResolvConf => {
                if read(&self.places.resolv_conf)?.as_deref() == Some(self.written.as_str()) {
                    Ok(DnsEnsured::InPlace)
                } else {
                    self.take_over().map(DnsEnsured::Renewed)
                }
            }
        }
    }

    /// Puts everything back as it was. Also works for what a crashed node left behind: see [`restore`].
    ///
    /// # Errors
    /// Fails when a file cannot be written; the kept original then stays for the next attempt.
    pub fn restore(self) -> Result<(), DnsError> {
        restore(&self.places).map(drop)
    }

    /// Returns who answers for the machine.
    pub fn mode(&self) -> DnsMode {
        self.mode
    }

    fn take_over(&mut self) -> Result<Vec<SocketAddr>, DnsError> {
        let path = &self.places.resolv_conf;
        let current = read(path)?;
        if current.as_deref().is_some_and(|text| text.starts_with(MARK)) {
            // Ours, though changed: the kept original stays the original.
            let former = match load(&self.places.kept())? {
                Some(original) => text_of(&original, path),
                None => String::new(),
            };
            self.written = ours(self.resolver, &self.domain, &former);
            replace(path, &self.written)?;
            return Ok(servers(&former));
        }
        let original = match (fs::read_link(path), current) {
            (Ok(target), _) => Original::Link(target),
            (Err(_), Some(text)) => Original::Text(text),
            (Err(_), None) => Original::Missing,
        };
        let former = text_of(&original, path);
        let kept = self.places.kept();
        let json = serde_json::to_string(&original).expect("a text has a JSON form");
        replace(&kept, &json)?; // on disk before ours is in place
        self.written = ours(self.resolver, &self.domain, &former);
        replace(path, &self.written)?;
        Ok(servers(&former))
    }

    fn tell_resolved(&self, link: &str, overlay: &[IpNet]) -> Result<(), DnsError> {
        let mut domains = vec![format!("~{}", self.domain)];
        domains.extend(overlay.iter().flat_map(reverse_domains).take(MAX_REVERSE).map(|domain| format!("~{domain}")));
        resolvectl(&["dns", link, &self.resolver.to_string()])?;
        let mut arguments = vec!["domain", link];
        arguments.extend(domains.iter().map(String::as_str));
        resolvectl(&arguments)?;
        // However the machine is set up: ours speaks plain DNS on the loopback, does not sign, and is asked by unicast alone.
        for setting in ["default-route", "dnsovertls", "dnssec", "llmnr", "mdns"] {
            resolvectl(&[setting, link, "no"])?;
        }
        Ok(())
    }
}

/// What a repair found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Restored {
    /// Nothing of ours was left.
    Nothing,
    /// The former `resolv.conf` is back.
    Original,
    /// Somebody else had written it since; theirs stays.
    Foreign,
}

/// Puts `resolv.conf` back as it was before a node took it over, whichever node and however it ended.
///
/// # Errors
/// Fails when a file cannot be read or written; the kept original then stays for the next attempt.
pub fn restore(places: &Places) -> Result<Restored, DnsError> {
    let kept = places.kept();
    let Some(original) = load(&kept)? else { return Ok(Restored::Nothing) };
    let path = &places.resolv_conf;
    let is_ours = read(path)?.is_none_or(|text| text.starts_with(MARK));
    if is_ours {
        match &original {
            Original::Text(text) => replace(path, text)?,
            Original::Link(target) => {
                let beside = beside(path);
                let _ = fs::remove_file(&beside);
                symlink(target, &beside).and_then(|()| fs::rename(&beside, path)).map_err(file("put back", path))?;
            }
            Original::Missing => match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(file("remove", path)(error)),
                Ok(()) | Err(_) => {}
            },
        }
    }
    fs::remove_file(&kept).map_err(file("remove", &kept))?;
    Ok(if is_ours { Restored::Original } else { Restored::Foreign })
}

/// Writes our `resolv.conf`: our resolver, the former servers behind it, and every other line of the former file.
fn ours(resolver: IpAddr, domain: &str, former: &str) -> String {
    let mut text = format!("{MARK}\n# Names under {domain} are answered by {resolver}.\nnameserver {resolver}\n");
    let former_servers = servers(former).into_iter().map(|server| server.ip()).filter(|server| *server != resolver);
    for server in former_servers.take(MAX_SERVERS - 1) {
        text.push_str(&format!("nameserver {server}\n"));
    }
    for line in former.lines() {
        let word = line.split_whitespace().next().unwrap_or("");
        if matches!(word, "search" | "domain" | "options" | "sortlist") {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Returns the servers that a `resolv.conf` names, ours left out by its mark.
fn servers(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("nameserver")?.split_whitespace().next()?.parse::<IpAddr>().ok())
        .map(|address| SocketAddr::new(address, 53))
        .take(MAX_SERVERS)
        .collect()
}

/// Early in a boot systemd-resolved's file may be missing yet: the link to it must not be taken for a file of nobody's.
fn is_resolved_stub(places: &Places, text: &str) -> bool {
    if fs::read_link(&places.resolv_conf).is_ok_and(|target| target.ends_with("systemd/resolve/stub-resolv.conf")) {
        return true;
    }
    let stub: IpAddr = IpAddr::from([127, 0, 0, 53]);
    places.resolved.exists() && servers(text).iter().any(|server| server.ip() == stub)
}

fn text_of(original: &Original, path: &Path) -> String {
    match original {
        Original::Text(text) => text.clone(),
        Original::Missing => String::new(),
        Original::Link(target) => {
            let target = path.parent().map_or_else(|| target.clone(), |parent| parent.join(target));
            read(&target).ok().flatten().unwrap_or_default()
        }
    }
}

fn load(kept: &Path) -> Result<Option<Original>, DnsError> {
    match read(kept)? {
        None => Ok(None),
        // The kept file is replaced atomically: one that cannot be read was not written by us.
        Some(text) => serde_json::from_str(&text).map(Some).map_err(|error| file("understand", kept)(error.into())),
    }
}

fn read(path: &Path) -> Result<Option<String>, DnsError> {
    let opened = match fs::File::open(path) {
        Ok(opened) => opened,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(file("read", path)(error)),
    };
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut io::Read::take(opened, MAX_BYTES), &mut bytes).map_err(file("read", path))?;
    Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".postern-new");
    path.with_file_name(name)
}

/// Replaces a file so that a reader, or a crash, sees the old text or the new one.
fn replace(path: &Path, text: &str) -> Result<(), DnsError> {
    let beside = beside(path);
    let written = fs::File::create(&beside).and_then(|mut new| {
        // Everybody resolves names; the service's umask must not lock all but root out.
        new.set_permissions(fs::Permissions::from_mode(0o644))?;
        io::Write::write_all(&mut new, text.as_bytes())?;
        new.sync_all()
    });
    let renamed = written.and_then(|()| fs::rename(&beside, path));
    match renamed {
        Ok(()) => {
            // The rename is on disk once the folder is; a file system without that (overlayfs of old) loses nothing else.
            if let Some(Ok(folder)) = path.parent().map(fs::File::open) {
                let _ = folder.sync_all();
            }
            Ok(())
        }
        Err(error) => {
            let _ = fs::remove_file(&beside);
            // Container engines mount the file itself, and a mount point cannot be renamed over. One write is the best
            // that such a place allows.
            if error.raw_os_error() == Some(libc::EBUSY) {
                return fs::write(path, text).map_err(file("write", path));
            }
            Err(file("write", path)(error))
        }
    }
}

/// Returns the reverse domains of a prefix: one where it ends at a label, else every label that it covers.
fn reverse_domains(prefix: &IpNet) -> Vec<String> {
    let (bits_per_label, suffix) = match prefix {
        IpNet::V4(_) => (8, "in-addr.arpa"),
        IpNet::V6(_) => (4, "ip6.arpa"),
    };
    let labels = prefix.prefix_len().div_ceil(bits_per_label);
    let length = labels * bits_per_label;
    let Ok(parts) = prefix.subnets(length) else { return Vec::new() };
    parts
        .take(MAX_REVERSE)
        .map(|part| {
            let digits: Vec<String> = match part {
                IpNet::V4(part) => part.addr().octets().iter().map(u8::to_string).collect(),
                IpNet::V6(part) => {
                    let octets = part.addr().octets();
                    octets.iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| format!("{digit:x}")).collect()
                }
            };
            let mut name: Vec<&str> = digits.iter().take(usize::from(labels)).map(String::as_str).collect();
            name.reverse();
            name.push(suffix);
            name.join(".")
        })
        .collect()
}

fn resolvectl(arguments: &[&str]) -> Result<(), DnsError> {
    let output = Command::new("resolvectl")
        .args(arguments)
        .output()
        .map_err(|error| DnsError::Resolved(format!("cannot start resolvectl: {error}")))?;
    if output.status.success() {
        Ok(())
    } else {
        Err(DnsError::Resolved(String::from_utf8_lossy(&output.stderr).trim().chars().take(300).collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(folder: &Path) -> Places {
        Places { resolv_conf: folder.join("resolv.conf"), state: folder.to_owned(), resolved: folder.join("resolved") }
    }

    fn install(places: &Places) -> DnsSetup {
        let (mode, _) = DnsSetup::prepare(places).unwrap();
        DnsSetup::install(places.clone(), mode, [127, 83, 0, 1].into(), "internal", "postern0", &[]).unwrap()
    }

    #[test]
    fn ours_comes_first_and_the_former_servers_stay_behind_it() {
        let former = "# old\nsearch corp.example\nnameserver 192.0.2.1\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n";
        let text = ours([127, 83, 0, 1].into(), "internal", former);
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let expected = ["nameserver 127.83.0.1", "nameserver 192.0.2.1", "nameserver 192.0.2.2", "search corp.example"];
        assert_eq!(lines, expected);
    }

    #[test]
    fn a_crash_between_any_two_steps_is_repaired() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        fs::write(&places.resolv_conf, "nameserver 192.0.2.1\n").unwrap();
        // After the original was kept and before ours was in place.
        let kept = serde_json::to_string(&Original::Text("nameserver 192.0.2.1\n".into())).unwrap();
        fs::write(places.kept(), kept).unwrap();
        assert_eq!(restore(&places).unwrap(), Restored::Foreign);
        assert_eq!(read(&places.resolv_conf).unwrap().unwrap(), "nameserver 192.0.2.1\n");
        // After ours was in place; the next node starts over and keeps the true original.
        drop(install(&places));
        let setup = install(&places);
        setup.restore().unwrap();
        assert_eq!(read(&places.resolv_conf).unwrap().unwrap(), "nameserver 192.0.2.1\n");
        assert_eq!(restore(&places).unwrap(), Restored::Nothing);
    }

    #[test]
    fn everybody_may_read_what_was_written_whatever_the_umask() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        fs::write(&places.resolv_conf, "nameserver 192.0.2.1\n").unwrap();
        // As a strict umask would leave the file beside, before the rename.
        fs::write(beside(&places.resolv_conf), "").unwrap();
        fs::set_permissions(beside(&places.resolv_conf), fs::Permissions::from_mode(0o600)).unwrap();
        let setup = install(&places);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&places.resolv_conf), 0o644);
        setup.restore().unwrap();
        assert_eq!(mode(&places.resolv_conf), 0o644);
    }

    #[test]
    fn a_file_that_was_missing_is_missing_again() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        install(&places).restore().unwrap();
        assert!(!places.resolv_conf.exists());
    }

    #[test]
    fn a_link_to_systemd_resolved_is_left_alone_before_it_has_started() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        symlink("../run/systemd/resolve/stub-resolv.conf", &places.resolv_conf).unwrap();
        assert_eq!(DnsSetup::prepare(&places).unwrap(), (DnsMode::Resolved, vec![]));
    }

    #[test]
    fn what_a_dhcp_client_writes_becomes_the_new_original() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        fs::write(&places.resolv_conf, "nameserver 192.0.2.1\n").unwrap();
        let mut setup = install(&places);
        assert_eq!(setup.ensure().unwrap(), DnsEnsured::InPlace);
        fs::write(&places.resolv_conf, "nameserver 192.0.2.7\n").unwrap();
        assert_eq!(setup.ensure().unwrap(), DnsEnsured::Renewed(vec!["192.0.2.7:53".parse().unwrap()]));
        setup.restore().unwrap();
        assert_eq!(read(&places.resolv_conf).unwrap().unwrap(), "nameserver 192.0.2.7\n");
    }

    #[test]
    fn reverse_domains_cover_the_prefix() {
        let domains = |text: &str| reverse_domains(&text.parse().unwrap());
        assert_eq!(domains("100.64.0.0/16"), ["64.100.in-addr.arpa"]);
        assert_eq!(domains("10.8.0.0/14").len(), 4);
        assert_eq!(domains("fd5a:1::/48"), ["0.0.0.0.1.0.0.0.a.5.d.f.ip6.arpa"]);
    }
}
