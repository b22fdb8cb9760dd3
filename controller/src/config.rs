//! The controller's configuration: `controller.toml`, and where everything that belongs to it lies.
//!
//! ```text
//! controller.toml --diagnostics::from_toml--> Written (as in the file) --check--> Config (paths resolved, checked)
//! ```
//!
//! Paths in the file are relative to the file's folder. Secrets are never in it: they are files of their own, for their
//! owner alone. Every mistake is shown with its line; nothing is guessed.

use std::{
    net::{IpAddr, SocketAddr},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use postern_common::{
    diagnostics::{self, ByteSize, Diagnostic, Diagnostics, HumanDuration},
    net::private_space,
};
use serde::Deserialize;
use toml::Spanned;

use crate::{
    identity::machine::settings::{self as machine_settings, MachineIssuer},
    serve::{
        clock,
        files::{self, FileError},
        proxy_protocol::TrustedProxies,
        tls,
    },
    signals::{
        alerts::settings::AlertSettings,
        events::settings::{EventStream, check_all},
        place::{Maps, PlaceFiles},
    },
    stream::{CoreConfig, KeyOverdue},
};

mod check;
mod oidc;
mod template;

use check::{check_durations, check_overlay, check_proxies, check_url};
pub use oidc::Oidc;
pub use template::{Places, controller_toml, policy_toml};

/// Where `init` puts the configuration and where every command looks for it unless it is told otherwise.
pub const DEFAULT_FILE: &str = "/etc/postern-controller/controller.toml";

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file itself is wrong.
    #[error(transparent)]
    Toml(#[from] Diagnostics),
    /// A file or folder that it names cannot be used.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file is not there.
    #[error(
        "there is no configuration at {0}\nRun `postern-controller init` to make one, or name it with --config FILE."
    )]
    NoConfig(PathBuf),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    url: Spanned<String>,
    listen: Spanned<Vec<SocketAddr>>,
    #[serde(default)]
    probe_listen: Option<SocketAddr>,
    #[serde(default)]
    trusted_proxies: Vec<Spanned<String>>,
    #[serde(default = "default_state")]
    state_dir: PathBuf,
    #[serde(default = "default_keys")]
    key_dir: PathBuf,
    #[serde(default = "default_policy")]
    policy: PathBuf,
    #[serde(default)]
    tls: Option<Tls>,
    overlay: Overlay,
    #[serde(default)]
    sessions: Sessions,
    #[serde(default)]
    leases: Leases,
    #[serde(default)]
    admin: Admin,
    #[serde(default)]
    audit: Audit,
    #[serde(default)]
    limits: Limits,
    #[serde(default)]
    accounts: Accounts,
    #[serde(default)]
    oidc: Option<Spanned<Oidc>>,
    #[serde(default)]
    events: Vec<Spanned<EventStream>>,
    #[serde(default)]
    alerts: AlertSettings,
    #[serde(default)]
    place: PlaceSection,
    #[serde(default)]
    machine_issuer: Vec<Spanned<machine_settings::Written>>,
    #[serde(default)]
    keys: KeySection,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct KeySection {
    deadline: Spanned<HumanDuration>,
    overdue: KeyOverdue,
}

impl Default for KeySection {
    fn default() -> Self {
        Self { deadline: unplaced(7 * 86_400), overdue: KeyOverdue::Alert }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct PlaceSection {
    country_file: Option<PathBuf>,
    asn_file: Option<PathBuf>,
}

fn default_state() -> PathBuf {
    "state".into()
}
fn default_keys() -> PathBuf {
    "keys".into()
}
fn default_policy() -> PathBuf {
    "policy.toml".into()
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tls {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Overlay {
    ipv6: Spanned<Ipv6Net>,
    ipv4: Spanned<Ipv4Net>,
    #[serde(default)]
    public_ipv4: bool,
    #[serde(default = "default_domain")]
    domain: Spanned<String>,
    #[serde(default = "default_hold")]
    address_hold: HumanDuration,
}

fn default_domain() -> Spanned<String> {
    Spanned::new(0..0, "internal".into())
}
fn default_hold() -> HumanDuration {
    HumanDuration::new(Duration::from_secs(7 * 86_400))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Sessions {
    length: Spanned<HumanDuration>,
    join_code: Spanned<HumanDuration>,
    stock_limit: Spanned<HumanDuration>,
}

fn unplaced(seconds: u64) -> Spanned<HumanDuration> {
    Spanned::new(0..0, HumanDuration::new(Duration::from_secs(seconds)))
}

impl Default for Sessions {
    fn default() -> Self {
        Self { length: unplaced(12 * 3600), join_code: unplaced(600), stock_limit: unplaced(8 * 3600) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Leases {
    shortest: Spanned<HumanDuration>,
    longest: Spanned<HumanDuration>,
}

impl Default for Leases {
    fn default() -> Self {
        Self { shortest: unplaced(30), longest: unplaced(3600) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Admin {
    socket: PathBuf,
    group: Option<String>,
    posture_group: Option<String>,
}

impl Default for Admin {
    fn default() -> Self {
        Self { socket: "run/admin.sock".into(), group: None, posture_group: None }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Audit {
    file_size: ByteSize,
}

impl Default for Audit {
    fn default() -> Self {
        Self { file_size: ByteSize::new(64 << 20) }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Limits {
    connections: usize,
    connections_per_address: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { connections: 8_192, connections_per_address: 128 }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Accounts {
    local: bool,
}

impl Default for Accounts {
    fn default() -> Self {
        Self { local: true }
    }
}

/// The configuration, checked; every path is resolved.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file that was read.
    pub file: PathBuf,
    /// The controller's URL, without a slash at its end.
    pub url: String,
    /// Where pages and streams are served.
    pub listen: Vec<SocketAddr>,
    /// Where probes are received; the first address of `listen`, by UDP, unless it is written.
    pub probe_listen: SocketAddr,
    /// The proxies that say by the PROXY protocol whose connections they pass on.
    pub trusted_proxies: TrustedProxies,
    /// The folder of the database and the audit log.
    pub state_dir: PathBuf,
    /// The folder of keys.
    pub key_dir: PathBuf,
    /// The policy document.
    pub policy: PathBuf,
    /// Where the certificate comes from.
    pub tls: tls::Source,
    /// What the core is configured with.
    pub core: CoreConfig,
    /// The administration socket.
    pub admin_socket: PathBuf,
    /// The group whose members may administer, beside root and the user that runs the controller.
    pub admin_group: Option<String>,
    /// The group whose members may import what a device management says of machines, and nothing else.
    pub posture_group: Option<String>,
    /// The size in bytes at which a new audit file is begun.
    pub audit_file_size: u64,
    /// The most connections at a time.
    pub connections: usize,
    /// The most connections at a time from one address (IPv6: one /64; one /48 has eight times that).
    pub connections_per_address: usize,
    /// Whether people may sign in with local accounts.
    pub local_accounts: bool,
    /// The provider for sign-in, if there is one.
    pub oidc: Option<Oidc>,
    /// Streams of security events.
    pub events: Vec<EventStream>,
    /// Where alerts go.
    pub alerts: AlertSettings,
    /// Maps of addresses.
    pub place: PlaceFiles,
    /// Platforms whose tokens machines sign in with.
    pub machine_issuers: Vec<MachineIssuer>,
}

impl Config {
    /// Reads and checks a configuration file. The files that it names are not opened: see [`Config::check_files`].
    ///
    /// # Errors
    /// [`ConfigError`] with every mistake.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let text = match files::read(file) {
            Ok(text) => text,
            Err(FileError::Missing(path)) => return Err(ConfigError::NoConfig(path)),
            Err(error) => return Err(error.into()),
        };
        Ok(Self::parse(file, &text)?)
    }

    /// Checks the text of a configuration file.
    ///
    /// # Errors
    /// Every mistake, with its place.
    pub fn parse(file: &Path, text: &str) -> Result<Self, Diagnostics> {
        let name = file.display().to_string();
        let written: Written = diagnostics::from_toml(&name, text)?;
        let mut wrong = Diagnostics::new(name, text);
        let host = check_url(&written.url, &mut wrong);
        check_overlay(&written.overlay, &mut wrong);
        check_durations(&written, &mut wrong);
        let proxies = check_proxies(&written.trusted_proxies, &mut wrong);
        if written.listen.get_ref().is_empty() {
            wrong.push(
                Diagnostic::at(written.listen.span(), "the controller listens nowhere")
                    .help("write listen = [\"[::]:443\"]"),
            );
        }
        if let Some(oidc) = &written.oidc {
            oidc::check(oidc, written.url.get_ref(), &mut wrong);
        }
        if let Some(mistake) = written.alerts.mistakes() {
            wrong.push(Diagnostic::whole(mistake));
        }
        let oidc_issuer = written.oidc.as_ref().map(|oidc| oidc.get_ref().issuer.clone());
        check_all(&written.events, written.url.get_ref(), oidc_issuer.as_deref(), &mut wrong);
        if !written.accounts.local && written.oidc.is_none() {
            wrong.push(
                Diagnostic::whole("nobody can sign in: local accounts are off and there is no [oidc]")
                    .help("set local = true in [accounts], or add [oidc]"),
            );
        }
        let base = file.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let people = written.oidc.as_ref().map(Spanned::get_ref);
        let people = people.map(|oidc| (oidc.issuer.as_str(), oidc.client_id.as_str()));
        let machine_issuers = machine_settings::check(&written.machine_issuer, people, base, &mut wrong);
        let wrong_or_empty = wrong.into_result(());
        wrong_or_empty?;

        let key_dir = base.join(&written.key_dir);
        let tls = match &written.tls {
            Some(given) => tls::Source::Given { chain: base.join(&given.certificate), key: base.join(&given.key) },
            None => tls::Source::Own { dir: key_dir.clone(), names: vec![host] },
        };
        let listen = written.listen.into_inner();
        let probe_listen = written.probe_listen.unwrap_or(listen[0]);
        let url = written.url.into_inner().trim_end_matches('/').to_owned();
        let core = CoreConfig {
            domain: written.overlay.domain.into_inner(),
            lease_min: written.leases.shortest.into_inner().get(),
            lease_max: written.leases.longest.into_inner().get(),
            session_length: written.sessions.length.into_inner().get(),
            stock_limit: written.sessions.stock_limit.into_inner().get(),
            address_hold: written.overlay.address_hold.get(),
            join_code_life: written.sessions.join_code.into_inner().get(),
            probe_port: Some(probe_listen.port()),
            dormant_after: written.alerts.dormant_after.get(),
            scim: written.oidc.as_ref().and_then(|oidc| oidc.get_ref().scim_settings()),
            learn_for: written.alerts.learn_for.get(),
            key_deadline: written.keys.deadline.into_inner().get(),
            key_overdue: written.keys.overdue,
            boot: clock::boot(),
            ..CoreConfig::new(url.clone(), written.overlay.ipv6.into_inner(), written.overlay.ipv4.into_inner())
        };
        let events = written.events.into_iter().map(Spanned::into_inner);
        let events = events.map(|stream| stream.resolved(base, &url, oidc_issuer.as_deref())).collect();
        let oidc = written.oidc.map(Spanned::into_inner).map(|oidc| Oidc {
            client_secret_file: oidc.client_secret_file.as_ref().map(|path| base.join(path)),
            ca_file: oidc.ca_file.as_ref().map(|path| base.join(path)),
            ..oidc
        });
        Ok(Self {
            file: file.to_owned(),
            url,
            listen,
            probe_listen,
            trusted_proxies: TrustedProxies::new(proxies),
            state_dir: base.join(&written.state_dir),
            key_dir,
            policy: base.join(&written.policy),
            tls,
            core,
            admin_socket: base.join(&written.admin.socket),
            admin_group: written.admin.group,
            posture_group: written.admin.posture_group,
            audit_file_size: written.audit.file_size.get().max(4_096),
            connections: written.limits.connections.max(16),
            connections_per_address: written.limits.connections_per_address.max(4),
            local_accounts: written.accounts.local,
            oidc,
            events,
            alerts: written.alerts.based_on(base),
            machine_issuers,
            place: PlaceFiles {
                country: written.place.country_file.map(|path| base.join(path)),
                asn: written.place.asn_file.map(|path| base.join(path)),
            },
        })
    }

    /// The file with the signing key.
    pub fn signing_key(&self) -> PathBuf {
        self.key_dir.join("signing.key")
    }

    /// The database.
    pub fn database(&self) -> PathBuf {
        self.state_dir.join("controller.db")
    }

    /// The folder of the audit log.
    pub fn audit_dir(&self) -> PathBuf {
        self.state_dir.join("audit")
    }

    /// Checks the files that the configuration names: keys are there and for their owner alone, certificates fit, the
    /// state folder can be written.
    ///
    /// # Errors
    /// Each mistake, in words.
    pub fn check_files(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        if let Err(error) = files::read_secret(&self.signing_key()) {
            wrong.push(error.to_string());
        }
        let tls_files = match &self.tls {
            tls::Source::Own { dir, .. } => vec![(dir.join("ca.key"), true), (dir.join("ca.crt"), false)],
            tls::Source::Given { chain, key } => vec![(key.clone(), true), (chain.clone(), false)],
        };
        for (path, secret) in tls_files {
            if let Err(error) = if secret { files::read_secret(&path) } else { files::read(&path) } {
                wrong.push(error.to_string());
            }
        }
        if let tls::Source::Given { .. } = &self.tls
            && wrong.is_empty()
            && let Err(error) = tls::load(&self.tls, crate::serve::clock::now().wall)
        {
            wrong.push(error.to_string());
        }
        let secrets = self.oidc.iter().flat_map(|oidc| &oidc.client_secret_file);
        let secrets = secrets.chain(&self.alerts.secret_file);
        let owner = |path: &Path| std::fs::metadata(path).ok().map(|found| found.uid());
        let own = owner(&self.signing_key());
        for path in secrets.chain(self.events.iter().flat_map(EventStream::secrets)) {
            if let Err(error) = files::read_secret(path) {
                wrong.push(error.to_string());
                continue;
            }
            // Root reads everything; the controller's own user does not.
            if let (Some(own), Some(other)) = (own, owner(path).filter(|other| Some(*other) != own)) {
                let (own, other, path) = (user_name(own), user_name(other), path.display());
                wrong.push(format!("{path} belongs to {other}, and the controller runs as {own}: chown {own} {path}"));
            }
        }
        if let Err(error) = crate::signals::alerts::webhook::check(&self.alerts) {
            wrong.push(format!("[alerts] in {}: {error}", self.file.display()));
        }
        let authorities = self.oidc.iter().flat_map(|oidc| &oidc.ca_file);
        let authorities = authorities.chain(self.events.iter().flat_map(|stream| &stream.ca_file));
        let machines = self.machine_issuers.iter();
        for path in authorities.chain(machines.flat_map(|issuer| issuer.keys_file.iter().chain(&issuer.ca_file))) {
            if let Err(error) = files::read(path) {
                wrong.push(error.to_string());
            }
        }
        if let Err(error) = Maps::read(&self.place) {
            wrong.push(error.to_string());
        }
        if let Err(error) =
            files::make_private_folder(&self.state_dir).and_then(|()| files::check_writable(&self.state_dir))
        {
            wrong.push(error.to_string());
        }
        wrong
    }
}

/// Returns the operating system's name of a user.
fn user_name(uid: u32) -> String {
    let known = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| user.name)
}

#[cfg(test)]
mod tests;
